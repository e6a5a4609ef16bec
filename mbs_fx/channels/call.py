"""What a rule of the label pass sees of a node, and the contract that it follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch.fx import Node

from mbs_fx.channels.labels import FROZEN, Labels
from mbs_fx.channels.records import Edit, LabelResult, Layer
from mbs_fx.channels.ties import Ties
from mbs_fx.operations.call import Call, Place


@dataclass(frozen=True, slots=True, eq=False)
class ChannelCall(Call):
    """A call with the labels of everything before it.

    ``labels`` and ``counting`` are by node name, ``layers`` by path those of modules that were applied before.
    ``ties`` are shared by the whole graph: a rule records there which labels are the same channel.
    """

    labels: Mapping[str, Any]
    counting: Mapping[str, Any]
    layers: Mapping[str, Layer]
    ties: Ties

    def of(self, given: Any) -> Labels:
        """Labels of a tensor argument; `FROZEN` for what is not a tensor."""
        found = self.labels.get(given.name) if isinstance(given, Node) else None
        return found if isinstance(found, tuple) else FROZEN

    def each(self, given: Any) -> list[tuple[Labels, tuple[int, ...]]]:
        """Labels and shape of every tensor in a list, written out or made by one node."""
        if not isinstance(given, Node):
            return [(self.of(item), self.shape_of(item)) for item in given]
        parts: Any = self.values[given.name]
        held = self.labels[given.name] or [FROZEN] * len(parts)
        return [(labels, part.shape) for labels, part in zip(held, parts, strict=True)]

    def channel_count(self, given: Any) -> int | None:
        """A number that can stand for channels: a constant, or one that was read off a channel axis."""
        if isinstance(given, Node) and self.counting.get(given.name) is None:
            return None
        value = self.evaluated(given)
        return value if isinstance(value, int) else None

    @property
    def input(self) -> Labels:
        """Labels of what the operation works on."""
        return self.of(self.source)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what the operation works on."""
        return self.shape_of(self.source)

    @property
    def path(self) -> str:
        """The path of the module that is applied."""
        return str(self.node.target)

    def axis(self, name: str = "dim", default: int = 0) -> int:
        """An argument that names an axis of what the operation works on, counted from the front."""
        return int(self.value(name, default)) % len(self.input_shape)

    def edit(self, place: Place | str, template: Any) -> Edit:
        """A constant of this node, by parameter or place, that counts channels."""
        return Edit(self.node.name, self.place(place) if isinstance(place, str) else place, template)

    def freeze(self, why: str) -> LabelResult:
        """Everything that enters keeps its channels, for a reason that people read."""
        return LabelResult(FROZEN, refused=why)


class ChannelRule(Protocol):
    """Where the channels of a result come from.

    A rule gets a `ChannelCall` and returns the labels of the result: a tuple of factors for a tensor
    (`mbs_fx.channels.labels` says what they are), a list of such tuples for several results, or a `LabelResult` where
    there is more to say.  ``call.freeze(why)`` is the result where channels cannot be followed.  The one thing that a
    rule may write to is ``call.ties``; the rest of what it found out it returns.  Labels that do not fit the result
    are an error that names the rule; labels that enter, leave nowhere and are tied to nothing are frozen.
    """

    def __call__(self, call: Any, /) -> Any: ...
