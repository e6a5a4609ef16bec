"""Weights refitted from images without labels: layer by layer, against what the original gives."""
