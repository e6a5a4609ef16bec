"""Which channels are the same, and where widths are bound: labels, rules, macroblocks, opaque segments."""
