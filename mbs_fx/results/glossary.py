"""The words of tables, pictures and reports, one sentence each; docs/glossary.md is the same for readers."""

from __future__ import annotations

WORDS = {
    "macroblock": "The convolutions at one resolution, the paper's m_i; they are scaled by one factor.",
    "RF": "Receptive field: how many pixels of the input an output can depend on, along one axis.",
    "L": "The input size in pixels.",
    "z": "The threshold: layers whose receptive field exceeds z times the input size are enhancement layers.",
    "⌈z⌉_RF": "The smallest receptive field above z times the input size; base layers end there (Eq. 3).",
    "base layer": "A convolution whose receptive field is at most ⌈z⌉_RF: nothing after it sees much more.",
    "enhancement layer": "A convolution behind the boundary, which sees all of the image already.",
    "density": "p: the mean share of outputs of a convolution that are not zero after its activation.",
    "effective flops": "Multiply-adds times density: the work that is not done on zeros (Eq. 4).",
    "r": "Redundancy: the share by which effective flops up to a macroblock exceed those of the base layers (Eq. 7).",
    "β": "The scaling factor of a macroblock's widths: 1 / (1 + r), and 1 where nothing is redundant (Eq. 9).",
    "width": "The number of output channels of a convolution.",
    "width group": "Convolutions whose channels meet in an addition or a concatenation: their widths change together.",
    "kept": "A width that must stay, with the reason: it meets an input, an output, or what has no rule.",
    "opaque segment": "A part whose channels are mixed beyond following; it is scaled by one factor as a whole.",
    "held-back error": "By how much a refitted layer's output misses the original's, on images that were not fitted.",
    "MFLOP": "Millions of multiply-adds for one image, of the convolutions.",
}
