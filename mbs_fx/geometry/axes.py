"""Where the pixels of a tensor lie on the input: the values that `mbs_fx.geometry.propagation` computes with.

Semantics
- An `Axis` is a spatial axis of the input as a tensor sees it now: its size, and the stride and receptive
  field in input pixels.  All arithmetic is exact.
- An `Atom` is a stretch of an axis, or of channels; a tensor's dimension is a row of atoms.  Reshaping cuts
  and joins atoms, so windows, tokens and space-to-depth need no special treatment: an axis of 14 cut
  into windows of 7 is the atoms (2 windows, 7 steps apart) and (7 pixels, 1 step apart).
- An axis that has been pooled or mixed away is *context*.  It remembers its size before; nothing extends its
  receptive field, and where it is broadcast back it has the stride that it had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import NamedTuple

CHANNELS = -1


class Atom(NamedTuple):
    """``size`` positions of an axis, ``step`` apart."""

    axis: int
    size: int
    step: int = 1


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tensor.

    ``offset`` is how far slices, rolls and one-sided padding have moved the centres of its fields, in input pixels.
    ``context`` is the size before the axis was pooled to one pixel, None where it was not.
    """

    size: int
    stride: int | Fraction = 1
    field: int | Fraction = 1
    offset: int | Fraction = 0
    context: int | None = None

    def pooled(self) -> Axis:
        """The axis as context."""
        return self if self.context is not None else replace(self, size=1, context=self.size)

    def resized(self, size: int) -> Axis:
        """At another size on the same ground; context is broadcast back."""
        if self.context is not None and size == 1:
            return self
        stride = scaled(self.stride, self.context or self.size, size)
        return replace(self, size=size, stride=stride, context=None)

    def cropped(self, size: int) -> Axis:
        """At another size with the same pixels."""
        return self.resized(size) if self.context is not None else replace(self, size=size)

    def windowed(self, size: int, kernel: int, stride: int | Fraction = 1, dilation: int = 1) -> Axis:
        """After a window has slid over it."""
        if self.context is not None:
            return self.resized(size)
        grown = self.field + dilation * (kernel - 1) * self.stride
        return Axis(size, whole(self.stride * stride), grown, self.offset)


@dataclass(frozen=True, slots=True)
class Track:
    """The atoms of every dimension of a tensor, and the axes that they belong to."""

    dims: tuple[tuple[Atom, ...], ...]
    axes: Mapping[int, Axis]
    upsampled: bool = False

    def lone(self, dim: int) -> int | None:
        """The axis that has a dimension to itself and lies there as a whole."""
        atoms = self.dims[dim]
        if len(atoms) != 1 or atoms[0].axis == CHANNELS:
            return None
        atom = atoms[0]
        return atom.axis if atom.step == 1 and atom.size == self.axes[atom.axis].size else None

    def located(self) -> dict[int, int] | None:
        """The dimension of every axis that is present; None where one is cut or shares its dimension."""
        present = sorted(atom.axis for atoms in self.dims for atom in atoms if atom.axis != CHANNELS)
        found = {axis: dim for dim in range(len(self.dims)) if (axis := self.lone(dim)) is not None}
        return found if sorted(found) == present else None

    def fills(self, shape: Sequence[int]) -> bool:
        """Whether the atoms make up a tensor of this shape."""
        return [prod(atom.size for atom in row) for row in self.dims] == list(shape)

    def lost(self) -> list[int]:
        """The axes that no dimension holds."""
        return sorted(self.axes.keys() - {atom.axis for atoms in self.dims for atom in atoms})


def whole(value: int | Fraction) -> int | Fraction:
    """Whole numbers as int, which is faster."""
    return value.numerator if value.denominator == 1 else value


def scaled(value: int | Fraction, times: int, by: int) -> int | Fraction:
    """``value * times / by``, exactly."""
    return whole(Fraction(value) * times / by) if times != by else value


