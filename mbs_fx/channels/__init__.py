"""Which channels are the same: labels in place of numbers, and one rule for each kind of operation."""
