"""Algorithm 1 by hand."""

import math

import pytest

from mbs_fx.algorithm import ConvFact, boundary, is_base, macroblock_scaling, scaled_width


def test_boundary_is_the_smallest_receptive_field_above_the_threshold():
    assert boundary([(3.0,), (17.0,), (33.0,), (41.0,)], [32]) == (33.0,)
    assert boundary([(3.0,), (17.0,)], [32]) == (math.inf,)


def test_the_layer_at_the_boundary_is_a_base_layer():
    assert is_base((33.0,), (33.0,))
    assert not is_base((41.0,), (33.0,))


def test_on_a_rectangle_an_enhancement_layer_exceeds_every_axis():
    limit = (33.0, 65.0)
    assert is_base((41.0, 41.0), limit)
    assert not is_base((73.0, 73.0), limit)


def test_redundancy_and_beta():
    # Base: 10 + 10 = 20.  m_0: total 10 <= 20, beta 1.  m_1: total 25, r = 1 - 20/25 = 0.2, beta = 1/1.2.
    # m_2: total 40, r = 0.5, beta = 1/1.5.
    convs = [
        ConvFact((3.0,), 0, 10),
        ConvFact((5.0,), 1, 10),
        ConvFact((9.0,), 1, 5),
        ConvFact((17.0,), 2, 15),
    ]
    found = macroblock_scaling(convs, 3, (5.0,))
    assert [s.redundancy for s in found] == pytest.approx([0, 0.2, 0.5])
    assert [s.beta for s in found] == pytest.approx([1, 1 / 1.2, 1 / 1.5])
    assert all(s.e_base == 20 for s in found)


@pytest.mark.parametrize(
    ("beta", "width", "expected"),
    [(453 / 512, 512, 453), (444 / 480, 480, 444), (0.5, 3, 2), (1.0, 7, 7), (1e-6, 5, 1), (1 / 1.2, 12, 10)],
)
def test_widths_round_up_but_not_by_rounding_error(beta, width, expected):
    assert scaled_width(beta, width) == expected