def bare(shape: Sequence[int]) -> Track:
    """A tensor that has no axis of the input."""
    return Track(tuple(channels(n) for n in shape), {})


def channels(size: int) -> tuple[Atom, ...]:
    """A dimension that no axis lies in."""
    return () if size == 1 else (Atom(CHANNELS, size, 0),)


def tracked(dims: Iterable[tuple[Atom, ...]], axes: Mapping[int, Axis], upsampled: bool) -> Track:
    """A track in which the axes that have left the tensor are context."""
    rows = tuple(dims)
    present = {atom.axis for atoms in rows for atom in atoms}
    kept = {index: axis if index in present else axis.pooled() for index, axis in axes.items()}
    return Track(rows, kept, upsampled)


def changed(track: Track, new: Mapping[int, Axis], rest: Mapping[int, int] | None = None) -> Track:
    """``track`` with its axes in the dimensions ``new`` replaced, and channels in the dimensions ``rest``.

    An axis that gets a finer stride has been upsampled; context that is broadcast back has not.
    """
    rows, axes, upsampled = list(track.dims), dict(track.axes), track.upsampled
    for dim, size in (rest or {}).items():
        rows[dim] = channels(size)
    for dim, axis in new.items():
        index = track.dims[dim][0].axis
        upsampled |= axes[index].context is None and axis.stride < axes[index].stride
        rows[dim], axes[index] = (Atom(index, axis.size),), axis
    return tracked(rows, axes, upsampled)


def recut(track: Track, shape: Sequence[int]) -> Track | None:
    """The track of the same elements, in the same order, in another shape; None where an atom would break."""
    waiting = deque(atom for atoms in track.dims for atom in atoms)
    rows: list[tuple[Atom, ...]] = []
    for dim, size in enumerate(shape):
        taken = [] if dim == 0 and size == 1 else _take(waiting, size)
        if taken is None:
            return None
        rows.append(joined(taken))
    return _depth_to_space(mixed_in(tracked(rows, track.axes, track.upsampled)))


def _take(waiting: deque[Atom], size: int) -> list[Atom] | None:
    if size == 1:
        return [waiting.popleft()] if waiting and waiting[0].size == 1 else []
    taken: list[Atom] = []
    while size > 1:
        if not waiting:
            return None
        atom = waiting.popleft()
        if atom.size > size and atom.size % size == 0:
            inner = atom.size // size
            waiting.appendleft(Atom(atom.axis, inner, atom.step))
            atom = Atom(atom.axis, size, atom.step * inner)
        if size % atom.size:
            return None
        taken += [atom] if atom.size > 1 else []
        size //= atom.size
    return taken


def joined(atoms: Iterable[Atom]) -> tuple[Atom, ...]:
    """Neighbours that continue each other as one atom."""
    result: list[Atom] = []
    for atom in atoms:
        last = result[-1] if result else None
        if last and last.axis == atom.axis and last.step == atom.size * atom.step:
            result[-1] = Atom(atom.axis, last.size * atom.size, atom.step)
        else:
            result.append(atom)
    return tuple(result)


