"""What a rule of the label pass may ask and record.

Semantics
- Parameters and buffers hold labels like any tensor, so they are sliced by the same labels.
- To *freeze* a node is to keep every label that enters it; what leaves it is `FROZEN`.
- Constants in the graph that count channels are remembered as `Edit`s and rewritten by counting what is kept.
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

from mbs_fx.channels.labels import FROZEN, Factor, Labels, along, shrinking_axis
from mbs_fx.channels.ties import Ties
from mbs_fx.shapes.shapes import TensorShape


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
class Unless:
    """A constant that an argument becomes where a single channel is left of one of the factors."""

    factors: Labels
    constant: Any


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

_FIRST = ("input", "tensors", "x", "self", "tensor")
"""Names of the first argument in torch."""


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

    def source(self, node: Node) -> Any:
        """What an operation works on: its first argument, given by position or by name."""
        if node.args:
            return node.args[0]
        named = (node.kwargs[name] for name in _FIRST if name in node.kwargs)
        return next(named, next(iter(node.all_input_nodes), None))

    def place(self, node: Node, index: int, name: str) -> tuple[str | int, ...]:
        """Where an argument stands, for `edit`."""
        return ("args", index) if len(node.args) > index else ("kwargs", name)

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
        """Labels of a tensor argument; `FROZEN` for what is not a tensor."""
        found = self.labels.get(arg.name) if isinstance(arg, Node) else None
        return found if isinstance(found, tuple) else FROZEN

    def each(self, arg: Any) -> list[tuple[Labels, tuple[int, ...]]]:
        """Labels and shape of every tensor in a list, written out or made by one node."""
        if not isinstance(arg, Node):
            return [(self.of(item), self.shape(item)) for item in arg]
        parts: Any = self.value(arg)
        held = self.labels[arg.name] or [FROZEN] * len(parts)
        return [(labels, part.shape) for labels, part in zip(held, parts, strict=True)]

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

    def records(self) -> int:
        """How much has been recorded so far."""
        return self.ties.records() + len(self.notes) + len(self.mixers)

    def entering(self, node: Node) -> list[Factor]:
        """Every factor that enters a node."""
        return [f for each in node.all_input_nodes for f in factors_in(self.labels.get(each.name))]

    def freeze(self, node: Node, why: str) -> Labels:
        """Freeze every label that enters a node; its outputs are `FROZEN`."""
        entering = [f for f in self.entering(node) if f.any()]
        if entering:
            self.refused.append(f"{self.where(node)}: {why}")
        for factor in entering:
            self.ties.freeze(factor, f"{self.where(node)}: {why}")
        return FROZEN

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


def factors_in(labels: Any) -> list[Factor]:
    """Every factor in the labels of one tensor or of several."""
    if isinstance(labels, np.ndarray):
        return [labels]
    if isinstance(labels, list | tuple):
        return [f for each in labels for f in factors_in(each)]
    if isinstance(labels, dict):
        return [f for each in labels.values() for f in factors_in(each)]
    return []


def constant_path(node: Node) -> str:
    """Where the tensor stands that a node returns whatever its input: read directly, or held by a module as value."""
    return str(node.target) if node.op == "get_attr" else f"{node.target}.value"


def attribute(gm: nn.Module, target: str) -> Any:
    """What a ``get_attr`` node reads."""
    held: Any = gm
    for name in target.split("."):
        held = getattr(held, name)
    return held
