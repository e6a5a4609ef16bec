"""Columns side by side: where each goes, and the lines between them.

Semantics
- A column is a macroblock and the boxes above and below it.  Columns go from left to right in the order of the
  network, tops aligned, and begin a new row where the width is used up.
- Lines join macroblocks.  Neighbours are joined by a straight line.  Every other line leaves below, runs in a lane
  under the row, and enters from below (same row) or above (next row); to rows further away it takes the gutter on
  the left.
- The page does the same (assets/picture.js, ``pack``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BETWEEN, UNDER, LANE, STEP, CORNER = 34.0, 12.0, 9.0, 11.0, 5.0
"""Pixels between columns, from a row to its first lane, between lanes, between line ends, of rounded corners."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Size:
    """Of a column, and the edges of its macroblock in it."""

    width: float
    height: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a column lies, and the edges of its macroblock: all in pixels of the picture."""

    row: int
    x: float
    y: float
    width: float
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Packing:
    """Places by column, lines by pair of columns, and the size of it all."""

    width: float
    height: float
    places: tuple[Place, ...]
    lines: Mapping[tuple[int, int], str]


def pack(sizes: Sequence[Size], lines: Sequence[tuple[int, int]], room: float) -> Packing:
    """Place columns in rows no wider than ``room``, and draw lines between them."""
    rows = _rows([size.width for size in sizes], room)
    row_of = [row for row, members in enumerate(rows) for _ in members]
    straight = {(a, b) for a, b in lines if b == a + 1 and row_of[a] == row_of[b] and _level(sizes[a], sizes[b])}
    bent = sorted(set(lines) - straight, key=lambda line: (abs(line[1] - line[0]), line))
    far = [line for line in bent if row_of[line[1]] - row_of[line[0]] not in (0, 1)]
    left = LANE * len(far) + (UNDER if far else 0.0)
    lanes = _lanes(bent, far, row_of)
    places: list[Place] = []
    y = UNDER + LANE * lanes.get(-1, 0) if -1 in lanes else 0.0
    below: list[float] = [0.0]
    for row, members in enumerate(rows):
        x, tall = left, max(sizes[i].height for i in members)
        for size in (sizes[i] for i in members):
            edges = x + size.left, y + size.top, x + size.right, y + size.bottom
            places.append(Place(row, x, y, size.width, *edges))
            x += size.width + BETWEEN
        y += tall
        below.append(y + UNDER)
        y += UNDER + LANE * lanes.get(row, 0) + (UNDER if row + 1 < len(rows) or lanes.get(row) else 0)
    curves = {line: _straight(places[line[0]], places[line[1]]) for line in straight}
    curves |= _bent(bent, far, places, below, left)
    height = y - (0 if lanes.get(len(rows) - 1) else UNDER)
    return Packing(max(place.x + place.width for place in places), height, tuple(places), curves)


def _rows(widths: Sequence[float], room: float) -> list[list[int]]:
    rows: list[list[int]] = [[]]
    used = 0.0
    for i, width in enumerate(widths):
        if rows[-1] and used + width > room:
            rows.append([])
            used = 0.0
        rows[-1].append(i)
        used += width + BETWEEN
    return rows


def _lanes(bent: Sequence[tuple[int, int]], far: Sequence[tuple[int, int]], row_of: Sequence[int]) -> dict[int, int]:
    """How many lanes lie under each row; -1 is above the first."""
    count: dict[int, int] = {}
    for a, b in bent:
        for row in (row_of[a], row_of[b] - 1) if (a, b) in far else (row_of[a],):
            count[row] = count.get(row, 0) + 1
    return count


def _level(a: Size | Place, b: Size | Place) -> float | None:
    """A height at which both macroblocks are; None where there is none."""
    high, low = max(a.top, b.top), min(a.bottom, b.bottom)
    return (high + low) / 2 if low > high else None


def _straight(a: Place, b: Place) -> str:
    y = _level(a, b) or 0.0
    return f"M{a.right:g},{y:g} L{b.left - 1:g},{y:g}"


def _bent(
    bent: Sequence[tuple[int, int]],
    far: Sequence[tuple[int, int]],
    places: Sequence[Place],
    below: Sequence[float],
    left: float,
) -> dict[tuple[int, int], str]:
    used: dict[int, int] = {}
    ends: dict[tuple[str, int], int] = {}
    curves: dict[tuple[int, int], str] = {}

    def lane(row: int) -> float:
        used[row] = used.get(row, 0) + 1
        return below[row + 1] + LANE * (used[row] - 1)

    def end(side: str, column: int) -> float:
        ends[side, column] = ends.get((side, column), 0) + 1
        return STEP * ends[side, column]

    for a, b in bent:
        tail, head = places[a], places[b]
        x, to = tail.right - end("out", a), head.left + STEP + end("in", b)
        points = [(x, tail.bottom), (x, lane(tail.row))]
        if (a, b) in far:
            gutter = left - UNDER - LANE * far.index((a, b))
            points += [(gutter, points[-1][1]), (gutter, lane(head.row - 1))]
        same = head.row == tail.row
        points += [(to, points[-1][1]), (to, head.bottom + 1 if same else head.top - 1)]
        curves[a, b] = rounded(points)
    return curves


def rounded(points: Sequence[Point]) -> str:
    """A path through corners, each rounded."""
    parts = [f"M{points[0][0]:g},{points[0][1]:g}"]
    for before, (x, y), after in zip(points, points[1:], points[2:], strict=False):
        start, stop = (_towards((x, y), other) for other in (before, after))
        parts.append(f"L{start[0]:g},{start[1]:g} Q{x:g},{y:g} {stop[0]:g},{stop[1]:g}")
    return " ".join([*parts, f"L{points[-1][0]:g},{points[-1][1]:g}"])


def _towards(corner: Point, other: Point) -> Point:
    """A point near a corner on the way to another point, on one of the axes."""
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = max(abs(dx), abs(dy), 1e-9)
    reach = min(CORNER, length / 2)
    return corner[0] + dx / length * reach, corner[1] + dy / length * reach
