"""What a rule of `mbs_fx.geometry.rules.windows` sees of a node, and the helpers that rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from mbs_fx.geometry.axes import Atom, Axis, Track, bare, changed, channels, has_axis, tracked
from mbs_fx.shapes.shapes import TensorShape

FRESH = 16
"""Axes that are not the input's, such as time in (batch, time, features), are numbered from here."""


@dataclass(frozen=True, slots=True)
class Notes:
    """What a person should know about the result; nodes that mix all positions make one note together."""

    lines: list[str] = field(default_factory=list)
    mixing: list[str] = field(default_factory=list)

    def all(self) -> tuple[str, ...]:
        """The notes, for a result."""
        if not self.mixing:
            return tuple(self.lines)
        count = f"{len(self.mixing)} nodes mix" if len(self.mixing) > 1 else "1 node mixes"
        line = f"{count} all positions (attention or token mixing), the first is {self.mixing[0]}: "
        return (*self.lines, line + "taken as global context, which does not extend receptive fields")


@dataclass(frozen=True, slots=True)
class Call:
    """A node with the tracks of its operands and the shapes of everything."""

    gm: GraphModule
    node: Node
    module: nn.Module | None
    shape: tuple[int, ...]
    shapes: Mapping[str, Any]
    tracks: Mapping[Node, Any]
    notes: Notes

    def note(self, text: str) -> None:
        """Tell the person about this node."""
        name = getattr(self.node.target, "__name__", self.node.target)
        kind = f" ({type(self.module).__name__})" if self.module is not None else ""
        self.notes.lines.append(f"node {self.node.name}, {self.node.op} {name}{kind}: {text}")

    def raw(self, position: int, *names: str) -> Any:
        """An argument of a function or method as it stands in the graph."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return next((self.node.kwargs[name] for name in names if name in self.node.kwargs), None)

    def option(self, position: int, name: str, default: Any = None) -> Any:
        """A setting: an attribute of the module, or an argument of the function."""
        module = self.module
        value = self.known(self.raw(position, name)) if module is None else getattr(module, name, None)
        return default if value is None else value

    def known(self, value: Any) -> Any:
        """``value`` with the numbers that the graph computes filled in; tensors stay nodes."""
        if isinstance(value, Node):
            found = self.shapes[value.name]
            return value if isinstance(found, TensorShape) else found
        if isinstance(value, tuple | list):
            return tuple(map(self.known, value))
        if isinstance(value, slice):
            return slice(self.known(value.start), self.known(value.stop), self.known(value.step))
        return value

    def operands(self) -> list[Track]:
        """The tracks of all tensors that go in."""
        return [t for n in self.node.all_input_nodes if isinstance(t := self.tracks.get(n), Track)]

    def operand(self, value: Any) -> Track:
        """The track of one tensor that goes in."""
        track = self.tracks.get(value) if isinstance(value, Node) else None
        return track if isinstance(track, Track) else bare(self.shape_of(value))

    def sequence(self, value: Any) -> list[Track]:
        """The tracks of a list of tensors, written out or made by one node."""
        if isinstance(value, Node):
            tracks = self.tracks.get(value)
            return [track for track in tracks if track] if isinstance(tracks, tuple) else []
        return [self.operand(item) for item in value]

    def shape_of(self, value: Any) -> tuple[int, ...]:
        """The shape of one tensor that goes in; of a number, the empty one."""
        found = self.shapes[value.name] if isinstance(value, Node) else value
        return found.shape if isinstance(found, TensorShape) else ()

    @property
    def first(self) -> Node:
        """The node that is read first."""
        given = self.raw(0, "input", "x")
        return given if isinstance(given, Node) else self.node.all_input_nodes[0]

    @property
    def input(self) -> Track:
        """The track of what is read first."""
        return self.operand(self.first)


Rule = Callable[[Call], Any]
"""From a call to the track of its result, or a tuple of tracks; None where the rule does not apply."""

Step = Callable[[int, Axis, int], Axis]
"""What happens to an axis: (index among the axes of the operation, the axis, its size after) to the axis."""


def along(call: Call, x: Track, count: int, step: Step, channel: int | None = None) -> Track:
    """The last ``count`` dimensions changed by ``step``, and channels made anew in dimension ``channel``."""
    dims = range(len(x.dims) - count, len(x.dims))
    sizes = call.shape_of(call.first)
    still = {dim for i, dim in enumerate(dims) if step(i, Axis(sizes[dim]), call.shape[dim]) == Axis(sizes[dim])}
    x = placed(x, sizes, [dim for dim in dims if dim not in still or not x.dims[dim]])
    new: dict[int, Axis] = {}
    rest = {} if channel is None else {channel: call.shape[channel]}
    for i, dim in enumerate(dims):
        index = x.lone(dim)
        if index is not None:
            new[dim] = step(i, x.axes[index], call.shape[dim])
        elif dim in still:
            continue
        elif part := _stepped_part(x, dim, call.shape[dim], lambda axis, n, i=i: step(i, axis, n)):
            x = part
        else:
            if has_axis(x.dims[dim]):
                call.note("it slides over a dimension that is no axis of the map; the map ends here")
            rest[dim] = call.shape[dim]
    return changed(x, new, rest)


def placed(x: Track, shape: tuple[int, ...], dims: Iterable[int]) -> Track:
    """Dimensions that hold no axis given one, if that cannot be wrong.

    Where all axes were lost, as in a bottleneck of linear layers, they return.  Where none ever was context,
    the dimensions are new axes.  Otherwise it may be channels that the operation goes over.
    """
    free = [dim for dim in dims if not has_axis(x.dims[dim])]
    lost = x.lost()
    returning = len(lost) == len(x.axes) == len(free)
    if not free or not (returning or all(axis.context is None for axis in x.axes.values())):
        return x
    rows, axes = list(x.dims), dict(x.axes)
    for dim, index in zip(free, lost or [FRESH + dim for dim in free], strict=True):
        axes[index] = axes[index].resized(shape[dim]) if lost else Axis(shape[dim])
        rows[dim] = (Atom(index, shape[dim]),)
    return replace(x, dims=tuple(rows), axes=axes)


def _stepped_part(x: Track, dim: int, size: int, step: Callable[[Axis, int], Axis]) -> Track | None:
    """A window that slides within the pieces of an axis that was cut, and leaves their size."""
    row = x.dims[dim]
    if len(row) != 1 or not has_axis(row) or row[0].size != size:
        return None
    axis = x.axes[row[0].axis]
    stride = axis.stride * row[0].step
    after = step(replace(axis, stride=stride), size)
    if after.stride != stride:
        return None
    return replace(x, axes={**x.axes, row[0].axis: replace(axis, field=after.field)})


def fitted(x: Track, shape: tuple[int, ...]) -> Track:
    """The same dimensions at other sizes, pixel for pixel: padding, cropping, splitting."""
    new: dict[int, Axis] = {}
    rest: dict[int, int] = {}
    for dim, size in enumerate(shape):
        index = x.lone(dim)
        if index is not None:
            if x.axes[index].size != size:
                new[dim] = x.axes[index].cropped(size)
        elif prod(atom.size for atom in x.dims[dim]) != size:
            rest[dim] = size
    return changed(x, new, rest) if new or rest else x


def without(x: Track, dims: Iterable[int], keep: bool) -> Track:
    """Dimensions reduced to one pixel (``keep``) or taken away; their axes become context."""
    gone = set(dims)
    rows: list[tuple[Atom, ...]] = []
    axes = dict(x.axes)
    for dim, row in enumerate(x.dims):
        index = x.lone(dim)
        if dim not in gone:
            rows.append(row)
        elif keep and index is not None:
            axes[index] = axes[index].pooled()
            rows.append((Atom(index, 1),))
        elif keep:
            rows.append(channels(1))
    return tracked(rows, axes, x.upsampled)
