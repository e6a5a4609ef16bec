"""Columns of a picture: rows, and lines that go around them."""

import re
from itertools import pairwise

import pytest

from mbs_fx.pictures.columns import BETWEEN, Size, pack

ROOM = 1000


def column(width, height, top=0.0):
    return Size(width, height, 0.0, top, width, height)


def points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+),(-?[\d.]+)", path)]


def test_rows_are_no_wider_than_the_room():
    found = pack([column(300, 100), column(300, 400), column(300, 50), column(300, 80)], [], ROOM)
    # 300 + 34 + 300 + 34 + 300 = 968 fits, a fourth does not
    assert [place.row for place in found.places] == [0, 0, 0, 1]
    assert [place.x for place in found.places] == [0, 300 + BETWEEN, 2 * (300 + BETWEEN), 0]
    assert found.width == 968
    assert found.places[3].y > 400
    assert found.height == found.places[3].y + 80


def test_a_column_wider_than_the_room_has_its_own_row():
    found = pack([column(300, 100), column(1200, 100), column(300, 100)], [], ROOM)
    assert [place.row for place in found.places] == [0, 1, 2]
    assert found.width == 1200


def test_neighbours_are_joined_where_both_macroblocks_are():
    found = pack([column(200, 300, top=60), column(200, 100)], [(0, 1)], ROOM)
    assert points(found.lines[0, 1]) == [(200, 80), (200 + BETWEEN - 1, 80)]  # (60 + 100) / 2


@pytest.mark.parametrize("count", [3, 5, 9])
@pytest.mark.parametrize("room", [250, 700, 3000])
def test_no_line_passes_through_a_column(count, room):
    sizes = [column(200, 80 + 40 * (i % 3), top=20 * (i % 2)) for i in range(count)]
    lines = [(a, b) for a in range(count) for b in range(count) if a != b]  # forth and back
    found = pack(sizes, lines, room)
    assert set(found.lines) == set(lines)
    for (a, b), path in found.lines.items():
        ends = points(path)
        for (x0, y0), (x1, y1) in pairwise(ends):
            for i, (place, size) in enumerate(zip(found.places, sizes, strict=True)):
                inside = (
                    max(x0, x1) > place.x + 1
                    and min(x0, x1) < place.x + size.width - 1
                    and max(y0, y1) > place.y + 1
                    and min(y0, y1) < place.y + size.height - 1
                )
                above = i == b and place.row != found.places[a].row  # boxes over the macroblock that it enters
                assert not inside or above, (a, b, i)
        assert min(x for x, _ in ends) >= 0
        assert max(x for x, _ in ends) <= found.width
        assert max(y for _, y in ends) <= found.height


def test_lines_in_lanes_do_not_coincide():
    found = pack([column(200, 100)] * 5, [(0, 4), (1, 3), (0, 2)], 3000)
    lowest = [max(y for _, y in points(path)) for path in found.lines.values()]
    assert len(set(lowest)) == 3
