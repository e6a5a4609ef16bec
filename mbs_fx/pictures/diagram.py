"""A picture before anything is placed: boxes and groups with their drawings, and what is shown at each folding.

Semantics
- An item is a box or a group.  A group is shown folded, as one drawing, or open, as a frame around its items.
- An edge runs between what is shown of its two ends; edges inside a folded group are not shown.
- A *boundary* edge leads from a base layer to an enhancement layer.  The *main* edge into a box ends the longest
  path to it: Graphviz keeps it straight, and bends the others around it.
- A column is a macroblock with the boxes around it that lie in none.  An edge between columns runs between their
  macroblocks as wholes, whatever is open in them.
- Groups open in this order: macroblocks, modules of modules, rows, and last the groups that hold boxes only.
  ``fold``: "macroblocks" opens nothing, "units" all modules of modules, "none" everything, and "auto" goes on while a
  screen shows everything at full size (`graphviz_layout.fitting`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, get_args

from mbs_fx.errors import MBSError
from mbs_fx.pictures.box_svg import Piece, box_piece
from mbs_fx.pictures.folding import Group, tree
from mbs_fx.pictures.group_svg import group_name, group_piece, macroblock_piece
from mbs_fx.pictures.network_boxes import Box, Scene
from mbs_fx.results.plan import Plan

Fold = Literal["auto", "macroblocks", "units", "none"]
AUTO = 150
"""Items that are tried on a screen at most."""
MOST = 1500
"""Items that a picture shows at most: what Graphviz lays out in a few seconds."""


@dataclass(frozen=True, slots=True)
class Item:
    """A box, or a group with ``children``; ``name`` is the title of the open group."""

    key: str
    piece: Piece
    name: str
    parent: str = ""
    depth: int = 0
    children: tuple[str, ...] = ()
    macroblock: int | None = None
    opaque: bool = False
    row: bool = False
    box: int | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """From the item ``tail`` to the item ``head``."""

    tail: str
    head: str
    main: bool = True
    boundary: bool = False


@dataclass(frozen=True)
class Diagram:
    """All items by key, parents before children, and all edges between boxes."""

    items: Mapping[str, Item]
    edges: tuple[Edge, ...]
    scene: Scene | None = None
    plan: Plan | None = None

    def roots(self) -> list[Item]:
        return [item for item in self.items.values() if not item.parent]

    @cached_property
    def columns(self) -> list[list[str]]:
        """Keys of the roots, column by column: boxes join the macroblock before them, the first ones the first."""
        found: list[list[str]] = []
        for item in self.roots():
            if found and (item.box is not None or all(self.items[key].box is not None for key in found[-1])):
                found[-1].append(item.key)
            else:
                found.append([item.key])
        return found

    def column_of(self, key: str) -> str:
        """The first key of the column that an item lies in."""
        return self._columns_by_item[key]

    @cached_property
    def _columns_by_item(self) -> dict[str, str]:
        found = {key: column[0] for column in self.columns for key in column}
        for item in self.items.values():
            if item.parent:
                found[item.key] = found[item.parent]
        return found

    def shown(self, opened: frozenset[str]) -> Iterator[Item]:
        """Items that are drawn as one piece when the groups in ``opened`` are open."""
        return (i for i in self.items.values() if self.visible(i, opened) and i.key not in opened)

    def visible(self, item: Item, opened: frozenset[str]) -> bool:
        """Whether all groups around an item are open."""
        while item.parent:
            if item.parent not in opened:
                return False
            item = self.items[item.parent]
        return True

    def drawn_edges(self, opened: frozenset[str]) -> list[Edge]:
        """Edges between shown items, each once."""
        stands_for = self._representatives(opened)
        found: dict[tuple[str, str], Edge] = {}
        for edge in self.edges:
            tail, head = self.column_of(edge.tail), self.column_of(edge.head)
            if tail == head:
                tail, head = stands_for[edge.tail], stands_for[edge.head]
            if tail != head:
                old = found.get((tail, head), edge)
                found[tail, head] = Edge(tail, head, old.main or edge.main, old.boundary or edge.boundary)
        return list(found.values())

    def _representatives(self, opened: frozenset[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for item in self.items.values():
            above = found.get(item.parent, "")
            closed_above = above and above not in opened
            found[item.key] = above if closed_above else item.key
        return found


def diagram(scene: Scene) -> Diagram:
    """The picture of a network."""
    items: dict[str, Item] = {}
    for child in tree(scene):
        _add(items, child, scene, "", "", 0)
    edges = tuple(_edge(scene, i, box) for box in scene.boxes for i in box.drawn)
    return Diagram(items, edges, scene, scene.plan)


def _edge(scene: Scene, tail: int, head: Box) -> Edge:
    boundary = scene.boxes[tail].base is True and head.base is False
    return Edge(f"b{tail}", f"b{head.number}", tail == head.drawn[0], boundary)


def plan_diagram(plan: Plan) -> Diagram:
    """The picture of a plan alone: its macroblocks, one after the other."""
    keys = [f"m{m.index}" for m in plan.macroblocks]
    rows = zip(keys, plan.macroblocks, strict=True)
    items = {key: Item(key, macroblock_piece(m), key, macroblock=m.index) for key, m in rows}
    return Diagram(items, tuple(Edge(a, b) for a, b in pairwise(keys)), None, plan)


def _add(items: dict[str, Item], child: Box | Group, scene: Scene, parent: str, prefix: str, depth: int) -> None:
    if isinstance(child, Box):
        key = f"b{child.number}"
        items[key] = Item(
            key, box_piece(child, prefix), "", parent, depth, macroblock=child.macroblock, box=child.number
        )
        return
    children = tuple(f"b{c.number}" if isinstance(c, Box) else c.key for c in child.children)
    items[child.key] = Item(
        child.key,
        group_piece(child, scene, prefix),
        group_name(child, scene, prefix),
        parent,
        depth,
        children,
        next(child.boxes()).macroblock,
        bool(child.segments),
        bool(child.row),
    )
    inner = child.path.split("@")[0] or prefix
    for each in child.children:
        _add(items, each, scene, child.key, inner, depth + 1)


def opened(diagram: Diagram, fold: Fold) -> frozenset[str]:
    """The groups that are open at the beginning, where ``fold`` is not "auto"."""
    if fold not in get_args(Fold):
        raise MBSError(f"fold={fold!r}: it is one of {', '.join(map(repr, get_args(Fold)))}")
    steps = [frozenset[str](), *stages(diagram)]
    found = {"macroblocks": steps[0], "units": steps[2]}.get(fold, steps[-1])
    shown = sum(1 for _ in diagram.shown(found))
    if shown > MOST:
        raise MBSError(
            f"fold={fold!r} would draw {shown:,} boxes, more than the {MOST:,} that can be laid out: fold by "
            '"units" or "macroblocks", or open parts of the .html'
        )
    return found


def stages(diagram: Diagram) -> list[frozenset[str]]:
    """What is open after each step of unfolding."""
    groups = [item for item in diagram.items.values() if item.children]
    parents = {item.parent for item in groups}
    outer = frozenset(item.key for item in groups if not item.parent)
    modules = outer | {item.key for item in groups if item.key in parents and not item.row}
    rows = modules | {item.key for item in groups if item.row}
    return [outer, modules, rows, frozenset(item.key for item in groups)]
