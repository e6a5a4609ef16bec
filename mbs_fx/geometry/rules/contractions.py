"""Mixing: linear layers, products and attention.

Semantics
- They are context for the positions they go over: positions stay where they are, fields do not grow, and a
  note tells how many nodes did it.
- Where the same axis appears twice in a product, as among the weights of attention, the first factor has it.
- A linear layer over channels makes new channels; over flattened pixels, it ends the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from mbs_fx.geometry.axes import CHANNELS, Atom, Track, channels, has_axis, merged, mixed_in, tracked
from mbs_fx.geometry.call import GeometryCall, MapResult
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.register import geometry


@geometry(v.LINEAR)
def linear(call: GeometryCall) -> MapResult:
    """Mixes the last dimension: channels, or positions."""
    last = len(call.shape) - 1
    x = mixed_in(call.input, last)
    if has_axis(x.dims[last]) and call.shape[last] == call.shape_of(call.first)[last]:
        return MapResult(x, mixes=True)
    notes: tuple[str, ...] = ()
    if x.lone(last) is not None or (has_axis(x.dims[last]) and any(map(has_axis, x.dims[:last]))):
        notes = ("it mixes the positions of one axis and changes their number; that axis ends here",)
    return MapResult(tracked((*x.dims[:last], channels(call.shape[last])), x.axes, x.upsampled), notes)


@geometry(v.MATMUL)
def matmul(call: GeometryCall) -> MapResult | None:
    """A sum of products over the last dimension of one and the last but one of the other."""
    one, other = call.input, call.operand(call.argument("other"))
    if min(len(one.dims), len(other.dims)) < 2 or len(call.shape) < 2:
        return None
    lefts = replace(one, dims=(*one.dims[:-1], channels(call.shape[-1])))
    rights = replace(other, dims=(*other.dims[:-2], (), other.dims[-1]))
    return _product(call, [lefts, rights], [one.dims[-1], other.dims[-2]])


def _product(call: GeometryCall, parts: Sequence[Track], contracted: Sequence[tuple[Atom, ...]]) -> MapResult:
    """A sum of products: an axis lies where the first factor that keeps it has it."""
    rows = [channels(size) for size in call.shape]
    axes = {index: axis for part in reversed(parts) for index, axis in part.axes.items()}
    mixes = any(map(has_axis, contracted))
    seen: set[int] = set()
    for part in parts:
        kept = {a.axis for row in part.dims for a in row} - {CHANNELS}
        mixes |= bool(kept & seen)
        for right, row in enumerate(reversed(part.dims), 1):
            fits = prod(a.size for a in row) == call.shape[-right]
            if fits and has_axis(row) and seen.isdisjoint(a.axis for a in row):
                rows[-right] = row
        axes |= {index: part.axes[index] for index in kept - seen}
        seen |= kept
    result = tracked(rows, axes, any(part.upsampled for part in parts))
    return MapResult(result, mixes=mixes and any(map(has_axis, result.dims)))


@geometry(v.EINSUM)
def einsum(call: GeometryCall) -> MapResult | None:
    """A sum of products by letters."""
    equation = str(call.source).replace(" ", "")
    operands, _, _ = call.collected("operands")
    if "->" not in equation or "." in equation:
        return None
    left, right = equation.split("->")
    places: dict[str, tuple[Atom, ...]] = {}
    parts: list[Track] = []
    tracks = [call.operand(node) for node in operands]
    for letters, track in zip(left.split(","), tracks, strict=True):
        named = dict(zip(letters, track.dims, strict=True))
        places |= {letter: row for letter, row in named.items() if not has_axis(places.get(letter, ()))}
        parts.append(Track(tuple(named.get(letter, ()) for letter in right), track.axes, track.upsampled))
    return _product(call, parts, [row for letter, row in places.items() if letter not in right])


@geometry(v.ATTENTION)
def attention(call: GeometryCall) -> MapResult:
    """Fused attention: the positions of the queries stay."""
    return MapResult(merged([call.input], call.shape) if call.input.dims else call.input, mixes=True)


@geometry(v.SELF_ATTENTION)
def self_attention(call: GeometryCall) -> MapResult:
    """``nn.MultiheadAttention``: (result, weights)."""
    return MapResult((call.input, None), mixes=True)
