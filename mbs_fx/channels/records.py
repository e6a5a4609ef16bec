"""What the label pass records about layers and constants, and what a rule returns.

Semantics
- Constants in the graph that count channels are remembered as `Edit`s and rewritten by counting what is kept.
- A rule returns labels, or a `LabelResult` where there is more to say; the label pass alone writes it down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from mbs_fx.channels.labels import Factor, Labels, shrinking_axis
from mbs_fx.operations.call import Place


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
class IfSingleChannel:
    """Replaces the argument when a factor shrinks to one channel."""

    factors: Labels
    constant: Any


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """Replace ``getattr(node, where[0])[where[1]]...`` by ``template``, every `Count` in it evaluated.

    ``("value", i)`` is entry i of the constant that a node returns (`constant_path`), ``("value",)`` the whole of it.
    """

    node: str
    where: Place
    template: Any


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True, eq=False)
class LabelResult:
    """What a rule of the label pass found out about one node.

    ``labels`` are those of the result: a tuple of factors, or a list of such tuples for several results.  ``edits`` are
    constants that count channels; ``notes`` say that statistics over channels change when channels go; ``layer`` is
    what a module counts and ``mixer`` the channels that a convolution or linear layer mixes.  ``added`` are channels
    that an addition binds, ``joined`` those that a concatenation puts side by side.  With ``refused``, a reason, every
    label that enters is frozen.
    """

    labels: Any
    edits: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = ()
    layer: Layer | None = None
    mixer: ConvFlow | None = None
    added: Factor | None = None
    joined: tuple[Factor, ...] | None = None
    refused: str = ""


def count_of(factor: Factor | None, axis: int, constant: Any) -> Any:
    """The template of the number given for an axis: a `Count` where the axis shrinks, itself elsewhere."""
    if factor is None or not isinstance(constant, int) or constant < 2 or shrinking_axis(factor) != axis:
        return constant
    return Count(factor)


def constant_path(node: Node) -> str:
    """Where the tensor stands that a node returns whatever its input: read directly, or held by a module as value."""
    return str(node.target) if node.op == "get_attr" else f"{node.target}.value"
