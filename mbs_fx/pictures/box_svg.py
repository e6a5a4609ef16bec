"""The drawing of one box, as SVG with its upper left corner at the origin.

Semantics
- What depends on the plan can be found: the ``width`` text and the side (``base`` or ``enhancement``) of every
  ``data-box``.  The page with the slider changes these and nothing else.
- ``lines`` are the same words for those who draw with Graphviz themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mbs_fx.pictures.network_boxes import Box
from mbs_fx.pictures.style import density_colour, fitted, kind_word, text_width, window
from mbs_fx.results.tables import change_text, size_text

WIDE, NARROW = 250, 200
LINE, TOP, LEFT, RIGHT = 15, 17, 14, 10
NAME, SMALL = 12.0, 10.5


@dataclass(frozen=True, slots=True)
class Piece:
    """A drawing, its size, and its words."""

    width: float
    height: float
    svg: str
    lines: tuple[str, ...]


def box_piece(box: Box, prefix: str) -> Piece:
    """A box, named relative to the group around it."""
    layer = box.conv is not None or box.kept or box.head.kind.startswith("Linear")
    return _layer(box, prefix) if layer else _step(box, prefix)


def box_name(box: Box, prefix: str) -> str:
    """What a box is called: its module, or what it does."""
    path = box.conv.target if box.conv is not None else box.head.path
    if box.head.op in ("placeholder", "output"):
        return "output" if box.head.op == "output" else f"input {box.head.name}"
    if not path:
        return kind_word(box.head)
    return relative(path, prefix)


def relative(path: str, prefix: str) -> str:
    """A module path as seen from the module around it, which is named where a number says too little."""
    path = path.split("@")[0]
    while prefix and path.startswith(f"{prefix}.") and path[len(prefix) + 1].isdigit():
        prefix = prefix.rpartition(".")[0]
    return path[len(prefix) + 1 :] if prefix and path.startswith(f"{prefix}.") else path


def _layer(box: Box, prefix: str) -> Piece:
    """A convolution or a layer that keeps its width: three lines, and the reason where it is kept."""
    name = box_name(box, prefix)
    width = "" if box.width is None else change_text(box.width)
    room = WIDE - LEFT - RIGHT - 10 - text_width(width, NAME, bold=True)
    outputs = f", {box.head.shape[-1]} outputs" if box.conv is None and box.head.shape else ""
    words = [_kind(box) + outputs, *_after(box)]
    what = " · ".join(dict.fromkeys(words))
    density = "" if box.p is None else f"p {box.p:.2f}"
    if box.conv is not None and not box.conv.counted:
        density = "not counted"
    where, error = _where(box), "" if box.error is None else f"error {box.error.after:.2f}"
    rows = [(what, density), (where, error)] if where else [(what, density or error)]
    kept = f"kept: {box.kept}" if box.kept else ""
    height = TOP + LINE * (len(rows) + bool(kept)) + 8
    parts = [
        _body(WIDE, height, box.p),
        f'<path class="side" d="M0,5 q0,-5 5,-5 h1 v{height} h-1 q-5,0 -5,-5 z"/>',
        text_at("name", LEFT, TOP, fitted(name, room, NAME, bold=True, keep_end=True)),
        text_at("width" + changed(box.width), WIDE - RIGHT, TOP, width, end=True),
    ]
    for number, (left, right) in enumerate(rows, 1):
        room = WIDE - LEFT - RIGHT - 6 - text_width(right, SMALL)
        parts.append(text_at("small", LEFT, TOP + LINE * number, fitted(left, room, SMALL)))
        said = "small error" if right and right == error else "small"
        parts.append(text_at(said, WIDE - RIGHT, TOP + LINE * number, right, end=True))
    if kept:
        y = TOP + LINE * (len(rows) + 1)
        parts.append(f'<path class="lock" d="M{LEFT},{y - 5} h8 v6 h-8 z m1.5,0 v-2 a2.5,2.5 0 0 1 5,0 v2"/>')
        parts.append(text_at("kept", LEFT + 13, y, fitted(kept, WIDE - LEFT - 13 - RIGHT, SMALL)))
    lines = (name, *(f"{a}  {b}".strip() for a, b in [(width, ""), *rows]), kept)
    return Piece(WIDE, height, _group("layer", box, parts), tuple(line for line in lines if line))


def _step(box: Box, prefix: str) -> Piece:
    """Any other operation: one line."""
    ends = box.head.op in ("placeholder", "output")
    first = box_name(box, prefix) if ends else f"{kind_word(box.head)} {window(box.head)}".strip()
    words = [first, *_after(box)]
    if len(box.inputs) > len(box.drawn):
        words[0] += f" of {len(box.inputs)}"
    what = " · ".join(dict.fromkeys(words))
    where = size_text(box.head.shape[1:]) if ends else _rf(box)
    room = NARROW - LEFT - RIGHT - 6 - text_width(where, SMALL)
    height = 25
    parts = [
        f'<rect class="plain" width="{NARROW}" height="{height}" rx="12.5"/>',
        text_at("step", LEFT, 16.5, fitted(what, room, 11)),
        text_at("small", NARROW - RIGHT - 2, 16.5, where, end=True),
    ]
    return Piece(NARROW, height, _group("step", box, parts), tuple(line for line in (what, _where(box)) if line))


def _after(box: Box) -> list[str]:
    """What is done to the result of a box's layer."""
    return [kind_word(o) for o in box.operations[1:] if o.kind != "Identity"]


