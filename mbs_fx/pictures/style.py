"""Colours, type and words that all pictures share.

Semantics
- Fill is density: white where nothing is non-zero, green where everything is.
- The bar on the left is the paper's split: slate for base layers, orange for enhancement layers.
- Outlines of groups have the colour of their macroblock, the same one as in the plots.
- Text is measured in advance, with the widths of a wide sans-serif font: whatever font is there, it fits.
"""

from __future__ import annotations

from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.resolve import named
from mbs_fx.results.analysis import Operation
from mbs_fx.results.tables import size_text

MACROBLOCKS = ("#4a6fb5", "#8a5bb3", "#b2557f", "#2f8f9d", "#7d6b46", "#5b7f3b", "#6b6fd0", "#a04f4f")
BASE, ENHANCEMENT = "#64748b", "#ef7d00"
SPARSE, DENSE = (255, 255, 255), (88, 178, 128)

FONT = "Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

LIGHT = {
    "page": "#ffffff",
    "panel": "#f6f8fa",
    "text": "#1f2733",
    "muted": "#5b6675",
    "line": "#c9d1da",
    "edge": "#7a8696",
    "plain": "#eef1f5",
    "unknown": "#ffffff",
    "kept": "#a3203a",
    "reduced": "#0b5fb0",
    "opaque": "#7a3fb0",
    "sparse": "#ffffff",
    "dense": "#58b280",
    "base": BASE,
    "enhancement": ENHANCEMENT,
}
DARK = {
    "page": "#12161c",
    "panel": "#1b212a",
    "text": "#e6ebf1",
    "muted": "#9aa7b6",
    "line": "#3a4552",
    "edge": "#8593a4",
    "plain": "#252d38",
    "unknown": "#1b212a",
    "kept": "#ff8fa3",
    "reduced": "#7cc0ff",
    "opaque": "#c79bf2",
    "sparse": "#1b212a",
    "dense": "#23804f",
    "base": "#8796aa",
    "enhancement": "#ff9d3c",
}

_NARROW, _WIDE = frozenset("ijl|.,:;'!ftr()[] ·/-"), frozenset("mwMW@%→×β⌈⌉–…")
_WORDS = {
    **dict.fromkeys(v.CONV, "conv"),
    **dict.fromkeys(v.CONV_TRANSPOSE, "transposed conv"),
    **dict.fromkeys(v.AVG_POOL, "avg pool"),
    **dict.fromkeys(v.MAX_POOL, "max pool"),
    **{each: "avg pool" if "avg" in each.name else "max pool" for each in v.ADAPTIVE_POOL},
    v.BATCH_NORM: "bn",
    v.DROPOUT: "dropout",
    v.ADD: "add",
    v.GETITEM: "slice",
}
_OTHERS = {"BatchNormAct2d": "bn · act", "Conv2dSame": "conv"}
"""Layers of timm: a normalisation that holds its activation, a convolution that pads by itself."""


def macroblock_colour(index: int) -> str:
    """The colour of m_i, the same in every picture."""
    return MACROBLOCKS[index % len(MACROBLOCKS)]


def density_colour(p: float) -> str:
    """The fill of a convolution whose share of non-zero outputs is p, on a light page."""
    mixed = (round(a + (b - a) * p) for a, b in zip(SPARSE, DENSE, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """How wide a text may get."""
    total = sum(
        0.38 if c in _NARROW else 0.95 if c in _WIDE else 0.7 if c.isupper() or c.isdigit() else 0.61 for c in text
    )
    return total * size * (1.08 if bold else 1.0)


def fitted(text: str, width: float, size: float, bold: bool = False, keep_end: bool = False) -> str:
    """The text, or its beginning (its end) with an ellipsis where it does not fit."""
    if text_width(text, size, bold) <= width:
        return text
    while text and text_width(text + "…", size, bold) > width:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"


def kind_word(operation: Operation) -> str:
    """What an operation is called in a box."""
    kind = named(operation.kind)
    word = _OTHERS.get(operation.kind) or (_WORDS.get(kind) if kind is not None else None)
    return word or operation.kind.lower().rstrip("_")


def window(operation: Operation) -> str:
    """Kernel and stride, as in "3×3 /2"."""
    text = size_text(operation.kernel, "×") if operation.kernel else ""
    if operation.step and any(step != 1 for step in operation.step):
        step = operation.step[0] if len(set(operation.step)) == 1 else size_text(operation.step, "×")
        text += f" /{step}"
    return text


def beta_text(beta: float) -> str:
    """A scaling factor."""
    return f"β {beta:.3f}" if beta < 1 else "β 1"
