"""Recounting the constants of a graph that count channels.

Semantics
- A number among the arguments of a node, or in a tensor that the graph holds, is replaced by what is left of the
  channels that it counts.
- A number that the graph computes from shapes stays computed where it comes out right by itself, so that a graph
  stays as general as it was; elsewhere it becomes a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from mbs_fx.channels.labels import factor_on, shrinking_axis
from mbs_fx.channels.records import constant_path
from mbs_fx.rewriting.selection import Keep
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.shapes.shapes import TensorShape


def counted_constants(gm: GraphModule, keep: Keep) -> dict[str, torch.Tensor]:
    """New values of the tensors of the graph that count or index channels; by path, only those that change."""
    targets = {node.name: constant_path(node) for node in gm.graph.nodes if node.op in ("get_attr", "call_module")}
    result: dict[str, torch.Tensor] = {}
    for edit in keep.facts.flow.edits:
        if edit.where[0] != "value":
            continue
        target = targets[edit.node]
        held: torch.Tensor = result[target] if target in result else attribute(gm, target)
        value = torch.as_tensor(keep.evaluate(edit.template), dtype=held.dtype, device=held.device)
        if len(edit.where) > 1:
            value = held.index_put((torch.tensor(edit.where[1]),), value)
        if value.shape != held.shape or not torch.equal(value, held):
            result[target] = value
    return result


def apply_edits(nodes: dict[str, Node], keep: Keep) -> None:
    """Put counted constants into the arguments of a copy's nodes, found by name."""
    numbers = _Numbers(keep)
    for edit in keep.facts.flow.edits:
        node = nodes[edit.node]
        kind, *rest = edit.where
        if kind == "value":
            continue
        value = keep.evaluate(edit.template)
        if value is None:
            continue
        held = _get(node.args if kind == "args" else node.kwargs, rest)
        if numbers.computed(held) and numbers.of(held) == value:
            continue
        if kind == "args":
            node.args = _put(node.args, rest, value)
        else:
            node.kwargs = _put(dict(node.kwargs), rest, value)


def counted_in(keep: Keep) -> dict[str, list[tuple[int, int]]]:
    """Constants of the model's code that count channels, before and after, by the path of the module they stand in."""
    flow = keep.facts.flow
    nodes = {node.name: node for node in flow.gm.graph.nodes}
    result: dict[str, list[tuple[int, int]]] = {}
    for edit in flow.edits:
        kind, *rest = edit.where
        if kind == "value":
            continue
        node = nodes[edit.node]
        stack = node.meta.get("nn_module_stack")
        inside = next(reversed(stack.values()))[0] if stack else ""
        held, value = _get(node.args if kind == "args" else node.kwargs, rest), keep.evaluate(edit.template)
        pairs = zip(held, value, strict=False) if isinstance(held, list | tuple) and value else [(held, value)]
        result.setdefault(inside, []).extend((a, b) for a, b in pairs if type(a) is int and type(b) is int)
    return result


class _Numbers:
    """What the numbers that a graph computes will be in the narrower network."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.nodes = {node.name: node for node in keep.facts.flow.gm.graph.nodes}
        self.known: dict[str, Any] = {}

    def computed(self, held: Any) -> bool:
        """Whether nested arguments hold a node."""
        if isinstance(held, slice):
            return any(isinstance(part, Node) for part in (held.start, held.stop, held.step))
        return any(map(self.computed, held)) if isinstance(held, list | tuple) else isinstance(held, Node)

    def of(self, held: Any) -> Any:
        """Nested arguments with every node replaced by its new number; None for a slice without a bound."""
        if isinstance(held, Node):
            if held.name not in self.known:
                self.known[held.name] = self._number(self.nodes[held.name])
            return self.known[held.name]
        if isinstance(held, slice):
            return slice(self.of(held.start), self.of(held.stop), self.of(held.step))
        if isinstance(held, list | tuple):
            return type(held)(self.of(each) for each in held)
        return held

    def _number(self, node: Node) -> Any:
        flow = self.keep.facts.flow
        value = flow.shapes[node.name]
        if node.name not in flow.counting:
            return value
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is not None and isinstance(flow.shapes[source.name], TensorShape):
            whole = self._shape(source)
            axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            if isinstance(value, tuple):
                return whole if len(value) == len(whole) else None
            return whole[axis] if isinstance(axis, int) else None
        args, kwargs = self.of(list(node.args)), {name: self.of(arg) for name, arg in node.kwargs.items()}
        try:
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs) if callable(node.target) else None
        except (TypeError, ValueError, IndexError, ZeroDivisionError, AssertionError):
            return None

    def _shape(self, source: Node) -> tuple[int, ...]:
        flow = self.keep.facts.flow
        labels = flow.of(source)
        sizes: list[int] = []
        for axis, size in enumerate(flow.shape(source)):
            factor = factor_on(labels, axis)
            shrinks = factor is not None and shrinking_axis(factor) == axis
            sizes.append(self.keep.size(factor) if factor is not None and shrinks else size)
        return tuple(sizes)


def _get(held: Any, where: list[Any]) -> Any:
    """What stands at a place of nested arguments."""
    for key in where:
        held = held.get(key) if isinstance(held, dict) else getattr(held, key) if isinstance(held, slice) else held[key]
    return held


def _put(held: Any, where: list[Any], value: Any) -> Any:
    """A copy of nested arguments with one place replaced."""
    if not where:
        return value
    if isinstance(held, slice):
        parts = {"start": held.start, "stop": held.stop, "step": held.step}
        return slice(*_put(parts, where, value).values())
    if isinstance(held, dict):
        return {**held, where[0]: _put(held.get(where[0]), where[1:], value)}
    items = list(held)
    items[where[0]] = _put(items[where[0]], where[1:], value)
    return tuple(items) if isinstance(held, tuple) else items
