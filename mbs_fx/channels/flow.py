"""The label pass: run a graph once on labels in place of numbers.

Semantics
- Layers that mix channels (convolutions, linear layers) read the labels on their input axis and make new ones;
  everything that moves data moves labels as it moves data; elementwise operations tie their operands.
- Parameters and buffers hold labels like any tensor, so they are sliced by the same labels.
- An operation without a rule *freezes* the labels that enter it, and what leaves it cannot be removed.
- Constants in the graph that count channels are remembered as `Edit`s and rewritten by counting what is kept.
- Rules live in tables (`mbs_fx.channels.rules`) keyed by module class or by operation name; see docs/rules.md.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule, Node

from mbs_fx.channels.labels import Factor, Labels, along, shrinking_axis, varying
from mbs_fx.channels.ties import Ties
from mbs_fx.nodes.shapes import TensorShape


@dataclass(frozen=True, slots=True, eq=False)
class Count:
    """A constant that counts channels: what is kept of a factor along its shrinking axis, plus ``offset``."""

    factor: Factor
    offset: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """A constant index into a channel axis: what it takes of the labels of that axis."""

    index: Factor
    source: Factor


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """Replace ``getattr(node, where[0])[where[1]]...`` by ``template``, every `Count` in it evaluated.

    ``("value", i)`` is entry i of the constant that a node returns (`constant_path`), ``("value",)`` the whole of it.
    """

    node: str
    where: tuple[str | int, ...]
    template: Any


@dataclass(slots=True)
class Layer:
    """What a module's attributes count, and the labels of its parameters and buffers along each axis."""

    attributes: dict[str, Any]
    tensors: dict[str, tuple[Factor | None, ...]]
    out: Factor


@dataclass(frozen=True, slots=True, eq=False)
class ConvFlow:
    """Labels of the output channels and input channels of one application of a convolution or linear layer."""

    out: Factor
    inp: Factor
    groups: int
    path: str

    @property
    def depthwise(self) -> bool:
        """Whether every input channel has filters of its own, so that the outputs are the inputs' channels."""
        return 1 < self.groups == len(self.inp)


Rule = Callable[["Flow", Node], Any]


