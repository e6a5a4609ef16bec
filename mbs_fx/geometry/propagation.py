"""Where every feature map of a graph lies on the input: size, stride and receptive field per spatial axis.

Semantics
- A placeholder of shape (N, C, *spatial) starts with stride 1 and receptive field 1; sizes come from
  `mbs_fx.shapes.shapes.infer`.  Where the graph itself brings an input into that form (channels last, no channels,
  frames), `mbs_fx.geometry.images` finds its spatial axes.  What each kind of operation does is written in
  `mbs_fx.geometry.rules.windows` (windows and changes of scale), `mbs_fx.geometry.rules.layout` and
  `mbs_fx.geometry.rules.contractions`.
- Everything else keeps the largest of its inputs.
- Receptive fields are nominal: the longest path, not clipped to the input.  A merge takes the largest.
- A value pooled to one pixel is global context: it keeps the stride and receptive field that it had, and
  nothing it passes through extends them; where it is broadcast back, the map decides.
- ``upsampled`` holds from the first operation that enlarges a map, broadcasting of context excepted.
- Nothing is silent: what is not understood and changes a spatial size follows the ratio of sizes, and a note
  names the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.geometry.axes import Atom, Axis, Track, bare, changed, channels, has_axis, merged, tracked
from mbs_fx.geometry.call import GeometryCall, MapResult, fitted
from mbs_fx.geometry.images import Image, Starts, find_image
from mbs_fx.geometry.rules.windows import WINDOWS
from mbs_fx.operations.call import TensorShape, holds_tensor
from mbs_fx.operations.register import geometry
from mbs_fx.operations.resolve import of_module, of_target
from mbs_fx.results.analysis import Geometry
from mbs_fx.shapes.convolutions import ConvSpec, any_conv, conv_kind, flops

__all__ = ["ConvSpec", "Image", "Located", "conv_kind", "flops", "image_of", "propagate"]


@dataclass(slots=True)
class Notes:
    """What a person should know about the result; nodes that mix all positions make one note together."""

    lines: list[str] = field(default_factory=list[str])
    mixing: list[str] = field(default_factory=list[str])

    def take(self, call: GeometryCall, found: MapResult) -> None:
        """Add what a rule found out about its node."""
        if not found.notes and not found.mixes:
            return
        name = getattr(call.node.target, "__name__", call.node.target)
        kind = f" ({type(call.module).__name__})" if call.module is not None else ""
        self.lines += [f"node {call.node.name}, {call.node.op} {name}{kind}: {text}" for text in found.notes]
        self.mixing += [call.node.name] if found.mixes else []

    def all(self) -> tuple[str, ...]:
        """The notes, for a result."""
        if not self.mixing:
            return tuple(self.lines)
        count = f"{len(self.mixing)} nodes mix" if len(self.mixing) > 1 else "1 node mixes"
        line = f"{count} all positions (attention or token mixing), the first is {self.mixing[0]}: "
        return (*self.lines, line + "taken as global context, which does not extend receptive fields")


@dataclass(frozen=True, slots=True)
class Located:
    """A feature map: its geometry, and the dimensions that its spatial axes have in the tensor.

    ``axes`` is empty for a convolution that sees no map: over the channels of a global context, or over
    windows that were cut from a map.  Its geometry is that of the map it belongs to.
    """

    geometry: Geometry
    axes: tuple[int, ...]


def propagate(
    gm: GraphModule, shapes: Mapping[str, Any], image: Image | None = None
) -> tuple[dict[str, Located], tuple[str, ...]]:
    """The feature maps of a graph by node name, and notes on what was not understood.  ``image``: of `image_of`."""
    found: dict[str, Located] = {}
    known: dict[int, Located | None] = {}
    notes = Notes()
    image = image_of(gm, shapes) if image is None else image
    for call, track in _walk(gm, shapes, notes, image.starts):
        node, first = call.node, _first(track)
        if first is None:
            continue
        if id(first) not in known:
            known[id(first)] = _located(first)
        located = known[id(first)]
        if located is None and any_conv(gm, node, shapes):
            located = Located(_geometry(first, sorted(first.axes)), ())
        if located is not None:
            found[node.name] = located
    return found, notes.all()


def image_of(gm: GraphModule, shapes: Mapping[str, Any]) -> Image:
    """The input over which the convolutions of a graph slide, and its spatial axes."""
    return find_image(gm, shapes, lambda starts: _walk(gm, shapes, Notes(), starts))


def _walk(
    gm: GraphModule, shapes: Mapping[str, Any], notes: Notes, starts: Starts
) -> Iterator[tuple[GeometryCall, Any]]:
    """Every node with its track; ``starts`` are the spatial axes of what enters."""
    tracks: dict[Node, Any] = {}
    modules = dict(gm.named_modules(remove_duplicate=False))
    for node in gm.graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        value = shapes[node.name]
        operation = of_target(node) if module is None else of_module(type(module))
        call = GeometryCall(gm, node, operation, module, shapes, tracks)
        if node.op == "placeholder":
            axes = iter(starts[node.name]) if node.name in starts else iter(())
            tracks[node] = _each(value, lambda shape, axes=axes: _start(shape, next(axes)))
        else:
            found = _found(call, value)
            notes.take(call, found)
            tracks[node] = found.track
        yield call, tracks[node]


def _first(value: Any) -> Track | None:
    """A track, or the first one of several results."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((track for item in value if (track := _first(item))), None)
    return value


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of a tensor, or of the first of several results."""
    if isinstance(value, tuple | list) and value:
        return _shape(value[0])
    return value.shape if isinstance(value, TensorShape) else ()


def _located(track: Track) -> Located | None:
    places = track.located()
    if not places:
        return None
    indices = sorted(places)
    return Located(_geometry(track, indices), tuple(places[index] for index in indices))


def _geometry(track: Track, indices: list[int]) -> Geometry:
    axes = [track.axes[index] for index in indices]
    return Geometry(
        spatial_size=tuple(int(axis.size) for axis in axes),
        stride=tuple(float(axis.stride) for axis in axes),
        receptive_field=tuple(float(axis.field) for axis in axes),
        upsampled=bool(track.upsampled),
    )


def _found(call: GeometryCall, value: Any) -> MapResult:
    """What is known of a node's result; a rule that fails ends the map, with a note."""
    if call.node.op in ("output", "get_attr") or not holds_tensor(value):
        return MapResult(None)
    try:
        return _by_rule(call, value)
    except Exception as error:
        if call.operation is not None and call.operation in geometry.rules and call.operation.added:
            raise MBSError(f"{call.where}: its geometry rule fails: {type(error).__name__}: {error}") from error
        return _all_ended(call, value)


