"""What a rule of the geometry pass sees of a node, what it returns, and the helpers that rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, Protocol

from torch.fx import Node

from mbs_fx.geometry.axes import Atom, Axis, Track, bare, changed, channels, has_axis, tracked, whole
from mbs_fx.operations.call import Call, TensorShape

FRESH = 16
"""Axes that are not the input's, such as time in (batch, time, features), are numbered from here."""


@dataclass(frozen=True, slots=True, eq=False)
class GeometryCall(Call):
    """A call with the tracks of everything before it, by node."""

    tracks: Mapping[Node, Any]

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

    @property
    def first(self) -> Node:
        """The node that is read first."""
        given = self.source
        return given if isinstance(given, Node) else self.node.all_input_nodes[0]

    @property
    def input(self) -> Track:
        """The track of what is read first."""
        return self.operand(self.first)


@dataclass(frozen=True, slots=True)
class MapResult:
    """What a rule found out.

    ``track`` is that of the result, or of each of several results; a single track stands for all of them, and None for
    what the pass assumes of an unknown operation.  ``notes`` are for the person, about this node.  ``mixes`` holds
    where each position of the result depends on all positions.
    """

    track: Any
    notes: tuple[str, ...] = ()
    mixes: bool = False


class GeometryRule(Protocol):
    """Where the map of a result lies.

    A rule gets a `GeometryCall`, whose ``input`` is the `mbs_fx.geometry.axes.Track` of what is read first, and
    returns the track of the result (a tuple of them for several results), or `MapResult` where there is more to say.
    It returns None where the result has the map of its largest input.  It changes nothing.
    """

    def __call__(self, call: Any, /) -> Any: ...


Step = Callable[[int, Axis, int], Axis]
"""What happens to an axis: (index among the axes of the operation, the axis, its size after) to the axis."""


def along(
    call: GeometryCall,
    x: Track,
    count: int,
    step: Step,
    channel: int | None = None,
    resulting: tuple[int, ...] | None = None,
) -> MapResult:
    """The last ``count`` dimensions changed by ``step``, and channels made anew in dimension ``channel``.

    ``resulting`` is the shape afterwards, where that is not the shape of the node's result.
    """
    dims = range(len(x.dims) - count, len(x.dims))
    sizes, shape = call.shape_of(call.first), resulting or _tensor_shape(call)
    still = {dim for i, dim in enumerate(dims) if step(i, Axis(sizes[dim]), shape[dim]) == Axis(sizes[dim])}
    x = placed(x, sizes, [dim for dim in dims if dim not in still or not x.dims[dim]])
    new: dict[int, Axis] = {}
    rest = {} if channel is None else {channel: shape[channel]}
    notes: tuple[str, ...] = ()
    for i, dim in enumerate(dims):
        index = x.lone(dim)
        if index is not None:
            new[dim] = step(i, x.axes[index], shape[dim])
        elif dim in still:
            continue
        elif part := _stepped_part(x, dim, shape[dim], lambda axis, n, i=i: step(i, axis, n)):
            x = part
        else:
            if has_axis(x.dims[dim]):
                notes = ("it slides over a dimension that is no axis of the map; the map ends here",)
            rest[dim] = shape[dim]
    return MapResult(changed(x, new, rest), notes)


def _tensor_shape(call: GeometryCall) -> tuple[int, ...]:
    """The shape of a result, of the first where there are several."""
    value = call.returned
    return value.shape if isinstance(value, TensorShape) else value[0].shape


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


def shifted(x: Track, pixels: Mapping[int, int | Fraction]) -> Track:
    """The map moved along some of its axes, by pixels of its own."""
    moved = {i: replace(a, offset=whole(a.offset + n * a.stride)) for i, n in pixels.items() if (a := x.axes[i])}
    return replace(x, axes={**x.axes, **moved}) if moved else x


def displacement(start: int, length: int, size: int) -> int | Fraction:
    """How far the centre of ``length`` pixels from ``start`` on lies from the centre of all ``size`` pixels."""
    return whole(Fraction(2 * start + length - size, 2))


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