@dataclass
class Flow:
    """Labels of every node of a graph, and everything recorded on the way."""

    root: weakref.ReferenceType[GraphModule]
    shapes: Mapping[str, Any]
    ties: Ties = field(default_factory=Ties)
    labels: dict[str, Any] = field(default_factory=dict[str, Any])
    layers: dict[str, Layer] = field(default_factory=dict[str, Layer])
    parameters: dict[str, tuple[Factor | None, ...]] = field(default_factory=dict[str, Any])
    mixers: dict[str, ConvFlow] = field(default_factory=dict[str, ConvFlow])
    edits: list[Edit] = field(default_factory=list[Edit])
    notes: dict[str, str] = field(default_factory=dict[str, str])
    concatenations: dict[str, list[Factor]] = field(default_factory=dict[str, list[Factor]])
    additions: dict[str, Factor] = field(default_factory=dict[str, Factor])
    counting: dict[str, Any] = field(default_factory=dict[str, Any])
    refused: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.modules = {path: m for path, m in self.gm.named_modules(remove_duplicate=False) if path}

    @property
    def gm(self) -> GraphModule:
        """The graph, which whoever uses this holds: what is remembered of a graph does not keep it alive."""
        held = self.root()
        assert held is not None
        return held

    # What a rule asks about its node.

    def arg(self, node: Node, index: int, name: str, default: Any = None) -> Any:
        """An argument by position or by name, as it stands in the graph."""
        return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)

    def value(self, arg: Any) -> Any:
        """An argument with nodes replaced by what they evaluate to: `TensorShape` or a Python value."""
        if isinstance(arg, Node):
            return self.shapes[arg.name]
        if isinstance(arg, list | tuple):
            return tuple(self.value(a) for a in arg)
        if isinstance(arg, slice):
            return slice(self.value(arg.start), self.value(arg.stop), self.value(arg.step))
        return arg

    def channel_count(self, arg: Any) -> int | None:
        """A number that can stand for channels: a constant, or one that was read off a channel axis."""
        if isinstance(arg, Node) and self.counting.get(arg.name) is None:
            return None
        value = self.value(arg)
        return value if isinstance(value, int) else None

    def of(self, arg: Any) -> Labels:
        """Labels of a tensor argument; nothing for what is not a tensor."""
        found = self.labels.get(arg.name) if isinstance(arg, Node) else None
        return found if isinstance(found, tuple) and all(isinstance(f, np.ndarray) for f in found) else ()

    def shape(self, arg: Any) -> tuple[int, ...]:
        """Shape of a tensor argument; () for numbers."""
        value = self.value(arg)
        return value.shape if isinstance(value, TensorShape) else ()

    def where(self, node: Node) -> str:
        """How messages name a node: its name, its operation, and the module it stands in."""
        stack = node.meta.get("nn_module_stack")
        inside = next(reversed(stack.values()))[0] if stack else ""
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
        return f"%{node.name} ({target})" + (f" in {inside}" if inside else "")

    # What a rule records.

    def freeze(self, node: Node, why: str) -> tuple[()]:
        """Freeze every label that enters a node; its outputs carry none."""
        entering = [f for each in node.all_input_nodes for f in _factors(self.labels.get(each.name)) if f.any()]
        if entering:
            self.refused.append(f"{self.where(node)}: {why}")
        for factor in entering:
            self.ties.freeze(factor, f"{self.where(node)}: {why}")
        return ()

    def note(self, node: Node, text: str) -> None:
        """Remember that a node computes statistics over channels, so that removal changes what it sees."""
        self.notes[node.name] = f"{self.where(node)}: {text}"

    def edit(self, node: Node, where: tuple[str | int, ...], template: Any) -> None:
        self.edits.append(Edit(node.name, where, template))

    def layer(
        self,
        path: str,
        out: Factor,
        attributes: dict[str, Any],
        tensors: dict[str, tuple[Factor | None, ...]],
    ) -> Layer:
        """Record a module once; where it is applied again its labels are tied to those of the first time."""
        known = self.layers.get(path)
        if known is None:
            known = self.layers[path] = Layer(attributes, tensors, out)
            return known
        for name, axes in tensors.items():
            for old, new in zip(known.tensors[name], axes, strict=True):
                if old is not None and new is not None and old is not new:
                    self.ties.tie(old, new, f"{path} is shared by layers that cannot be reduced")
        self.ties.tie(known.out, out, f"{path} is shared by layers that cannot be reduced")
        return known

    def parameter(self, target: str, tensor: torch.Tensor) -> Labels:
        """Labels of a parameter or buffer that the graph reads directly, one factor per axis."""
        rank = tensor.dim()
        if target not in self.parameters:
            kernel = rank >= 3 and tensor.shape[0] > 1
            axes = range(2 if kernel else rank)
            self.parameters[target] = tuple(
                self.ties.new(tensor.shape[a]) if a in axes and tensor.shape[a] > 1 else None for a in range(rank)
            )
        held = self.parameters[target]
        return tuple(f for a, v in enumerate(held) if v is not None for f in along(v, a, rank))


def count_of(factor: Factor | None, axis: int, constant: Any) -> Any:
    """The template of the number given for an axis: a `Count` where the axis shrinks, itself elsewhere."""
    if factor is None or not isinstance(constant, int) or constant < 2 or shrinking_axis(factor) != axis:
        return constant
    return Count(factor)


def _factors(labels: Any) -> list[Factor]:
    if isinstance(labels, np.ndarray):
        return [labels]
    if isinstance(labels, list | tuple):
        return [f for each in labels for f in _factors(each)]
    if isinstance(labels, dict):
        return [f for each in labels.values() for f in _factors(each)]
    return []


