"""Labels: which channel each element of a tensor belongs to, and how they move when tensors are rearranged.

Semantics
- A label is a number that stands for one channel of one layer (or one slice of a parameter).  Label 0 stands for
  what can never be removed: the channels of the network's input, and whatever is not understood.
- A tensor is labelled by *factors*: arrays of the tensor's rank that have the full size along the axes where
  labels vary and size 1 along the others.  The axes of two factors of a tensor are disjoint.  An element stays
  in the reduced tensor when its label in every factor stays.  A feature map (N, C, H, W) has one factor
  (1, C, 1, 1); a convolution's weight has two, (O, 1, 1, 1) and (1, I, 1, 1).
- An axis without a factor keeps its size.
- A factor that varies along several axes (channels split into groups x channels) must stay a box when elements
  are removed.  Its longest axis is the one that shrinks.
- Functions here only rearrange; who must equal whom is recorded in `Ties`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mbs_fx.channels.ties import Ties

Factor = NDArray[np.int64]
Labels = tuple[Factor, ...]

FROZEN: Final[Labels] = ()
"""Labels of a tensor of which no axis may change its size."""


def varying(factor: Factor) -> tuple[int, ...]:
    """The axes along which the labels of a factor vary."""
    return tuple(axis for axis, size in enumerate(factor.shape) if size > 1)


def shrinking_axis(factor: Factor) -> int:
    """The axis of a factor that becomes shorter when labels are removed: the longest, the last of equals."""
    return max(range(factor.ndim), key=lambda axis: (factor.shape[axis], axis))


def along(vector: Factor, axis: int, rank: int) -> Labels:
    """Labels of a tensor of the given rank whose labels vary along one axis."""
    if len(vector) < 2:
        return ()
    shape = [1] * rank
    shape[axis] = len(vector)
    return (vector.reshape(shape),)


def factor_on(labels: Labels, axis: int) -> Factor | None:
    """The factor that varies along an axis, if any."""
    return next((f for f in labels if f.shape[axis] > 1), None)


def without(labels: Labels, axis: int) -> Labels:
    """The factors that do not vary along an axis."""
    return tuple(f for f in labels if f.shape[axis] == 1)


def vector(labels: Labels, axis: int, size: int, ties: Ties) -> Factor:
    """One label per position of an axis; what varies along further axes as well is tied across those."""
    factor = factor_on(labels, axis)
    if factor is None:
        return np.zeros(size, np.int64)
    return collapse(factor, [a for a in varying(factor) if a != axis], ties).reshape(-1)


def collapse(factor: Factor, axes: Sequence[int], ties: Ties) -> Factor:
    """Tie a factor across some of its axes, which then no longer carry labels."""
    for axis in axes:
        if factor.shape[axis] > 1:
            first = np.take(factor, [0], axis)
            ties.tie(np.broadcast_to(first, factor.shape), factor)
            factor = first
    return factor


def compress(factor: Factor) -> Factor | None:
    """The same labels with size 1 wherever they do not vary; None where they vary nowhere."""
    for axis, size in enumerate(factor.shape):
        if size > 1:
            first = np.take(factor, [0], axis)
            if (factor == first).all():
                factor = first
    return factor if factor.size > 1 else None


def _compressed(factors: Sequence[Factor]) -> Labels:
    return tuple(c for f in factors if (c := compress(f)) is not None)


def permute(labels: Labels, order: Sequence[int]) -> Labels:
    """Labels of ``x.permute(order)``."""
    return tuple(f.transpose(order) for f in labels)


def insert_axis(labels: Labels, axis: int) -> Labels:
    """Labels of ``x.unsqueeze(axis)``."""
    return tuple(np.expand_dims(f, axis) for f in labels)


def select(labels: Labels, axis: int, index: int) -> Labels:
    """``x.select(axis, index)``: the axis disappears."""
    taken = (np.take(f, index if f.shape[axis] > 1 else 0, axis) for f in labels)
    return tuple(f for f in taken if f.size > 1)


def take(labels: Labels, axis: int, index: slice | NDArray[np.int64]) -> Labels:
    """``x[..., index, ...]`` with a slice or a list of positions on one axis."""
    where = [slice(None)] * (labels[0].ndim if labels else 0)
    result: list[Factor] = []
    for f in labels:
        if f.shape[axis] > 1:
            at = tuple(index if a == axis else w for a, w in enumerate(where))
            f = f[at]
        if f.size > 1:
            result.append(f)
    return tuple(result)


def tile(labels: Labels, axis: int, times: int) -> Labels:
    """Repeat an axis as a whole, as ``x.repeat`` does."""
    return tuple(np.concatenate([f] * times, axis) if f.shape[axis] > 1 else f for f in labels)


def roll(labels: Labels, axis: int, shift: int) -> Labels:
    """Labels of ``x.roll(shift, axis)``."""
    return tuple(np.roll(f, shift, axis) if f.shape[axis] > 1 else f for f in labels)


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match the axes of two shapes of equal volume: the smallest groups of axes with equal products."""
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        volume_left = before[i] if left else 1
        volume_right = after[j] if right else 1
        i, j = i + len(left), j + len(right)
        while volume_left != volume_right:
            if volume_left < volume_right:
                volume_left *= before[i]
                left.append(i)
                i += 1
            else:
                volume_right *= after[j]
                right.append(j)
                j += 1
        result.append((left, right))
    return result