def _by_rule(call: GeometryCall, value: Any) -> MapResult:
    if _empty(value):
        return replace(_all_ended(call, value), notes=())
    rule = geometry.of(call.operation)
    result = rule(call) if rule is not None and call.node.all_input_nodes else None
    found = result if isinstance(result, MapResult) else MapResult(result)
    track = found.track
    if track is None:
        return _default(call, value)
    if isinstance(track, Track) and not isinstance(value, TensorShape):
        return replace(found, track=(track,) * len(value))
    if isinstance(track, Track) and not track.fills(value.shape):
        ended = _ended(call, value.shape)
        return replace(found, track=ended, notes=(*found.notes, "its layout could not be followed; the map ends here"))
    return found


def _empty(value: Any) -> bool:
    """Whether one of the tensors has no elements."""
    if isinstance(value, TensorShape):
        return 0 in value.shape
    return isinstance(value, tuple | list) and any(map(_empty, value))


def _all_ended(call: GeometryCall, value: Any) -> MapResult:
    """Results in which no pixel can be followed; a note says so where one entered."""
    lost = any(has_axis(row) for operand in call.operands() for row in operand.dims)
    notes = ("its pixels cannot be followed; the map ends here",) if lost else ()
    return MapResult(_each(value, lambda shape: _ended(call, shape)), notes)


