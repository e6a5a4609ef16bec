"""From target widths to kept choices per cell, for many plans at once, and back for one.

Semantics (rules 3 and 4 of docs/semantics.md)
- The target width of every stream is given (`mbs_fx.results.stream_widths`).
- Streams are served in the order of macroblocks, those bound by additions first: channels shared with an earlier
  stream are already decided, the new ones make up the difference.
- Where counting does not come out even inside an opaque segment, the segment keeps its width.
- Counts are arrays (cells, plans) of whole numbers; shares of cells are brought to a common denominator.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mbs_fx.algorithm import Counts
from mbs_fx.errors import MBSError
from mbs_fx.results.analysis import Analysis, Cell, Stream, Width
from mbs_fx.results.tables import listed


def integers(width: Width) -> tuple[int, list[tuple[int, int]]]:
    """The shares of a width over their common denominator: (denominator, [(cell, numerator)])."""
    whole = math.lcm(*(share.denominator for _, share in width.terms))
    return whole, [(cell, share.numerator * (whole // share.denominator)) for cell, share in width.terms]


def allocate(analysis: Analysis, target: Mapping[int, Any], plans: int, whole: Collection[int] = ()) -> Counts:
    """Kept choices (cells, plans) that give every stream its target, as far as shared channels allow.

    The cells in ``whole`` keep all of their choices.
    """
    filling = _Filling(analysis.cells, plans, whole)
    for stream in sorted(analysis.streams, key=lambda s: (s.macroblock, not s.added, -s.width, s.index)):
        filling.serve(stream.out, target[stream.index])
    return _evened(analysis, filling.counts)


class _Filling:
    """Counts while streams are served one after the other."""

    def __init__(self, cells: Sequence[Cell], plans: int, whole: Collection[int] = ()) -> None:
        self.cells = cells
        self.open = {cell.index for cell in cells if not cell.frozen} - set(whole)
        self.counts = np.repeat(np.array([cell.size for cell in cells], np.int64)[:, None], plans, axis=1)

    def serve(self, out: Width, target: Any) -> None:
        """Decide the open cells of a width so that it comes to ``target``, in proportion to their sizes."""
        denominator, terms = integers(out)
        rest = np.broadcast_to(denominator * (target - out.fixed), self.counts.shape[1:])
        for cell, share in terms:
            if cell not in self.open:
                rest = rest - share * self.counts[cell]
        left = [(cell, share) for cell, share in terms if cell in self.open]
        left.sort(key=lambda term: (-self.cells[term[0]].step * term[1], term[0]))
        for _ in range(8 if len(left) > 1 else 1):
            self._divide(left, rest)
            reached = sum((share * self.counts[cell] for cell, share in left), np.zeros_like(rest))
            if (reached == rest).all():
                break
            rest = reached  # so that the width that is reached tells how it was divided
        self.open -= {cell for cell, _ in left}

    def _divide(self, left: Sequence[tuple[int, int]], rest: Any) -> None:
        """Divide what is left of a width among cells, each rounded to its step, the last one up."""
        room = sum(share * self.cells[cell].size for cell, share in left)
        for cell, share in left:
            size, step = self.cells[cell].size, self.cells[cell].step
            exact = np.maximum(rest, 0) * size, room * step
            steps = _round_up(*exact) if cell == left[-1][0] else _round(*exact)
            self.counts[cell] = np.clip(steps * step, min(step, size), size)
            rest = rest - share * self.counts[cell]
            room -= share * size


def _round_up(numerator: Counts, denominator: int) -> Counts:
    return -(-numerator // denominator)


def _round(numerator: Counts, denominator: int) -> Counts:
    """To the nearest whole number, halves to the even one."""
    low = numerator // denominator
    twice = 2 * (numerator - low * denominator)
    return low + ((twice > denominator) | ((twice == denominator) & (low % 2 == 1)))


def _evened(analysis: Analysis, counts: Counts) -> Counts:
    """Give up on opaque segments in which some tensor would have a fractional size."""
    segment = np.array([-1 if c.segment is None else c.segment for c in analysis.cells])
    size = np.array([c.size for c in analysis.cells], np.int64)[:, None]
    split = {w for axes in analysis.tensors.values() for w in axes if any(s.denominator > 1 for _, s in w.terms)}
    while True:
        changed = False
        for width in split:
            denominator, terms = integers(width)
            odd = sum(share * counts[cell] for cell, share in terms) % denominator != 0
            inside = np.isin(segment, [s for c in width.cells if (s := segment[c]) >= 0])
            again = inside[:, None] & odd & (counts != size)
            if again.any():
                counts = np.where(again, size, counts)
                changed = True
        if not changed:
            return counts


def from_widths(analysis: Analysis, widths: Mapping[str, int]) -> list[int]:
    """Kept choices per cell of a plan given as width per module path.

    Raises `MBSError` naming the first layer whose width cannot be had.
    """
    wanted = {stream.index: _agreed(analysis, stream, widths) for stream in analysis.streams}
    filling = _Filling(analysis.cells, 1)
    pending = sorted(analysis.streams, key=lambda s: (len(s.out.terms), s.width))
    while pending:
        clear = [s for s in pending if len(filling.open.intersection(s.out.cells)) <= 1]
        if not clear and _serve_parts(analysis, filling, widths):
            continue
        clear = clear or pending[:1]
        for stream in clear:
            filling.serve(stream.out, wanted[stream.index])
        served = {s.index for s in clear}
        pending = [s for s in pending if s.index not in served]
    decided: list[int] = filling.counts[:, 0].tolist()
    for stream in analysis.streams:
        check_had(analysis, stream, wanted[stream.index], int(stream.out.size(decided)))
    return decided


def _serve_parts(analysis: Analysis, filling: _Filling, widths: Mapping[str, int]) -> bool:
    """Where streams leave open how their parts share: a depthwise convolution on one part has its width."""
    served = False
    for conv in analysis.convs:
        if conv.target in widths and len(filling.open.intersection(conv.out.cells)) == 1:
            filling.serve(conv.out, widths[conv.target])
            served = True
    return served


def _agreed(analysis: Analysis, stream: Stream, widths: Mapping[str, int]) -> int:
    """The width that a plan gives to a stream: all of its convolutions must have the same."""
    by_width: dict[int, list[str]] = {}
    for path in dict.fromkeys(analysis.by_name[name].target for name in stream.convs):
        if path in widths:
            by_width.setdefault(widths[path], []).append(path)
    if len(by_width) > 1:
        few, *others = sorted(by_width.items(), key=lambda item: len(item[1]))
        rest = [f"{path} ({width})" for width, paths in others for path in paths]
        raise MBSError(
            f"{few[1][0]}: the plan gives it the width {few[0]}, but it has the same channels as {listed(rest, 12)}: "
            f"give all of them one width, or plan anew with widths={{{few[1][0]!r}: {few[0]}}}, which takes them along"
        )
    return next(iter(by_width), stream.width)


def check_had(analysis: Analysis, stream: Stream, wanted: int, size: int) -> None:
    """Raise `MBSError` where a stream does not get the width that was asked for."""
    if size == wanted:
        return
    path = analysis.by_name[stream.convs[0]].target
    others = partners(analysis, stream)
    why = f"It shares channels with {others}: change those with it" if others else "Groups or shuffles ask for it"
    raise MBSError(f"{path}: a width of {wanted} cannot be had, the nearest is {size} of {stream.width}. {why}.")


def partners(analysis: Analysis, stream: Stream, most: int = 6) -> str:
    """One convolution of each other width group that a stream shares channels with, for messages."""
    cells = set(stream.out.cells)
    others = [s for s in analysis.streams if s.index != stream.index and cells & set(s.out.cells)]
    paths = [analysis.by_name[s.convs[0]].target for s in others]
    return listed(paths, most)