def reshape(labels: Labels, before: Sequence[int], after: Sequence[int], ties: Ties, reason: str) -> Labels:
    """Labels of ``x.reshape(after)``; factors that meet in one axis are frozen for the given reason."""
    if not labels:
        return ()
    matched = blocks(before, after)
    of_axis = {axis: number for number, (left, _) in enumerate(matched) for axis in left}
    owner: dict[int, int] = {}
    clashing: set[int] = set()
    for number, factor in enumerate(labels):
        for block in {of_axis[a] for a in varying(factor)}:
            if owner.setdefault(block, number) != number:
                clashing |= {number, owner[block]}
    for number in clashing:
        ties.freeze(labels[number], reason)
    labels = tuple(f for number, f in enumerate(labels) if number not in clashing)
    result: list[Factor] = []
    for factor in labels:
        touched = {of_axis[a] for a in varying(factor)}
        expanded = [before[a] if of_axis[a] in touched else 1 for a in range(len(before))]
        target = [1] * len(after)
        for block in touched:
            for axis in matched[block][1]:
                target[axis] = after[axis]
        result.append(np.broadcast_to(factor, expanded).reshape(target))
    return _compressed(result)


def _clusters(factors: Sequence[Factor]) -> list[set[int]]:
    """Sets of axes that some factors couple."""
    clusters: list[set[int]] = []
    for factor in factors:
        axes = set(varying(factor))
        for other in [c for c in clusters if c & axes]:
            clusters.remove(other)
            axes |= other
        if axes:
            clusters.append(axes)
    return clusters


def _aligned(labels: Labels, rank: int) -> list[Factor]:
    return [f.reshape((1,) * (rank - f.ndim) + f.shape) for f in labels]


def elementwise(
    operands: Sequence[tuple[Labels, Sequence[int]]], shape: Sequence[int], ties: Ties, reason: str
) -> Labels:
    """Labels of an elementwise operation with broadcasting: operands that meet in an element are tied.

    ``operands`` are (labels, shape) pairs, ``shape`` that of the result.  Where an operand has a full axis
    without labels, the others cannot shrink along it: they are tied across it, or frozen for ``reason``.
    """
    rank = len(shape)
    factors = [_aligned(labels, rank) for labels, _ in operands]
    full = [[1] * (rank - len(s)) + list(s) for _, s in operands]
    flat = [f for fs in factors for f in fs]
    if len(flat) == 2 and len(operands) == 2 and flat[0].shape == flat[1].shape and all(map(len, factors)):
        if flat[0] is not flat[1]:
            ties.tie(flat[0], flat[1], reason)
        return (flat[0],)
    result: list[Factor] = []
    for cluster in _clusters(flat):
        met = _meet(cluster, factors, full, ties, reason)
        if met is not None:
            result.append(met)
    return tuple(result)


def _meet(
    cluster: set[int], factors: list[list[Factor]], full: list[list[int]], ties: Ties, reason: str
) -> Factor | None:
    """Tie the factors of all operands that vary along the axes of a cluster; the common factor."""
    inside = [[f for f in fs if set(varying(f)) & cluster] for fs in factors]
    fixed: set[int] = set()
    for mine, sizes in zip(inside, full, strict=True):
        labelled = {a for f in mine for a in varying(f)}
        fixed |= {a for a in cluster if sizes[a] > 1 and a not in labelled}
    arrays = [f for mine in inside for f in mine]
    if any(len(mine) > 1 for mine in inside):
        longest = max(cluster - fixed or cluster, key=lambda a: max(s[a] for s in full))
        fixed |= cluster - {longest}
    free: list[Factor] = []
    for array in arrays:
        axes = set(varying(array))
        if axes <= fixed:
            ties.freeze(array, reason)
        else:
            free.append(collapse(array, sorted(axes & fixed), ties))
    if not free:
        return None
    shape = np.broadcast_shapes(*(f.shape for f in free))
    first = np.broadcast_to(free[0], shape)
    for other in free[1:]:
        ties.tie(first, np.broadcast_to(other, shape), reason)
    return first


def concatenate(operands: Sequence[tuple[Labels, Sequence[int]]], axis: int, ties: Ties, reason: str) -> Labels:
    """Labels of ``torch.cat`` along ``axis``; operands (labels, shape) of equal rank."""
    flat = [f for labels, _ in operands for f in labels]
    result: list[Factor] = []
    for cluster in _clusters(flat):
        factors = [[f for f in labels if set(varying(f)) & cluster] for labels, _ in operands]
        if axis not in cluster:
            met = _meet(cluster, factors, [list(s) for _, s in operands], ties, reason)
            if met is not None:
                result.append(met)
            continue
        if any(len(fs) > 1 for fs in factors):
            for f in flat:
                ties.freeze(f, reason)
            return ()
        parts: list[Factor] = []
        for fs, (_, sizes) in zip(factors, operands, strict=True):
            part = fs[0] if fs else np.zeros([1] * len(sizes), np.int64)
            shape = list(part.shape)
            shape[axis] = sizes[axis]
            parts.append(np.broadcast_to(part, shape))
        other = np.broadcast_shapes(*((*p.shape[:axis], 1, *p.shape[axis + 1 :]) for p in parts))
        widened = [np.broadcast_to(p, (*other[:axis], p.shape[axis], *other[axis + 1 :])) for p in parts]
        result.append(np.concatenate(widened, axis))
    return _compressed(result)


def reduce(labels: Labels, axes: Sequence[int], keepdim: bool, ties: Ties) -> tuple[Labels, bool]:
    """Labels after a reduction over axes, and whether labelled channels were mixed (summed into one)."""
    result: list[Factor] = []
    mixed = False
    for factor in labels:
        hit = set(varying(factor)) & set(axes)
        if hit == set(varying(factor)):
            mixed = True
            continue
        factor = collapse(factor, sorted(hit), ties)
        result.append(factor if keepdim else factor.squeeze(tuple(axes)))
    return tuple(result), mixed
