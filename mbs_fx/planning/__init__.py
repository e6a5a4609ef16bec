"""Algorithm 1 from densities to widths, for a threshold, a budget or all thresholds; no graph is touched."""