def mixed_in(track: Track, channel: int | None = None) -> Track:
    """Space to depth: where the fine part of an axis lies among channels, its coarse part is the axis now.

    ``channel`` is a dimension known to hold channels; others are recognised by the channels they hold.
    """
    rows, axes = list(track.dims), dict(track.axes)
    for dim, atoms in enumerate(track.dims):
        if len(atoms) != 1 or atoms[0].axis == CHANNELS or atoms[0].step == 1:
            continue
        index, size, step = atoms[0]
        places = [d for d, row in enumerate(rows) if d != dim and any(a.axis == index for a in row)]
        among = [d for d in places if d == channel or (d > 0 and any(a.axis == CHANNELS for a in rows[d]))]
        if places and among == places and step * size == axes[index].size:
            axis = axes[index]
            axes[index] = axis.windowed(size, step, step)
            rows[dim] = (Atom(index, size),)
            for place in places:
                merged = prod(a.size for a in rows[place])
                others = [a for a in rows[place] if a.axis not in (index, CHANNELS)]
                rows[place] = (*channels(merged // prod(a.size for a in others)), *others)
    return Track(tuple(rows), axes, track.upsampled)


def _depth_to_space(track: Track) -> Track:
    """Where every axis is a dimension, and channels follow some of them there, these are finer pixels."""
    split = {d: row for d, row in enumerate(track.dims) if any(a.axis != CHANNELS for a in row)}
    fine = {d for d, row in split.items() if len(row) > 1}
    tidy = all(
        row[0].axis != CHANNELS
        and row[0] == Atom(row[0].axis, track.axes[row[0].axis].size)
        and all(a.axis == CHANNELS for a in row[1:])
        for row in split.values()
    )
    if not fine or not tidy or len(track.dims) < len(split) + 2:
        return track
    new = {}
    for dim in fine:
        axis = track.axes[track.dims[dim][0].axis]
        new[dim] = axis.resized(prod(a.size for a in track.dims[dim]))
    return changed(track, new)


def merged(tracks: Sequence[Track], shape: Sequence[int]) -> Track:
    """Elementwise: the largest stride and field of those whose pixels take part, aligned from the right."""
    tracks = [t for t in tracks if len(t.dims) <= len(shape)]
    base, rows = tracks[0], tracks[0].dims
    taking_part = tracks
    if len(rows) != len(shape) or any(t.dims != rows for t in tracks):
        weights = [_weight(t, shape) for t in tracks]
        base = tracks[weights.index(max(weights))]
        rows = [_row([base, *tracks], right, shape[-right]) for right in range(len(shape), 0, -1)]
        taking_part = [t for t, (axes, _) in zip(tracks, weights, strict=True) if axes] or tracks
    axes = dict(base.axes)
    for track in tracks:
        for index, axis in track.axes.items():
            axes[index] = union(axes[index], axis) if index in axes else axis
    return tracked(rows, axes, any(t.upsampled for t in taking_part))


def _row(tracks: Sequence[Track], right: int, size: int) -> tuple[Atom, ...]:
    """The atoms of a dimension counted from the right: the first that fill it, with an axis if one does."""
    options = [t.dims[-right] for t in tracks if right <= len(t.dims)]
    fitting = [row for row in options if prod(a.size for a in row) == size]
    return fitting[0] if size == 1 and fitting else max(fitting, key=has_axis, default=channels(size))


def has_axis(row: tuple[Atom, ...]) -> bool:
    """Whether a dimension holds more than channels."""
    return any(atom.axis != CHANNELS for atom in row)


def _weight(track: Track, shape: Sequence[int]) -> tuple[int, int | Fraction]:
    """How much of the result's layout a track decides: its axes that are not context, then their fields."""
    pairs = zip(reversed(track.dims), reversed(shape), strict=False)
    indices = {a.axis for row, n in pairs if prod(a.size for a in row) == n for a in row} - {CHANNELS}
    fields = [track.axes[i].field for i in indices if track.axes[i].context is None]
    return len(fields), max(fields, default=0)


def union(base: Axis, other: Axis) -> Axis:
    """The longest path, at the size of ``base``; context adds nothing to what is not context."""
    if base == other or (other.context is not None and base.context is None):
        return base
    if base.context is not None and other.context is None:
        return other
    stride = max(base.stride, other.stride) if base.size == other.size else base.stride
    if base.offset == other.offset:
        return Axis(base.size, stride, max(base.field, other.field), base.offset, base.context)
    low, high = (
        extreme(2 * a.offset + sign * a.field for a in (base, other)) for sign, extreme in ((-1, min), (1, max))
    )
    return Axis(base.size, stride, scaled(high - low, 1, 2), scaled(high + low, 1, 4), base.context)
