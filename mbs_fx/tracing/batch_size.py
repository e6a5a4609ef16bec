"""Freeing a graph from the batch size it was traced with.

Semantics
- The model is traced twice, with batch sizes B and B + 1.  The two graphs must be the same up to integer
  constants that are the same multiple of the batch size in both; these become that multiple of the first
  input's ``size(0)``.
- Where they differ otherwise the graph holds for its batch size only, and a note says where it does not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mbs_fx.tracing.example import Example


class SpecialisedError(Exception):
    """The graph depends on the batch size in a way that no multiple of it expresses."""


@dataclass(frozen=True)
class Images:
    """A constant that is ``factor`` times the batch size."""

    factor: int


def batch_of(example: Example) -> int | None:
    """Size 0 of the first tensor of the example, None where there is none."""
    return next((tensor.size(0) for tensor in example.tensors() if tensor.dim()), None)


def one_more(example: Example, batch: int) -> Example:
    """The example with its first image once more, in every input of the same batch size."""

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor[:1]]) if tensor.dim() and tensor.size(0) == batch else tensor

    return example.map(repeat)


def free_batch(graph: fx.Graph, twin: fx.Graph, batch: int) -> None:
    """Replace the constants that count images, ``twin`` being traced with ``batch + 1`` of them."""
    nodes, twins = list(graph.nodes), list(twin.nodes)
    for node, other in zip(nodes, twins, strict=False):
        if (node.op, str(node.target)) != (other.op, str(other.target)):
            raise SpecialisedError(f"{_named(node)} becomes {_named(other)}")
    if len(nodes) != len(twins):
        raise SpecialisedError(f"{len(nodes)} operations become {len(twins)}")
    found = [_merge((n.args, n.kwargs), (t.args, t.kwargs), batch, n) for n, t in zip(nodes, twins, strict=True)]
    inputs = [node for node in nodes if node.op == "placeholder"]
    made: dict[int, fx.Node] = {}

    def place(images: Images) -> fx.Node:
        factor = images.factor
        if factor not in made and factor == 1:
            with graph.inserting_after(inputs[-1]):
                made[1] = graph.call_method("size", (inputs[0], 0))
        elif factor not in made:
            with graph.inserting_after(place(Images(1))):
                made[factor] = graph.call_function(operator.mul, (made[1], factor))
        return made[factor]

    for node, (args, kwargs) in zip(nodes, found, strict=True):
        node.args, node.kwargs = _placed(args, place), _placed(kwargs, place)


def _named(node: fx.Node) -> str:
    """A node by its name and what it calls."""
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.op} {called} ({node.name})"


def _value(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list, Mapping)) else str(value)


def _merge(mine: Any, other: Any, batch: int, node: fx.Node) -> Any:
    """``mine`` with `Images` where the other batch size gives a larger number."""
    if isinstance(mine, fx.Node) and isinstance(other, fx.Node) and mine.name == other.name:
        return mine
    if type(mine) is int and type(other) is int and mine != other:
        factor = mine // batch
        if factor and mine == factor * batch and other == factor * (batch + 1):
            return Images(factor)
    elif type(mine) is type(other) and not isinstance(mine, fx.Node):
        return _merge_parts(mine, other, batch, node)
    raise SpecialisedError(f"in {_named(node)}, {_value(mine)} becomes {_value(other)}")


def _merge_parts(mine: Any, other: Any, batch: int, node: fx.Node) -> Any:
    def merged(pairs: Iterable[tuple[Any, Any]]) -> list[Any]:
        return [_merge(m, o, batch, node) for m, o in pairs]

    if isinstance(mine, slice):
        return slice(*merged([(mine.start, other.start), (mine.stop, other.stop), (mine.step, other.step)]))
    if isinstance(mine, Mapping) and list(mine) == list(other):
        return dict(zip(mine, merged(zip(mine.values(), other.values(), strict=True)), strict=True))
    if isinstance(mine, (tuple, list)) and len(mine) == len(other):
        items = merged(zip(mine, other, strict=True))
        return items if isinstance(mine, list) else tuple(items)
    if mine == other:
        return mine
    raise SpecialisedError(f"in {_named(node)}, {_value(mine)} becomes {_value(other)}")


def _placed(tree: Any, place: Callable[[Images], fx.Node]) -> Any:
    if isinstance(tree, Images):
        return place(tree)
    if isinstance(tree, (tuple, list)):
        items = [_placed(item, place) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    if isinstance(tree, dict):
        return {key: _placed(item, place) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(_placed(tree.start, place), _placed(tree.stop, place), _placed(tree.step, place))
    return tree
