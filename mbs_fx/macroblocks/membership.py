"""Which macroblock a convolution belongs to (Eq. 2), by design unit.

Semantics (docs/semantics.md gives the evidence)
- A convolution inside a branching unit, a single-entry single-exit region of the graph (a residual block, an
  inverted residual, an inception block), belongs where the unit's *exit* is, provided the exit is not larger.
- A width group belongs where its channels are first *bound* by an addition or a concatenation; a convolution
  follows the width it makes, a depthwise convolution (which makes none) its own size.
- What has passed through upsampling forms macroblocks of its own, after those of the way down.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
from torch.fx import Node

from mbs_fx.channels.flow import Flow
from mbs_fx.channels.labels import Factor
from mbs_fx.results.analysis import Geometry

Place = tuple[bool, tuple[int, ...]]
"""(after upsampling, spatial size): what a macroblock is."""

_ENTRY, _EXIT = "entry of the graph", "exit of the graph"


def order(place: Place) -> tuple[bool, int, tuple[int, ...]]:
    """Macroblocks in the order of the pipeline: shrinking on the way down, growing after upsampling."""
    upsampled, size = place
    return (upsampled, prod(size), size) if upsampled else (upsampled, -prod(size), size)


def place_of(geometry: Geometry) -> Place:
    """The macroblock that a node lies in by its own size."""
    return geometry.upsampled, geometry.spatial_size


def unit_exits(flow: Flow) -> dict[str, str]:
    """The exit of the innermost branching unit around each node, by node name."""
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node(_ENTRY)
    for node in flow.gm.graph.nodes:
        if not _carries(flow, node):
            continue
        sources = [n.name for n in node.all_input_nodes if n.name in graph]
        if node.op == "placeholder":
            sources = [_ENTRY]
        name = _EXIT if node.op == "output" else node.name
        graph.add_edges_from((source, name) for source in sources)
    graph.add_edges_from((n, _EXIT) for n in list(graph) if n != _EXIT and not graph.out_degree(n))
    dominator = nx.immediate_dominators(graph, _ENTRY)
    after = nx.immediate_dominators(graph.reverse(copy=False), _EXIT)
    unit: dict[str, str] = {}
    for name in graph:
        above = dominator.get(name)
        if above is None or name in (_ENTRY, _EXIT) or above == name:
            continue
        inner: str | None = above if graph.out_degree(above) > 1 else unit.get(above)
        while inner is not None and after.get(inner) == name:
            inner = unit.get(inner)
        if inner is not None:
            unit[name] = inner
    return {name: after[fork] for name, fork in unit.items() if after.get(fork) not in (None, _EXIT)}


def _carries(flow: Flow, node: Node) -> bool:
    if node.op in ("output", "placeholder"):
        return True
    return node.op != "get_attr" and bool(flow.shape(node) or isinstance(flow.labels.get(node.name), list))


def own_place(name: str, geometry: Mapping[str, Geometry], exits: Mapping[str, str]) -> Place:
    """Rule 1: the size of the unit's exit, or the node's own where there is no unit around it."""
    own = geometry[name]
    outer = geometry.get(exits.get(name, ""))
    if outer is None or len(outer.spatial_size) != len(own.spatial_size):
        return place_of(own)
    inside_context = prod(own.spatial_size) == 1
    smaller = all(e <= s for e, s in zip(outer.spatial_size, own.spatial_size, strict=True))
    if inside_context or (smaller and outer.upsampled == own.upsampled):
        return place_of(outer)
    return place_of(own)


def bindings(flow: Flow, hard: Factor) -> dict[bytes, list[str]]:
    """Nodes that bind a set of channel classes by addition or concatenation, in topological order."""
    bound: dict[bytes, list[str]] = {}
    for node in flow.gm.graph.nodes:
        factors = [flow.additions[node.name]] if node.name in flow.additions else []
        factors += flow.concatenations.get(node.name, [])
        for factor in factors:
            bound.setdefault(class_key(factor, hard), []).append(node.name)
    return bound


def class_key(factor: Factor, hard: Factor) -> bytes:
    """The set of channel classes of a factor, as something to look up."""
    return np.unique(hard[factor.reshape(-1)]).tobytes()


def bound_place(nodes: list[str], geometry: Mapping[str, Geometry], upsampled: bool) -> Place | None:
    """Rule 2: the first binding on the same side of upsampling."""
    for name in nodes:
        found = geometry.get(name)
        if found is not None and found.upsampled == upsampled and prod(found.spatial_size) > 1:
            return place_of(found)
    return None
