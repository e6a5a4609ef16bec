"""Spatial size, stride and receptive field of every node, per axis."""
