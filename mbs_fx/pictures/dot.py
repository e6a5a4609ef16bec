"""A picture as DOT, for those who have Graphviz: boxes, clusters, and the same words and colours."""

from __future__ import annotations

import json

from mbs_fx.pictures.diagram import Diagram, Item
from mbs_fx.pictures.style import BASE, ENHANCEMENT, LIGHT, density_colour, macroblock_colour

_HEAD = (
    'graph [fontname="Helvetica", fontsize=12, labeljust=l, style="rounded,filled", fillcolor="#f6f8fa"];\n'
    'node [shape=box, style="rounded,filled", fontname="Helvetica", fontsize=10, fillcolor=white, color="#c9d1da"];\n'
    f'edge [color="{LIGHT["edge"]}", arrowsize=0.7];\n'
)


def dot_text(diagram: Diagram, opened: frozenset[str], title: str) -> str:
    """The picture as DOT text."""
    body = "".join(_statement(diagram, item, opened, 0) for item in diagram.roots())
    edges = "".join(
        f'  "{edge.tail}" -> "{edge.head}"' + (f' [color="{ENHANCEMENT}", penwidth=2]' if edge.boundary else "") + ";\n"
        for edge in diagram.drawn_edges(opened)
    )
    label = f"label={_quoted(title)}; labelloc=t;\n" if title else ""
    return f"digraph network {{\n{_HEAD}{label}{body}{edges}}}\n"


def _quoted(text: str) -> str:
    """A DOT string; a backslash would be an escape."""
    return json.dumps(text.replace("\\", "/"), ensure_ascii=False)


def _statement(diagram: Diagram, item: Item, opened: frozenset[str], depth: int) -> str:
    indent = "  " * (depth + 1)
    if item.key not in opened:
        lines = "\\l".join(_quoted(line)[1:-1] for line in item.piece.lines)
        return f'{indent}"{item.key}" [label="{lines}\\l"{_look(diagram, item)}];\n'
    inner = "".join(_statement(diagram, diagram.items[key], opened, depth + 1) for key in item.children)
    colour = LIGHT["opaque"] if item.opaque else _outline(item) if not item.parent else LIGHT["line"]
    style = ', style="dashed,rounded"' if item.opaque else ""
    return (
        f'{indent}subgraph "cluster_{item.key}" {{\n{indent}  graph [label={_quoted(item.name)}, color="{colour}"'
        f"{style}];\n{inner}{indent}}}\n"
    )


def _outline(item: Item) -> str:
    return LIGHT["line"] if item.macroblock is None else macroblock_colour(item.macroblock)


def _look(diagram: Diagram, item: Item) -> str:
    """Attributes of a node: density fills it, its side of the boundary outlines it."""
    if item.box is None or diagram.scene is None:
        return f', color="{_outline(item)}", penwidth=2, peripheries=2'
    box = diagram.scene.boxes[item.box]
    if box.conv is None:
        return f', fillcolor="{LIGHT["plain"]}"'
    found = "" if box.p is None else f', fillcolor="{density_colour(box.p)}"'
    if box.base is not None:
        found += f', color="{BASE if box.base else ENHANCEMENT}", penwidth={1.2 if box.base else 2}'
    return found
