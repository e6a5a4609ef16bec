"""From labels to macroblocks, width groups and what can be chosen: the analysis pass."""
