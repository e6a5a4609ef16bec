"""How a picture folds: boxes in modules, alike modules in rows, everything in its macroblock.

Semantics
- The outermost groups are the macroblocks.  Inside, groups are the modules of the model, as deep as they help: a
  module with one child is that child, and a module of few boxes has no groups inside.
- Three or more neighbours with the same layers and widths form a *row*, "× 199": a group of its own without a path,
  or the module that holds nothing else.
- A group is *opaque* where it is the innermost one around an opaque segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from mbs_fx.pictures.network_boxes import Box, Scene
from mbs_fx.results.analysis import Segment

FEW = 8
"""A module of no more boxes than this has no groups inside."""
ALIKE = 3
"""Neighbours with the same layers that make a row."""


@dataclass(frozen=True)
class Group:
    """Boxes that fold into one.  ``path`` is a module path, empty where the group is no module of the model."""

    key: str
    path: str
    children: tuple[Box | Group, ...]
    macroblock: int | None = None
    row: int = 0
    segments: tuple[Segment, ...] = ()

    def boxes(self) -> Iterator[Box]:
        """All boxes inside, in order."""
        for child in self.children:
            if isinstance(child, Group):
                yield from child.boxes()
            else:
                yield child


def tree(scene: Scene) -> tuple[Box | Group, ...]:
    """The outermost boxes and groups of a picture, in topological order."""
    outside = [box for box in scene.boxes if box.macroblock is None]
    items: list[Box | Group] = list(outside)
    for macroblock in scene.analysis.macroblocks:
        inside = [box for box in scene.boxes if box.macroblock == macroblock.index]
        if inside:
            items.append(_macroblock(macroblock.index, inside, macroblock.segments))
    return tuple(sorted(items, key=_first))


def _first(item: Box | Group) -> int:
    return item.number if isinstance(item, Box) else min(box.number for box in item.boxes())


def _macroblock(index: int, inside: Sequence[Box], segments: Iterable[Segment]) -> Group:
    key = f"m{index}"
    whole = Group(key, "", tuple(inside) if len(inside) <= FEW else _children(inside, 0, key))
    while len(whole.children) == 1 and isinstance(only := whole.children[0], Group):
        whole = replace(only, key=key)
    whole = replace(_with_rows(whole), macroblock=index)
    for segment in segments:
        whole = _marked(whole, segment)
    return whole


def _children(boxes: Sequence[Box], depth: int, key: str) -> tuple[Box | Group, ...]:
    """Boxes by the module at ``depth`` of their scope, modules that do not help dissolved."""
    by_scope: dict[str, list[Box]] = {}
    items: list[Box | str] = []
    for box in boxes:
        scope = box.head.scope
        if len(scope) <= depth:
            items.append(box)
        else:
            if scope[depth] not in by_scope:
                items.append(scope[depth])
            by_scope.setdefault(scope[depth], []).append(box)
    children = [_module(name, by_scope[name], depth, key) if isinstance(name, str) else (name,) for name in items]
    return tuple(child for found in children for child in found)


def _module(name: str, boxes: list[Box], depth: int, key: str) -> tuple[Box | Group, ...]:
    """A module as one group, or as what is in it where a group would hold one thing only."""
    own = f"{key}/{name}"
    inside: tuple[Box | Group, ...] = tuple(boxes) if len(boxes) <= FEW else _children(boxes, depth + 1, own)
    if len(inside) == 1:
        return inside
    return (_with_rows(Group(own, name, inside)),)


def _with_rows(group: Group) -> Group:
    """A group with neighbours that have the same layers gathered in rows."""
    if group.row or any(isinstance(child, Group) and child.row and not child.path for child in group.children):
        return group
    found: list[Box | Group] = []
    for signature, run in groupby(group.children, _signature):
        alike = tuple(run)
        if signature is None or len(alike) < ALIKE:
            found += alike
        elif len(alike) == len(group.children):
            return replace(group, row=len(alike))
        else:
            found.append(Group(f"{group.key}/{_first(alike[0])}+{len(alike)}", "", alike, row=len(alike)))
    return replace(group, children=tuple(found))


def _signature(item: Box | Group) -> tuple[object, ...] | None:
    """What two groups must share to be alike; None for a single box."""
    if isinstance(item, Box):
        return None
    return tuple((box.head.kind, box.head.kernel, box.head.step, box.width, box.kept) for box in item.boxes())


def _marked(group: Group, segment: Segment) -> Group:
    """The innermost group around a segment, with the segment noted."""
    names = set(segment.nodes)
    for position, child in enumerate(group.children):
        if isinstance(child, Group) and names <= {box.head.name for box in child.boxes()}:
            marked = (*group.children[:position], _marked(child, segment), *group.children[position + 1 :])
            return replace(group, children=marked)
    return replace(group, segments=(*group.segments, segment))
