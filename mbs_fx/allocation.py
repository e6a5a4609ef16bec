"""From target widths to kept choices per cell, and back.

Semantics (rules 3 and 4 of docs/semantics.md)
- A stream's target is ceil(beta x width); where the design makes it a multiple of another stream, that multiple.
  Groups and shuffles round it up to the next feasible width.
- Streams are served in the order of macroblocks, those bound by additions first: channels shared with an earlier
  stream are already decided, the new ones make up the difference.
- Where counting does not come out even inside an opaque segment, the segment keeps its width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from mbs_fx.analysis import Analysis, Cell, Stream, Width
from mbs_fx.errors import MBSError


def targets(analysis: Analysis, wanted: Callable[[Stream], int], fixed: Mapping[int, int]) -> dict[int, int]:
    """Target width of every stream; ``wanted`` is ceil(beta x width), ``fixed`` what the caller decided."""
    result: dict[int, int] = {}

    def target(stream: Stream) -> int:
        if stream.index not in result:
            if stream.index in fixed:
                value = fixed[stream.index]
            elif stream.base is not None:
                value = stream.ratio * target(analysis.streams[stream.base])
            else:
                value = wanted(stream)
            result[stream.index] = min(stream.width, _feasible(analysis, stream, value))
        return result[stream.index]

    for stream in analysis.streams:
        target(stream)
    return result


def _feasible(analysis: Analysis, stream: Stream, width: int) -> int:
    """The next width that groups and shuffles allow."""
    unit = stream.step
    if len(stream.out.terms) == 1:
        cell, share = stream.out.terms[0]
        unit = math.lcm(unit, math.ceil(share) * analysis.cells[cell].step)
    free = width - stream.out.fixed
    return stream.out.fixed + max(1, math.ceil(free / unit)) * unit


def allocate(analysis: Analysis, target: Mapping[int, int]) -> list[int]:
    """Kept choices per cell that give every stream its target, as far as shared channels allow."""
    kept: list[int | None] = [cell.size if cell.frozen else None for cell in analysis.cells]
    in_order = sorted(analysis.streams, key=lambda s: (s.macroblock, not s.added, -s.width, s.index))
    for stream in in_order:
        _serve(analysis.cells, stream.out, target[stream.index], kept)
    decided = [cell.size if k is None else k for cell, k in zip(analysis.cells, kept, strict=True)]
    return _evened(analysis, decided)


def _serve(cells: Sequence[Cell], out: Width, target: int, kept: list[int | None]) -> None:
    """Decide the open cells of a width so that it comes to ``target``, in proportion to their sizes."""
    rest = Fraction(target - out.fixed)
    open_terms: list[tuple[int, Fraction]] = []
    for cell, share in out.terms:
        count = kept[cell]
        if count is None:
            open_terms.append((cell, share))
        else:
            rest -= share * count
    open_terms.sort(key=lambda term: (-cells[term[0]].step * term[1], term[0]))
    room = sum((share * cells[cell].size for cell, share in open_terms), Fraction(0))
    for position, (cell, share) in enumerate(open_terms):
        size, step = cells[cell].size, cells[cell].step
        last = position == len(open_terms) - 1
        exact = max(rest, Fraction(0)) * size / room if room else Fraction(size)
        count = (math.ceil(exact / step) if last else round(exact / step)) * step
        kept[cell] = count = min(size, max(step, count))
        rest -= share * count
        room -= share * size


def _evened(analysis: Analysis, kept: list[int]) -> list[int]:
    """Give up on opaque segments in which some tensor would have a fractional size."""
    while True:
        odd = {
            cell
            for axes in analysis.tensors.values()
            for width in axes
            if width.size(kept).denominator != 1
            for cell in width.cells
        }
        broken = {analysis.cells[c].segment for c in odd} - {None}
        again = [i for i, c in enumerate(analysis.cells) if c.segment in broken and kept[i] != c.size]
        if not again:
            return kept
        for index in again:
            kept[index] = analysis.cells[index].size


def from_widths(analysis: Analysis, widths: Mapping[str, int]) -> list[int]:
    """Kept choices per cell of a plan given as width per module path.

    Raises `MBSError` naming the first layer whose width cannot be had.
    """
    kept: list[int | None] = [cell.size if cell.frozen else None for cell in analysis.cells]
    wanted: dict[int, int] = {}
    for stream in analysis.streams:
        paths = [analysis.by_name[name].target for name in stream.convs]
        given = [widths[p] for p in paths if p in widths]
        wanted[stream.index] = given[0] if given else stream.width
    pending = sorted(analysis.streams, key=lambda s: (len(s.out.terms), s.width))
    while pending:
        clear = [s for s in pending if sum(kept[cell] is None for cell, _ in s.out.terms) <= 1] or pending[:1]
        for stream in clear:
            _serve(analysis.cells, stream.out, wanted[stream.index], kept)
        served = {s.index for s in clear}
        pending = [s for s in pending if s.index not in served]
    decided = [cell.size if k is None else k for cell, k in zip(analysis.cells, kept, strict=True)]
    for stream in analysis.streams:
        size = stream.out.size(decided)
        if size != wanted[stream.index]:
            path = analysis.by_name[stream.convs[0]].target
            raise MBSError(
                f"{path}: a width of {wanted[stream.index]} cannot be had, the nearest is {size} of "
                f"{stream.width}. Its channels are shared with {_partners(analysis, stream)}."
            )
    return decided


def _partners(analysis: Analysis, stream: Stream) -> str:
    cells = set(stream.out.cells)
    others = [
        analysis.by_name[s.convs[0]].target
        for s in analysis.streams
        if s.index != stream.index and cells & set(s.out.cells)
    ]
    paths = [*dict.fromkeys(analysis.by_name[n].target for n in stream.convs[1:]), *others]
    return ", ".join(paths[:4]) or "the groups of its own convolution"
