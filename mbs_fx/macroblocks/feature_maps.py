"""What a graph holds in memory: parameters and buffers with their types, feature maps with their lifetimes.

Semantics
- A feature map is held from the node that makes it to the last node that reads it.  The network's inputs are
  feature maps; parameters are not.
- An operation that leaves receptive field and number of bytes as they are and mixes no channels (activation,
  normalisation, addition, reshaping) writes into the memory of an input that nobody reads afterwards.  Inference
  engines do so, too, by fusing or in place.
- The parts of a split and the entries of a tuple are views of the whole.
- Persistent buffers count, as they are saved with the weights; the others do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from mbs_fx.channels.flow import Flow
from mbs_fx.channels.labels import Factor, shrinking_axis
from mbs_fx.macroblocks.cells import Choices
from mbs_fx.results.analysis import FeatureMap, Geometry, Width
from mbs_fx.shapes.shapes import TensorShape, tensors_in


def saved_tensors(gm: GraphModule) -> dict[str, Tensor]:
    """Every parameter and persistent buffer that the graph uses, by path; shared tensors once."""
    used = {str(node.target) for node in gm.graph.nodes if node.op in ("call_module", "get_attr")}
    found: dict[int, tuple[str, Tensor]] = {}
    for path, tensor in gm.state_dict(keep_vars=True).items():
        parts = path.split(".")
        if isinstance(tensor, Tensor) and any(".".join(parts[:end]) in used for end in range(len(parts), 0, -1)):
            found.setdefault(id(tensor), (path, tensor))
    return dict(found.values())


def widths_of(flow: Flow, choices: Choices, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Width, ...]]:
    """The width of each axis of every tensor, by path."""
    labelled = {f"{p}.{n}": axes for p, layer in flow.layers.items() for n, axes in layer.tensors.items()}
    labelled |= flow.parameters
    result: dict[str, tuple[Width, ...]] = {}
    for path, tensor in tensors.items():
        axes = labelled.get(path) or (None,) * tensor.dim()
        result[path] = tuple(
            Width(int(size)) if axis is None else choices.width(axis)
            for axis, size in zip(axes, tensor.shape, strict=True)
        )
    return result


def feature_maps(flow: Flow, choices: Choices, geometry: Mapping[str, Geometry]) -> tuple[FeatureMap, ...]:
    """Memory held by feature maps while the graph runs, in the order in which it is first written."""
    order = {node: number for number, node in enumerate(flow.gm.graph.nodes)}
    held: list[FeatureMap] = []
    makers: list[Node] = []
    place: dict[Node, int] = {}
    for node, number in order.items():
        if node.op in ("get_attr", "output") or not tensors_in(flow.shapes[node.name]):
            continue
        inside = [place[source] for source in node.all_input_nodes if source in place]
        where = next((i for i in inside if _is_view(flow, node, makers[i])), None)
        if where is None:
            free = [i for i in inside if held[i].last == number]
            where = next((i for i in free if _overwrites(flow, node, makers[i], geometry)), None)
        if where is None:
            where = len(held)
            held.append(_map(flow, choices, node, number))
            makers.append(node)
        place[node] = where
        last = max((order[user] for user in node.users), default=number)
        held[where] = replace(held[where], last=max(held[where].last, last))
    return tuple(held)


def _is_view(flow: Flow, node: Node, maker: Node) -> bool:
    """Whether a node takes an entry or parts of what another made."""
    value, before = flow.shapes[node.name], flow.shapes[maker.name]
    entry = not isinstance(before, TensorShape)
    return entry or (not isinstance(value, TensorShape) and _size(value) == _size(before))


def _overwrites(flow: Flow, node: Node, maker: Node, geometry: Mapping[str, Geometry]) -> bool:
    """Whether a node's result may take the place of what another made."""
    here, there = geometry.get(node.name), geometry.get(maker.name)
    still = here is None or there is None or here.receptive_field == there.receptive_field
    same = _size(flow.shapes[node.name]) == _size(flow.shapes[maker.name])
    return same and still and node.name not in flow.mixers


def _map(flow: Flow, choices: Choices, node: Node, number: int) -> FeatureMap:
    value = flow.shapes[node.name]
    labels = flow.labels.get(node.name)
    if not isinstance(value, TensorShape):
        return FeatureMap(number, number, _size(value))
    factors = labels if isinstance(labels, tuple) else ()
    across = prod(factor.shape[shrinking_axis(factor)] for factor in factors)
    return FeatureMap(number, number, _size(value) // across, tuple(_width(choices, f) for f in factors))


def _width(choices: Choices, factor: Factor) -> Width:
    """The size of a factor along its shrinking axis."""
    parts = factor.size // factor.shape[shrinking_axis(factor)]
    return choices.width(factor.reshape(parts, -1) if parts > 1 else factor.reshape(-1))


def _size(value: Any) -> int:
    """Bytes of all tensors in a value."""
    return sum(prod(t.shape) * t.dtype.itemsize for t in tensors_in(value))
