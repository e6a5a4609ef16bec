"""The drawing of one folded group, as SVG with its upper left corner at the origin.

Semantics
- The strip is the convolutions of the group from input to output: density above where it was measured, base or
  enhancement below.
- What depends on the plan can be found: ``widths`` in a ``data-group``, ``beta`` with its ``data-m``, the marks of a
  strip with the box that they stand for (``data-at``).
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import takewhile

from mbs_fx.pictures.box_svg import (
    LEFT,
    LINE,
    NAME,
    RIGHT,
    SMALL,
    TOP,
    WIDE,
    Piece,
    fill,
    relative,
    side_of,
    text_at,
    worn,
)
from mbs_fx.pictures.folding import Group
from mbs_fx.pictures.network_boxes import Box, Scene
from mbs_fx.pictures.style import beta_text, fitted, macroblock_colour, text_width, window
from mbs_fx.results.plan import MacroblockPlan
from mbs_fx.results.tables import change_text, place_text, span_text

_CELLS, _CELL = 48, 14.0
_SHEETS = 6
"""How far the sheets behind a folded group show."""

Rows = list[tuple[str, str, str]]
"""Class, text on the left, text on the right."""


def group_piece(group: Group, scene: Scene, prefix: str) -> Piece:
    """A folded group, named relative to the group around it."""
    convs = [box for box in group.boxes() if box.conv is not None]
    name, right = group_name(group, scene, prefix), f"× {group.row}" if group.row else ""
    if group.macroblock is not None:
        name = name.removesuffix(f" · {group.path}")
        right = beta_text(scene.plan.macroblocks[group.macroblock].beta) if scene.plan is not None else ""
    rows = _rows(group, convs)
    measured = any(box.p is not None for box in convs)
    height = TOP + LINE * len(rows) + (30 if measured else 22 if convs else 10)
    inside = next(group.boxes()).macroblock
    colour = macroblock_colour(inside) if inside is not None else "#888888"
    parts = [
        f'<rect class="sheet" x="{d}" y="{d}" width="{WIDE}" height="{height}" rx="7" stroke="{colour}"/>'
        for d in (_SHEETS, _SHEETS / 2, 0)
    ]
    parts += _texts(name, right, rows, group.macroblock)
    parts.append(_strip(convs, TOP + LINE * len(rows) + 8))
    kind = "fold" + (" macroblock" if group.macroblock is not None else "") + (" opaque" if group.segments else "")
    return Piece(WIDE + _SHEETS, height + _SHEETS, _body(kind, group.key, parts), _lines(name, right, rows))


def macroblock_piece(m: MacroblockPlan) -> Piece:
    """A macroblock of which only the row in a plan is known."""
    name = f"m{m.index} · {place_text(m.spatial_size, m.upsampled)}"
    rows: Rows = [
        (
            "small",
            f"{_count(m.convs)} · RF {span_text(m.receptive_field)}",
            "" if m.density is None else f"p {m.density:.2f}",
        ),
        _widths(m.widths),
        ("small", f"{m.flops[0] / 1e6:,.1f} → {m.flops[1] / 1e6:,.1f} MFLOP", ""),
    ]
    height = TOP + LINE * len(rows) + 24
    at = LEFT + (WIDE - 2 * LEFT) * m.base / max(m.convs, 1)
    y = height - 14
    sheet = f'<rect class="sheet" width="{WIDE}" height="{height}" rx="7" stroke="{macroblock_colour(m.index)}"/>'
    marks = (
        f'<rect class="mark base" x="{LEFT}" y="{y}" width="{at - LEFT:.1f}" height="5"/>'
        f'<rect class="mark enhancement" x="{at:.1f}" y="{y}" width="{WIDE - LEFT - at:.1f}" height="5"/>'
    )
    beta = beta_text(m.beta)
    parts = [sheet, *_texts(name, beta, rows, m.index), marks]
    return Piece(WIDE, height, _body("fold macroblock", f"m{m.index}", parts), _lines(name, beta, rows))


def group_name(group: Group, scene: Scene, prefix: str) -> str:
    """What a group is called."""
    if group.macroblock is not None:
        m = scene.analysis.macroblocks[group.macroblock]
        name = f"m{m.index} · {place_text(m.spatial_size, m.upsampled)}"
        return f"{name} · {group.path}" if group.path else name
    if group.row and not group.path:
        ends = [relative(g.path, prefix) for g in (group.children[0], group.children[-1]) if isinstance(g, Group)]
        return f"{ends[0]} … {ends[-1][len(_before_number(ends[-1], ends[0])) :]}"
    return relative(group.path, prefix)


def _before_number(a: str, b: str) -> str:
    """What two names have in common, up to the numbers that tell them apart."""
    same = "".join(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    return same.rstrip("0123456789")


def _rows(group: Group, convs: Sequence[Box]) -> Rows:
    """What is said of a group, from top to bottom."""
    widths = list(dict.fromkeys(box.width for box in convs if box.width is not None))
    dense = [box.p for box in convs if box.p is not None]
    fields = [max(box.geometry.receptive_field) for box in convs if box.geometry is not None]
    count = _count(len(convs)) if convs else f"{sum(1 for _ in group.boxes())} steps"
    what = count + (f" · RF {span_text(fields)}" if fields else "")
    module = group.path if group.macroblock is not None else ""
    fits = text_width(what, SMALL) + text_width(module, SMALL) < WIDE - LEFT - RIGHT - 8
    rows: Rows = [("small", what, module if fits else "")]
    if widths:
        rows.append(_widths(widths))
    alike = _alike(group)
    if dense:
        low, high = f"{min(dense):.2f}", f"{max(dense):.2f}"
        rows.append(("small", f"p {low}" if low == high else f"p {low} – {high}", alike))
    elif alike:
        rows.append(("small", alike, ""))
    if group.segments:
        rows.append(("small", "opaque: scaled by one β as a whole", ""))
    return rows


def _count(convs: int) -> str:
    return f"{convs} conv{'s' if convs != 1 else ''}"


def _widths(pairs: Sequence[tuple[int, int]], most: int = 4) -> tuple[str, str, str]:
    """Distinct widths, before and after."""
    text = ", ".join(change_text(pair) for pair in pairs[:most]) + (", …" if len(pairs) > most else "")
    return "widths changed" if any(a != b for a, b in pairs) else "widths", text, ""


def _alike(group: Group) -> str:
    """The windows of the convolutions of a group, or of one of the groups in a row."""
    one = group.children[0] if group.row else group
    words = [window(box.head) for box in (one.boxes() if isinstance(one, Group) else (one,)) if box.conv is not None]
    text = " → ".join(words)
    return text if group.macroblock is None and text_width(text, SMALL) < WIDE / 2 else ""


def _texts(name: str, right: str, rows: Rows, macroblock: int | None) -> list[str]:
    end = WIDE - RIGHT - 2
    room = WIDE - LEFT - RIGHT - 22 - text_width(right, NAME, bold=True)
    parts = [
        text_at("name", LEFT, TOP, fitted(name, room, NAME, bold=True, keep_end=macroblock is None)),
        text_at("beta" if macroblock is not None else "name", end - 16, TOP, right, end=True, m=macroblock),
    ]
    for number, (kind, left, second) in enumerate(rows, 1):
        room = WIDE - LEFT - RIGHT - 8 - text_width(second, SMALL)
        shown = fitted(left, room, SMALL, bold="changed" in kind)
        parts.append(text_at(kind, LEFT, TOP + LINE * number, shown))
        parts.append(text_at("small", end, TOP + LINE * number, second, end=True))
    return parts


def _lines(name: str, right: str, rows: Rows) -> tuple[str, ...]:
    return tuple(f"{a}  {b}".strip() for a, b in [(name, right), *((left, second) for _, left, second in rows)])


def _body(kind: str, key: str, parts: Sequence[str]) -> str:
    return f'<g class="{kind}" data-group="{escape(key)}">{"".join(parts)}</g>'


def _strip(convs: Sequence[Box], y: float) -> str:
    """One cell for every convolution, or for several neighbours."""
    cells = min(len(convs), _CELLS)
    width = min((WIDE - 2 * LEFT) / max(cells, 1), _CELL)
    measured = any(box.p is not None for box in convs)
    parts: list[str] = []
    for i in range(cells):
        members = convs[i * len(convs) // cells : (i + 1) * len(convs) // cells]
        known = [box.p for box in members if box.p is not None]
        kind = "cell worn" if any(map(worn, members)) else "cell"
        look = f'class="{kind}" {fill(sum(known) / len(known))}' if known else f'class="{kind} unknown"'
        last, x = members[-1], LEFT + i * width
        if measured:
            parts.append(f'<rect {look} x="{x:.1f}" y="{y}" width="{width:.1f}" height="9"/>')
        parts.append(
            f'<rect class="mark {side_of(last)}" data-at="{last.number}" x="{x:.1f}" y="{y + 10 * measured}" '
            f'width="{width:.1f}" height="{4 if measured else 6}"/>'
        )
    return "".join(parts)