def _ended(call: GeometryCall, shape: tuple[int, ...]) -> Track:
    """A tensor in which nothing lies where it did; what was known of axes is context."""
    widest = max(call.operands(), key=lambda x: len(x.axes), default=bare(shape))
    return tracked(map(channels, shape), widest.axes, widest.upsampled)


def _each(value: Any, make: Callable[[tuple[int, ...]], Any]) -> Any:
    """``make`` applied to the shape of every tensor in a value."""
    if isinstance(value, TensorShape):
        return make(value.shape)
    if isinstance(value, tuple | list):
        return tuple(_each(item, make) for item in value)
    return {key: _each(item, make) for key, item in value.items()} if isinstance(value, dict) else None


def _start(shape: tuple[int, ...], axes: tuple[int, ...]) -> Track:
    """An input with the given spatial axes."""
    places = {dim: index for index, dim in enumerate(axes)}
    rows = [(Atom(places[dim], size),) if dim in places else channels(size) for dim, size in enumerate(shape)]
    return Track(tuple(rows), {index: Axis(shape[dim]) for dim, index in places.items()})


def _default(call: GeometryCall, value: Any) -> MapResult:
    """What has no rule keeps the largest of its inputs; a note says where sizes change."""
    notes: tuple[str, ...] = ()
    if call.module is not None and _hides_windows(call.module):
        notes = ("it was not traced into; what its layers do inside does not count",)
    operands = call.operands()
    if not operands:
        return MapResult(None, notes)
    told: list[str] = []
    track = _each(value, lambda shape: _kept(call, operands, shape, told))
    return MapResult(track, (*notes, *told))


def _kept(call: GeometryCall, operands: list[Track], shape: tuple[int, ...], notes: list[str]) -> Track:
    alone = len(operands) == 1 and call.shape_of(call.first) == shape
    if alone and len(operands[0].dims) == len(shape):
        return operands[0]
    same = [_resized(x, shape, len(operands), notes) if len(x.dims) == len(shape) else x for x in operands]
    fitting = [x for x in same if len(x.dims) <= len(shape)]
    if any(len(x.dims) == len(shape) for x in fitting):
        return fitted(fitting[0], shape) if len(fitting) == 1 else merged(fitting, shape)
    widest = max(operands, key=lambda x: len(x.axes))
    if widest.located():
        notes.append("it is not known, and changes the number of dimensions; the map ends here")
    return tracked(map(channels, shape), widest.axes, widest.upsampled)


def _resized(x: Track, shape: tuple[int, ...], operands: int, notes: list[str]) -> Track:
    """``x`` at other sizes; where it is broadcast against another operand, as it is."""
    new: dict[int, Axis] = {}
    for dim, size in enumerate(shape):
        index = x.lone(dim)
        axis = Axis(size) if index is None else x.axes[index]
        if axis.size != size and not (axis.size == 1 and operands > 1):
            new[dim] = axis.pooled() if size == 1 else axis.resized(size)
    olds = [x.axes[x.dims[dim][0].axis] for dim in new]
    if any(axis.context is None for axis in olds):
        sizes = f"from {tuple(a.size for a in olds)} to {tuple(a.size for a in new.values())}"
        notes.append(f"it is not known, and changes spatial sizes {sizes}; strides follow the sizes")
    return changed(x, new) if new else x


def _hides_windows(module: nn.Module) -> bool:
    """Whether a leaf without a rule holds layers that extend receptive fields or change strides."""
    kinds = {of_module(type(inner)) for inner in module.modules()}
    return any(kind is not None and kind in WINDOWS for kind in kinds)
