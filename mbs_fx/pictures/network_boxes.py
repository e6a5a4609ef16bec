"""Groups graph nodes into boxes: a layer with the normalisation and activation after it.

Semantics
- A *box* is a convolution, a linear layer or any other operation, together with what is done to its result alone:
  normalisation, activation, reshaping at the same size.
- A box lies in the macroblock of its convolution.  Others lie where their size says, between the macroblocks before
  and after them; what comes before the first convolution or after the last feature map lies in none.
- Where a box reads more than three others, those that it also sees through another input are not drawn as edges of
  their own (the concatenations of a DenseNet).
- ``base`` is Eq. 6 for the boundary of the plan, or of z without a plan; None where nothing sets a boundary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from mbs_fx.algorithm import base_layers
from mbs_fx.errors import MBSError
from mbs_fx.results.analysis import Analysis, Conv, Geometry, Operation, Segment
from mbs_fx.results.density import Density
from mbs_fx.results.plan import Plan
from mbs_fx.results.reconstruction import LayerError, Reconstruction

MOST_DRAWN = 3
"""Inputs of a box that are drawn whatever they are."""


@dataclass(frozen=True, slots=True)
class Box:
    """One box.  ``operations`` begin with the one that it is named after; ``width`` is (before, after).

    ``drawn`` are the inputs that are edges, the one at the end of the longest path first.
    """

    number: int
    operations: tuple[Operation, ...]
    inputs: tuple[int, ...]
    drawn: tuple[int, ...]
    macroblock: int | None
    geometry: Geometry | None
    conv: Conv | None = None
    width: tuple[int, int] | None = None
    p: float | None = None
    base: bool | None = None
    kept: str = ""
    segment: Segment | None = None
    error: LayerError | None = None

    @property
    def head(self) -> Operation:
        return self.operations[0]


@dataclass(frozen=True, slots=True)
class Scene:
    """A network as boxes, in topological order, with what is known of it as a whole."""

    analysis: Analysis
    density: Density | None
    plan: Plan | None
    boundary: tuple[float, ...] | None
    boxes: tuple[Box, ...]


def scene(
    analysis: Analysis,
    density: Density | None,
    plan: Plan | None,
    z: float | None,
    reconstruction: Reconstruction | None = None,
) -> Scene:
    """Boxes of an analysis, with densities, widths and held-back errors where they are given."""
    check(analysis, density, plan)
    boundary = boundary_of(analysis, plan, z)
    merged = _merged(analysis)
    number = {name: i for i, names in enumerate(merged) for name in names}
    by_name = {operation.name: operation for operation in analysis.operations}
    places = _macroblocks(analysis)
    segments = {name: s for m in analysis.macroblocks for s in m.segments for name in s.nodes}
    inputs = [
        tuple(dict.fromkeys(number[i] for n in names for i in by_name[n].inputs if number[i] != own))
        for own, names in enumerate(merged)
    ]
    drawn = _drawn(inputs)
    errors = {} if reconstruction is None else {layer.path: layer for layer in reconstruction.layers}
    boxes: list[Box] = []
    for i, names in enumerate(merged):
        head = by_name[names[0]]
        conv = analysis.by_name.get(head.name)
        place = analysis.geometry.get(head.name)
        box = Box(
            number=i,
            operations=tuple(by_name[n] for n in names),
            inputs=inputs[i],
            drawn=drawn[i],
            macroblock=places[head.name],
            geometry=place,
            conv=conv,
            width=None if conv is None else _width(conv, plan),
            p=density.p.get(head.name) if density is not None and conv is not None else None,
            base=on_base_side(place.receptive_field if place is not None else (), boundary),
            kept=analysis.kept.get(conv.target if conv is not None else head.path, ""),
            segment=segments.get(head.name),
            error=errors.get(conv.target if conv is not None else head.path),
        )
        boxes.append(box)
    return Scene(analysis, density, plan, boundary, tuple(boxes))


def check(analysis: Analysis, density: Density | None, plan: Plan | None) -> None:
    """Refuse a density or a plan of another network."""
    if not analysis.operations:
        raise MBSError("the analysis holds no operations to draw: it was not made by mbs_fx.analyze of this version")
    if density is not None:
        missing = next((c for c in analysis.convs if c.counted and c.name not in density.p), None)
        if missing is not None:
            raise MBSError(
                f"%{missing.name} ({missing.target}): the density has no entry for this convolution; it was measured "
                "on another graph"
            )
    if plan is not None:
        unknown = next((c for c in analysis.convs if c.target not in plan.widths), None)
        if unknown is not None:
            raise MBSError(f"{unknown.target}: the plan has no such convolution; it was made for another network")


def boundary_of(analysis: Analysis, plan: Plan | None, z: float | None) -> tuple[float, ...] | None:
    """What separates base from enhancement layers: the plan's boundary, without a plan that of z (Eq. 3)."""
    if plan is not None:
        return plan.boundary
    if z is None:
        return None
    if not z > 0:
        raise MBSError(f"z = {z}: the threshold is a positive multiple of the input size, for example 1.0")
    return tuple(analysis.boundaries([z])[0].tolist())


