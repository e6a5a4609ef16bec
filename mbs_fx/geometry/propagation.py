"""Where every feature map of a graph lies on the input: size, stride and receptive field per spatial axis.

Semantics
- A placeholder of shape (N, C, *spatial) starts with stride 1 and receptive field 1; sizes come from
  `mbs_fx.shapes.shapes.infer`.  Where the graph itself brings its first input into that form (channels last, no
  channels, frames), the spatial axes are those over which its first convolution slides, and those that it moves
  into the batch.  What each kind of operation does is written in `mbs_fx.geometry.rules.windows` (windows
  and changes of scale), `mbs_fx.geometry.rules.layout` and `mbs_fx.geometry.rules.contractions`.
- Everything else keeps the largest of its inputs.
- Receptive fields are nominal: the longest path, not clipped to the input.  A merge takes the largest.
- A value pooled to one pixel is global context: it keeps the stride and receptive field that it had, and
  nothing it passes through extends them; where it is broadcast back, the map decides.
- ``upsampled`` holds from the first operation that enlarges a map, broadcasting of context excepted.
- Nothing is silent: what is not understood and changes a spatial size follows the ratio of sizes, and a note
  names the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.geometry.axes import CHANNELS, Atom, Axis, Track, bare, changed, channels, has_axis, merged, tracked
from mbs_fx.geometry.calls import Call, Notes, Rule, fitted
from mbs_fx.geometry.rules import contractions, layout, windows
from mbs_fx.results.analysis import Geometry
from mbs_fx.shapes.convolutions import ConvSpec, any_conv, conv_kind, flops, is_torch
from mbs_fx.shapes.shapes import TensorShape

__all__ = ["ConvSpec", "Located", "conv_kind", "flops", "propagate"]

_MODULES = windows.MODULES | layout.MODULES | contractions.MODULES
_NAMES = windows.NAMES | layout.NAMES | contractions.NAMES


@dataclass(frozen=True, slots=True)
class Located:
    """A feature map: its geometry, and the dimensions that its spatial axes have in the tensor.

    ``axes`` is empty for a convolution that sees no map: over the channels of a global context, or over
    windows that were cut from a map.  Its geometry is that of the map it belongs to.
    """

    geometry: Geometry
    axes: tuple[int, ...]


def propagate(gm: GraphModule, shapes: Mapping[str, Any]) -> tuple[dict[str, Located], tuple[str, ...]]:
    """The feature maps of a graph by node name, and notes on what was not understood."""
    found: dict[str, Located] = {}
    known: dict[int, Located | None] = {}
    notes = Notes()
    for call, track in _walk(gm, shapes, notes, input_axes(gm, shapes)):
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


def input_axes(gm: GraphModule, shapes: Mapping[str, Any]) -> tuple[int, ...]:
    """The dimensions of the first input that are spatial axes."""
    start = next((node for node in gm.graph.nodes if node.op == "placeholder"), None)
    shape = _shape(shapes[start.name]) if start is not None else ()
    plain = tuple(range(2, len(shape)))
    for call, _ in _walk(gm, shapes, Notes(), tuple(range(len(shape)))):
        spec = any_conv(gm, call.node, shapes)
        x = call.operand(call.first) if spec is not None else None
        if spec is None or x is None or not any(map(has_axis, x.dims)):
            continue
        held = [{atom.axis for atom in row} - {CHANNELS} for row in x.dims]
        slid = set[int]().union(*held[-spec.dims :])
        mixed = any(len(each) != 1 for each in held[-spec.dims :])
        given = any(isinstance(a, Node) and a.op == "placeholder" for a in call.node.args[1:2])  # the weight
        if given or mixed or len(held) < spec.dims + 2 or len(slid) < spec.dims:
            return plain
        if 0 in slid | held[1]:
            raise MBSError(
                f"{call.node.name}: the first axis of the input {shape} is no batch here, so that the graph takes one "
                "image at a time: let the model take batches, without an unsqueeze of its own"
            )
        return tuple(sorted(slid | (held[0] - {0})))
    return plain


def _walk(
    gm: GraphModule, shapes: Mapping[str, Any], notes: Notes, axes: tuple[int, ...]
) -> Iterator[tuple[Call, Any]]:
    """Every node with its track; ``axes`` are the spatial ones among the dimensions of the first input."""
    tracks: dict[Node, Any] = {}
    modules = dict(gm.named_modules(remove_duplicate=False))
    for node in gm.graph.nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        value = shapes[node.name]
        call = Call(gm, node, module, _shape(value), shapes, tracks, notes)
        if node.op == "placeholder":
            main = not tracks and isinstance(value, TensorShape)
            tracks[node] = _each(value, partial(_start, axes=axes if main else None))
        else:
            tracks[node] = _track(call, value)
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
        spatial_size=tuple(axis.size for axis in axes),
        stride=tuple(float(axis.stride) for axis in axes),
        receptive_field=tuple(float(axis.field) for axis in axes),
        upsampled=track.upsampled,
    )


def _track(call: Call, value: Any) -> Any:
    if call.node.op in ("output", "get_attr") or not _has_tensor(value):
        return None
    rule = _rule(call)
    result = rule(call) if rule and call.node.all_input_nodes else None
    if isinstance(result, Track) and isinstance(value, TensorShape) and not result.fills(value.shape):
        call.note("its layout could not be followed; the map ends here")
        return tracked(map(channels, value.shape), result.axes, result.upsampled)
    return _default(call, value) if result is None else result


def _each(value: Any, make: Any) -> Any:
    """``make`` applied to the shape of every tensor in a value."""
    if isinstance(value, TensorShape):
        return make(value.shape)
    if isinstance(value, tuple | list):
        return tuple(_each(item, make) for item in value)
    return {key: _each(item, make) for key, item in value.items()} if isinstance(value, dict) else None


def _has_tensor(value: Any) -> bool:
    return isinstance(value, TensorShape) or _first(_each(value, bare)) is not None


def _start(shape: tuple[int, ...], axes: tuple[int, ...] | None = None) -> Track:
    """An input: every dimension after batch and channels is a spatial axis, where nothing else is said."""
    places = {dim: index for index, dim in enumerate(range(2, len(shape)) if axes is None else axes)}
    rows = [(Atom(places[dim], size),) if dim in places else channels(size) for dim, size in enumerate(shape)]
    return Track(tuple(rows), {index: Axis(shape[dim]) for dim, index in places.items()})


def _rule(call: Call) -> Rule | None:
    if call.module is not None:
        return _module_rule(type(call.module))
    if call.node.op == "call_function" and not _library(call.node.target):
        return None
    return _NAMES.get(str(getattr(call.node.target, "__name__", call.node.target)))


def _library(target: Any) -> bool:
    return is_torch(target) or target is getattr


@cache
def _module_rule(kind: type[nn.Module]) -> Rule | None:
    """By base class, the most derived first."""
    return next((_MODULES[base] for base in kind.__mro__ if base in _MODULES), None)


def _default(call: Call, value: Any) -> Any:
    """What is in no table keeps the largest of its inputs; a note says where sizes change."""
    if call.module is not None and _hides_windows(call.module):
        call.note("it was not traced into; what its layers do inside does not count")
    operands = call.operands()
    return _each(value, lambda shape: _kept(call, operands, shape)) if operands else None


def _kept(call: Call, operands: list[Track], shape: tuple[int, ...]) -> Track:
    if len(operands) == 1 and call.shape_of(call.first) == shape:
        return operands[0]
    same = [_resized(call, x, shape) if len(x.dims) == len(shape) else x for x in operands]
    fitting = [x for x in same if len(x.dims) <= len(shape)]
    if any(len(x.dims) == len(shape) for x in fitting):
        return fitted(fitting[0], shape) if len(fitting) == 1 else merged(fitting, shape)
    widest = max(operands, key=lambda x: len(x.axes))
    if widest.located():
        call.note("it is not known, and changes the number of dimensions; the map ends here")
    return tracked(map(channels, shape), widest.axes, widest.upsampled)


def _resized(call: Call, x: Track, shape: tuple[int, ...]) -> Track:
    """``x`` at other sizes; where it is broadcast against another operand, as it is."""
    new: dict[int, Axis] = {}
    for dim, size in enumerate(shape):
        index = x.lone(dim)
        axis = Axis(size) if index is None else x.axes[index]
        if axis.size != size and not (axis.size == 1 and len(call.operands()) > 1):
            new[dim] = axis.pooled() if size == 1 else axis.resized(size)
    olds = [x.axes[x.dims[dim][0].axis] for dim in new]
    if any(axis.context is None for axis in olds):
        sizes = f"from {tuple(a.size for a in olds)} to {tuple(a.size for a in new.values())}"
        call.note(f"it is not known, and changes spatial sizes {sizes}; strides follow the sizes")
    return changed(x, new) if new else x


def _hides_windows(module: nn.Module) -> bool:
    """Whether a leaf without a rule holds layers that have one of `mbs_fx.geometry.rules.windows`."""
    kinds = {base for inner in module.modules() for base in type(inner).__mro__}
    return not kinds.isdisjoint(windows.MODULES)