def _kind(box: Box) -> str:
    conv = box.conv
    word = f"{window(box.head)} {kind_word(box.head)}" if window(box.head) else kind_word(box.head)
    if conv is not None and conv.depthwise:
        return f"{window(box.head)} depthwise"
    if conv is not None and conv.groups > 1:
        return f"{word}, {conv.groups} groups"
    return word


def _where(box: Box) -> str:
    if box.geometry is None:
        return ""
    g = box.geometry
    stride = size_text(tuple(dict.fromkeys(g.stride)))
    return f"{size_text(g.spatial_size)} · stride {stride} · {_rf(box)}"


def _rf(box: Box) -> str:
    return f"RF {size_text(tuple(dict.fromkeys(box.geometry.receptive_field)))}" if box.geometry is not None else ""


def tooltip(box: Box) -> str:
    """Everything known of a box, one fact a line."""
    lines = [f"{o.name}: {o.kind}" + (f" ({o.path})" if o.path else "") for o in box.operations]
    lines.append(f"shape {size_text(box.head.shape)}")
    if (where := _where(box)) != "":
        lines.append(where)
    if box.conv is not None:
        lines.append(f"macroblock {box.conv.macroblock}, {box.conv.flops / 1e6:,.2f} million multiply-adds")
        lines.append(f"from {box.conv.in_width} to {box.conv.width} channels, groups {box.conv.groups}")
    if box.p is not None:
        lines.append(f"density {box.p:.4f}")
    if box.segment is not None:
        lines.append(f"opaque segment {box.segment.name}: {box.segment.reason}")
    if box.error is not None:
        lines.append(f"held-back error {box.error.after:.3f}, with inherited weights {box.error.before:.3f}")
    if box.kept:
        lines.append(f"keeps its width: {box.kept}")
    return "\n".join(lines)


def side_of(box: Box) -> str:
    """The class of a base or an enhancement layer, empty where nothing decides."""
    return "" if box.base is None else "base" if box.base else "enhancement"


def worn(box: Box) -> str:
    """The class of a layer whose held-back error is large."""
    return "worn" if box.error is not None and box.error.large else ""


def changed(width: tuple[int, int] | None) -> str:
    """The class of a width that is reduced."""
    return " changed" if width is not None and width[0] != width[1] else ""


def fill(p: float) -> str:
    """The attributes that colour something by its density: the colour itself, and p for the page's own colours."""
    return f'fill="{density_colour(p)}" style="--p:{p:.3f}"'


def _body(width: float, height: float, p: float | None) -> str:
    look = f'class="body" {fill(p)}' if p is not None else 'class="body unknown"'
    return f'<rect {look} width="{width}" height="{height}" rx="5"/>'


def _group(kind: str, box: Box, parts: Sequence[str]) -> str:
    classes = " ".join(c for c in ("box", kind, side_of(box), "opaque" if box.segment else "", worn(box)) if c)
    title = f"<title>{escape(tooltip(box))}</title>"
    return f'<g class="{classes}" data-box="{box.number}">{title}{"".join(parts)}</g>'


def text_at(kind: str, x: float, y: float, text: str, end: bool = False, m: int | None = None) -> str:
    """A text of a class, with the number of the macroblock that it speaks of."""
    if not text:
        return ""
    anchor = ' text-anchor="end"' if end else ""
    mark = "" if m is None else f' data-m="{m}"'
    return f'<text class="{kind}" x="{x:g}" y="{y:g}"{anchor}{mark}>{escape(text)}</text>'
