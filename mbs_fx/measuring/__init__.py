"""Exact counts of the non-zeros that images leave in a network, and when enough images were read."""
