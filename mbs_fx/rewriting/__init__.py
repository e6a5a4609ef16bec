"""The smaller network: which channels stay, layers at their new widths, plan and weights on disk."""