def on_base_side(field: tuple[float, ...], boundary: tuple[float, ...] | None) -> bool | None:
    """Eq. 6 for a receptive field, on the axes that it has; None where nothing decides."""
    axes = min(len(field), len(boundary or ()))
    if not axes or boundary is None:
        return None
    return bool(base_layers(np.array([field[-axes:]]), np.array([boundary[-axes:]]))[0, 0])


def _width(conv: Conv, plan: Plan | None) -> tuple[int, int]:
    if plan is None:
        return conv.width, conv.width
    return plan.before.get(conv.target, conv.width), plan.widths[conv.target]


def _merged(analysis: Analysis) -> list[list[str]]:
    """Names of the operations of every box, in topological order of their heads."""
    users: dict[str, int] = {}
    for operation in analysis.operations:
        for name in operation.inputs:
            users[name] = users.get(name, 0) + 1
    lists: list[list[str]] = []
    where: dict[str, list[str]] = {}
    kinds = {operation.name: operation for operation in analysis.operations}
    for operation in analysis.operations:
        source = kinds[operation.inputs[0]] if len(operation.inputs) == 1 else None
        if source is not None and users[source.name] == 1 and _joins(analysis, operation, source):
            where[operation.name] = where[source.name]
            where[source.name].append(operation.name)
        else:
            where[operation.name] = [operation.name]
            lists.append(where[operation.name])
    return lists


def _joins(analysis: Analysis, operation: Operation, source: Operation) -> bool:
    """Whether an operation is written into the box of what it reads."""
    own = operation.op in ("output", "placeholder") or operation.name in analysis.by_name
    if own or operation.kind.startswith("Linear") or source.op == "placeholder":
        return False
    here, there = analysis.geometry.get(operation.name), analysis.geometry.get(source.name)
    if here is None or there is None:
        return here is None and (there is None or prod(there.spatial_size) == 1)
    return (here.spatial_size, here.upsampled) == (there.spatial_size, there.upsampled)


def _macroblocks(analysis: Analysis) -> dict[str, int | None]:
    """The macroblock of every operation."""
    own = {conv.name: conv.macroblock for conv in analysis.convs}
    before: dict[str, int | None] = {}
    for operation in analysis.operations:
        found = [m for name in operation.inputs if (m := before[name]) is not None]
        before[operation.name] = own.get(operation.name, max(found, default=None))
    after: dict[str, int | None] = {operation.name: own.get(operation.name) for operation in analysis.operations}
    for operation in reversed(analysis.operations):
        mine = after[operation.name]
        for name in operation.inputs:
            found = [m for m in (mine, after[name]) if m is not None]
            after[name] = own.get(name, min(found, default=None))
    at = {(m.upsampled, m.spatial_size): m.index for m in analysis.macroblocks}
    return {o.name: own.get(o.name, _between(analysis, o, before, after, at)) for o in analysis.operations}


def _between(
    analysis: Analysis,
    operation: Operation,
    before: Mapping[str, int | None],
    after: Mapping[str, int | None],
    at: Mapping[tuple[bool, tuple[int, ...]], int],
) -> int | None:
    """Where an operation that is no convolution lies."""
    low, high = before[operation.name], after[operation.name]
    place = analysis.geometry.get(operation.name)
    sized = at.get((place.upsampled, place.spatial_size)) if place is not None else None
    if low is None or operation.op in ("placeholder", "output"):
        return None
    if high is None:
        return low if sized == low else None
    return sized if sized is not None and low <= sized <= high else low


def _drawn(inputs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Inputs without those that another input of the same box leads to, where there are many; longest path first."""
    depth: list[int] = []
    for own in inputs:
        depth.append(1 + max((depth[i] for i in own), default=0))
    above: dict[int, set[int]] = {}

    def ancestors(start: int) -> set[int]:
        if start not in above:
            seen: set[int] = set()
            waiting = list(inputs[start])
            while waiting:
                each = waiting.pop()
                if each not in seen:
                    seen.add(each)
                    waiting += inputs[each]
            above[start] = seen
        return above[start]

    def bare(own: tuple[int, ...]) -> tuple[int, ...]:
        if len(own) <= MOST_DRAWN:
            return own
        return tuple(i for i in own if not any(i in ancestors(j) for j in own if j != i))

    return [tuple(sorted(bare(own), key=lambda i: -depth[i])) for own in inputs]
