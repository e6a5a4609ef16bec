"""The share of non-zero activations of every convolution, measured on images."""