def run(gm: GraphModule, shapes: Mapping[str, Any]) -> Flow:
    """Propagate labels through a graph whose shapes are known."""
    from mbs_fx.channels.counted import counts_channels, fix_counts
    from mbs_fx.channels.rules import rule_for

    flow = Flow(weakref.ref(gm), shapes)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            flow.labels[node.name] = ()
        elif node.op == "get_attr":
            held = attribute(gm, node.target)
            flow.labels[node.name] = flow.parameter(node.target, held) if isinstance(held, torch.Tensor) else ()
        elif node.op == "output":
            for each in node.all_input_nodes:
                for factor in _factors(flow.labels[each.name]):
                    flow.ties.freeze(factor, "network output")
        elif not _has_tensor(shapes[node.name]):
            if shapes[node.name] is None and node.target is not torch._assert:
                flow.freeze(node, "writes into a tensor, or returns nothing")
            flow.labels[node.name] = ()
            flow.counting[node.name] = counts_channels(flow, node)
        else:
            rule = rule_for(flow, node)
            entering = any(_factors(flow.labels[n.name]) for n in node.all_input_nodes)
            if rule is not None:
                flow.labels[node.name] = rule(flow, node)
            else:
                flow.labels[node.name] = flow.freeze(node, "no rule for this operation") if entering else ()
            fix_counts(flow, node)
    _join_parameters(flow)
    _join_shared(flow)
    _keep_boxes(flow)
    return flow


def _join_parameters(flow: Flow) -> None:
    """A layer's tensor that the graph also reads by itself has one set of labels, the layer's."""
    for target, axes in flow.parameters.items():
        path, _, name = target.rpartition(".")
        layer = flow.layers.get(path)
        if layer is None or name not in layer.tensors:
            continue
        reason = f"{target} is also read where it cannot be reduced"
        for mine, held in zip(axes, layer.tensors[name], strict=True):
            if mine is not None and held is None:
                flow.ties.freeze(mine, reason)
            elif mine is not None and held is not None:
                flow.ties.tie(np.broadcast_to(mine, held.shape), held, reason)
        flow.parameters[target] = layer.tensors[name]


def _join_shared(flow: Flow) -> None:
    """A tensor that several layers hold is cut once: it has one set of labels."""
    first: dict[int, tuple[str, tuple[Factor | None, ...]]] = {}
    for path, layer in flow.layers.items():
        module = flow.modules[path]
        for name, axes in layer.tensors.items():
            held = module._parameters.get(name, module._buffers.get(name))
            known, others = first.setdefault(id(held), (path, axes))
            if known == path:
                continue
            reason = f"{path}.{name} is a tensor of {known}, too"
            for mine, other in zip(axes, others, strict=True):
                if mine is not None and other is not None and mine.shape == other.shape:
                    flow.ties.tie(mine, other, reason)
                    continue
                for each in (mine, other):
                    if each is not None:
                        flow.ties.freeze(each, reason)


def _keep_boxes(flow: Flow) -> None:
    """Factors along several axes stay boxes: what is left along the shrinking axis is balanced over the others."""
    seen: set[int] = set()
    for labels in flow.labels.values():
        for factor in _factors(labels):
            if len(varying(factor)) > 1 and id(factor) not in seen:
                seen.add(id(factor))
                axis = shrinking_axis(factor)
                parts = factor.size // factor.shape[axis]
                flow.ties.balance(np.moveaxis(factor, axis, -1).reshape(-1), parts)


def constant_path(node: Node) -> str:
    """Where the tensor stands that a node returns whatever its input: read directly, or held by a module as value."""
    return str(node.target) if node.op == "get_attr" else f"{node.target}.value"


def attribute(gm: nn.Module, target: str) -> Any:
    """What a ``get_attr`` node reads."""
    held: Any = gm
    for name in target.split("."):
        held = getattr(held, name)
    return held


def _has_tensor(value: Any) -> bool:
    if isinstance(value, TensorShape):
        return True
    if isinstance(value, list | tuple):
        return any(_has_tensor(v) for v in value)
    return isinstance(value, dict) and any(_has_tensor(v) for v in value.values())
