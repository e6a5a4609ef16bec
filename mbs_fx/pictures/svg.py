"""A picture as one SVG that stands alone, and as the part of a page that scripts go on with.

Semantics
- Every open group is a ``<g class="cluster" data-group=...>``, a macroblock also has ``data-m``; every box is a
  ``<g class="box" data-box=...>`` with its facts in ``<title>``; folded groups are ``<g class="fold">``.
- Alone, an SVG has the light colours written into its style sheet; in a page the page's variables hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib.resources import files

from mbs_fx.pictures.box_svg import fill, worn
from mbs_fx.pictures.diagram import Diagram, Item
from mbs_fx.pictures.graphviz_layout import Layout
from mbs_fx.pictures.style import FONT, LIGHT, beta_text, fitted, macroblock_colour, text_width
from mbs_fx.results.plan import summary
from mbs_fx.results.reconstruction import LARGE
from mbs_fx.results.tables import size_text

_MARGIN, _GAP, _NARROWEST = 16.0, 20.0, 560.0

_LIMIT = ' data-show="limit"'

MARKERS = (
    "<defs>"
    + "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="{width}" markerHeight="{width}" '
        f'orient="auto" markerUnits="userSpaceOnUse"><path d="M0,0.8 L8,4 L0,7.2 z"/></marker>'
        for name, width in (("tip", 7.5), ("tip-boundary", 9.5))
    )
    + "</defs>"
)


@cache
def asset(name: str) -> str:
    """A file that comes with the package."""
    return (files("mbs_fx.pictures") / "assets" / name).read_text(encoding="utf-8")


def style_sheet(colours: Mapping[str, str]) -> str:
    """The style sheet with its variables replaced by values, for programs that know none."""
    values = {**colours, "font": FONT}
    return re.sub(r"var\(--([a-z-]+)\)", lambda found: values[found[1]], asset("picture.css"))


def alone(diagram: Diagram, placed: Layout, title: str) -> str:
    """The whole picture: heading, network, and the legend in lines below it."""
    heading = [line for line in (title, *facts(diagram)) if line]
    top = _MARGIN + 20 * len(heading) + 6
    wide = max(placed.width, *(text_width(line, 11) for line in heading), _NARROWEST)
    legend, legend_height = _in_lines(legend_rows(diagram), wide)
    width, height = wide + 2 * _MARGIN, top + placed.height + _GAP + legend_height + _MARGIN
    texts = [
        f'<text class="{"title" if title and i == 0 else "summary"}" x="{_MARGIN}" y="{_MARGIN + 14 + 20 * i}">'
        f"{escape(line)}</text>"
        for i, line in enumerate(heading)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mbs" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><style>{style_sheet(LIGHT)}</style>{MARKERS}'
        f'<rect width="100%" height="100%" fill="{LIGHT["page"]}"/>{"".join(texts)}'
        f'<g transform="translate({_MARGIN},{top})">{network(diagram, placed)}</g>'
        f'<g class="legend" transform="translate({_MARGIN},{top + placed.height + _GAP:.1f})">{legend}</g></svg>\n'
    )


def embedded(diagram: Diagram, placed: Layout) -> tuple[str, str]:
    """Network and legend for a page."""
    legend = "".join(
        f'<svg class="mbs" width="{_sign_width(words):.0f}" height="22">'
        f'<g class="legend">{_sign(sign, words, 0, 0)}</g></svg>'
        for sign, words in legend_rows(diagram)
    )
    across, down = f"{placed.width:.0f}", f"{placed.height:.0f}"
    return (
        f'<svg class="mbs" width="{across}" height="{down}" viewBox="0 0 {across} {down}" data-width="{across}" '
        f'data-height="{down}">{MARKERS}{network(diagram, placed, in_page=True)}</svg>',
        legend,
    )


def network(diagram: Diagram, placed: Layout, in_page: bool = False) -> str:
    """A network, from back to front: frames, edges, titles of frames, pieces."""
    outside_in = sorted(placed.frames.items(), key=lambda f: diagram.items[f[0]].depth)
    frames = [_frame(diagram.items[key], place) for key, place in outside_in]
    edges = [
        f'<path class="edge{" boundary" if edge.boundary else ""}" d="{placed.curves[edge.tail, edge.head]}"/>'
        for edge in diagram.drawn_edges(frozenset(placed.frames))
    ]
    titles = [_frame_title(diagram, diagram.items[key], place, in_page) for key, place in outside_in]
    pieces = [
        f'<g transform="translate({x:.1f},{y:.1f})">{diagram.items[key].piece.svg}</g>'
        for key, (x, y) in placed.places.items()
    ]
    return "".join([*frames, *edges, *titles, *pieces])


def _frame(item: Item, place: tuple[float, float, float, float]) -> str:
    """An open group."""
    x, y, width, height = place
    mark = "" if item.parent or item.macroblock is None else f' data-m="{item.macroblock}"'
    return (
        f'<g class="{frame_class(item)}" data-group="{escape(item.key)}"{mark} transform="translate({x:.1f},{y:.1f})">'
        f'<rect class="frame" width="{width:.1f}" height="{height:.1f}" rx="8"{frame_stroke(item)}/></g>'
    )


def _frame_title(diagram: Diagram, item: Item, place: tuple[float, float, float, float], in_page: bool) -> str:
    """Its name and, for a macroblock, its factor, over the edges that pass; in a page the sign to close it."""
    x, y, width, _ = place
    right = frame_note(diagram, item)
    name = frame_name(diagram, item, width, in_page)
    mark = "" if item.parent or item.macroblock is None else f' data-m="{item.macroblock}"'
    end = width - (26 if in_page else 10)
    note = f'<text class="beta" x="{end:.1f}" y="17" text-anchor="end"{mark}>{escape(right)}</text>' if right else ""
    sign = f'<path class="sign" d="M{width - 19:.1f},13 h8"/>' if in_page else ""
    return (
        f'<g class="heading" data-group="{escape(item.key)}" transform="translate({x:.1f},{y:.1f})">'
        f'<text class="name" x="12" y="17">{escape(name)}</text>{note}{sign}</g>'
    )


def frame_name(diagram: Diagram, item: Item, width: float, in_page: bool = False) -> str:
    """The title of an open group, shortened so that arrows which enter from above do not cross it."""
    note = text_width(frame_note(diagram, item), 12, bold=True) + (40 if in_page else 24)
    entered = bool(item.parent) or diagram.column_of(item.key) != item.key
    room = min(width / 2 - 16, width - 12 - note) if entered else width - 12 - note
    name = item.name
    while not item.parent and " · " in name and text_width(name, 12, bold=True) > room:
        name = name.rpartition(" · ")[0]
    return fitted(name, room, 12, bold=True, keep_end=bool(item.parent))


def frame_class(item: Item) -> str:
    """Classes of an open group."""
    return " ".join(c for c in ("cluster", "unit" if item.parent else "macroblock", "opaque" * item.opaque) if c)


def frame_stroke(item: Item) -> str:
    """The colour of a macroblock around it."""
    plain = item.parent or item.opaque or item.macroblock is None
    return "" if plain else f' stroke="{macroblock_colour(item.macroblock or 0)}"'


def frame_note(diagram: Diagram, item: Item) -> str:
    """What stands on the right of the title of an open group."""
    if item.opaque and item.parent:
        return "opaque"
    if item.parent or item.macroblock is None or diagram.plan is None:
        return ""
    return beta_text(diagram.plan.macroblocks[item.macroblock].beta)


def facts(diagram: Diagram) -> list[str]:
    """What is said over a picture."""
    if diagram.plan is not None:
        return summary(diagram.plan).replace("; z", "\nz").splitlines()
    if diagram.scene is None:
        return []
    convs = diagram.scene.analysis.convs
    total = sum(conv.flops for conv in convs)
    return [f"{len(convs):,} convolutions, {total / 1e6:,.1f} million multiply-adds for one image"]


def legend_rows(diagram: Diagram) -> list[tuple[str, str]]:
    """What the signs mean, those only that the picture can show: drawings and words."""
    scene, plan = diagram.scene, diagram.plan
    boundary = scene.boundary if scene is not None else plan.boundary if plan is not None else None
    rows: list[tuple[str, str]] = []
    if scene is not None and scene.density is not None:
        rows.append((_gradient(), "density p, from 0 to 1"))
    if boundary is not None:
        for side, words in (("base", base_words(boundary)), ("enhancement", "enhancement layer")):
            rows.append((f'<rect class="mark {side}" x="12" y="3" width="6" height="14" rx="2"/>', words))
        rows.append(('<path class="edge boundary" d="M0,10 L30,10"/>', "from base to enhancement"))
    if scene is not None:
        rows += _legend_of_groups(scene.analysis.kept, bool(any(m.segments for m in scene.analysis.macroblocks)))
    if scene is not None and any(map(worn, scene.boxes)):
        sign = '<g class="box worn"><rect class="body unknown" x="1" y="2" width="27" height="14" rx="4"/></g>'
        rows.append((sign, f"held-back error {LARGE:g} or more"))
    if plan is not None:
        rows.append(('<text class="width changed" x="0" y="14">8 → 6</text>', "width before and after"))
    return rows


def _sign(sign: str, words: str, x: float, y: float) -> str:
    limit = _LIMIT * words.startswith("base layer")
    return f'<g transform="translate({x:g},{y:g})">{sign}<text x="44" y="14"{limit}>{escape(words)}</text></g>'


def _sign_width(words: str) -> float:
    return 44 + text_width(words, 11.5) + 22


def _in_lines(rows: list[tuple[str, str]], room: float) -> tuple[str, float]:
    """The legend from left to right, in as many lines as it takes."""
    parts: list[str] = []
    x = y = 0.0
    for sign, words in rows:
        width = _sign_width(words)
        if x and x + width > room:
            x, y = 0.0, y + 22
        parts.append(_sign(sign, words, x, y))
        x += width
    return "".join(parts), y + 22 if rows else 0.0


def base_words(boundary: tuple[float, ...]) -> str:
    """What a base layer is, at a boundary."""
    limit = size_text(tuple(dict.fromkeys(boundary)))
    return "base layer: all of them" if limit == "inf" else f"base layer, RF ≤ {limit}"


def _legend_of_groups(kept: Mapping[str, str], opaque: bool) -> list[tuple[str, str]]:
    sheets = "".join(
        f'<rect class="sheet" x="{d}" y="{d}" width="24" height="11" rx="3" stroke="{macroblock_colour(0)}"/>'
        for d in (4, 2, 0)
    )
    rows = [(sheets, "folded; strip: its convs in order")]
    if kept:
        rows.append(('<path class="lock" d="M10,8 h8 v6 h-8 z m1.5,0 v-2 a2.5,2.5 0 0 1 5,0 v2"/>', "keeps its width"))
    if opaque:
        rows.append(
            ('<g class="opaque"><rect class="frame" width="28" height="14" rx="3"/></g>', "opaque, scaled as a whole")
        )
    return rows


def _gradient() -> str:
    return "".join(f'<rect {fill(i / 9)} x="{3 * i}" y="3" width="3.2" height="12"/>' for i in range(10))
