"""Algorithm 1 against the paper's arithmetic, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mbs_fx.algorithm import (
    base_flops_of,
    base_layers,
    boundaries,
    macroblock_scaling,
    on_axes,
    redundancy,
    redundancy_of,
    scaled_width,
    scaling_factor,
)

FIELDS = np.array([[3.0], [5.0], [9.0], [17.0]])
"""Four convolutions in the macroblocks 0, 1, 1, 2."""


def scaling(*thresholds: float, p=(0.5, 0.25, 0.125, 0.375)):
    return macroblock_scaling(p, [20, 40, 40, 40], [0, 1, 1, 2], FIELDS, np.array(thresholds)[:, None])


def test_algorithm_1():
    # Eq. 4: e = 10, 10, 5, 15.  Eq. 5: 10, 10 + 10 + 5 = 25, 25 + 15 = 40.
    # z = 4: the boundary is 5 (Eq. 3), E_base = 10 + 10 = 20 (Eq. 6).  m_0: 10 <= 20, r = 0, beta = 1.
    # m_1: r = 1 - 20/25 = 0.2, beta = 1/1.2.  m_2: r = 1 - 20/40 = 0.5, beta = 1/1.5.
    found = scaling(4)
    assert found.e_total == pytest.approx([10, 25, 40])
    assert found.e_base == pytest.approx([20])
    assert found.redundancy[0] == pytest.approx([0, 0.2, 0.5])
    assert found.beta[0] == pytest.approx([1, 1 / 1.2, 1 / 1.5])


def test_several_thresholds_at_once():
    # z = 2: boundary 3, E_base 10.  z = 16: boundary 17, E_base 40: nothing is redundant.  z = 17: no boundary.
    found = scaling(2, 4, 16, 17)
    assert found.e_base == pytest.approx([10, 20, 40, 40])
    assert found.redundancy == pytest.approx(np.array([[0, 0.6, 0.75], [0, 0.2, 0.5], [0, 0, 0], [0, 0, 0]]))
    assert found.beta == pytest.approx(np.array([[1, 1 / 1.6, 1 / 1.75], [1, 1 / 1.2, 1 / 1.5], [1] * 3, [1] * 3]))


def test_a_network_without_counted_convolutions_is_not_reduced():
    assert (scaling(4, p=(0, 0, 0, 0)).beta == 1).all()


def test_the_listing_of_the_paper():
    """The loops of Algorithm 1 as they are printed, on random convolutions."""
    random = np.random.default_rng(0)
    n, blocks = 30, 5
    p, flops = random.uniform(0, 1, n), random.integers(1, 1000, n)
    block = np.sort(np.append(random.integers(0, blocks, n - blocks), range(blocks)))
    fields = np.cumsum(random.integers(0, 9, n)).astype(float)
    for z in (0.0, 20.0, 60.0, 1000.0):
        limit = min((field for field in fields if field > z), default=math.inf)
        beta = []
        for i in range(blocks):
            e_total = e_base = 0.0
            for j in range(n):
                if block[j] <= i:
                    e_total += p[j] * flops[j]
                if fields[j] <= limit:
                    e_base += p[j] * flops[j]
            beta.append(1 / (1 + (1 - e_base / e_total)) if e_total > e_base else 1)
        found = macroblock_scaling(p, flops, block.tolist(), fields[:, None], np.array([[z]]))
        assert found.beta[0] == pytest.approx(beta)


def test_boundary_is_the_smallest_receptive_field_above_the_threshold():
    fields = np.array([[3.0], [17.0], [33.0], [41.0]])
    assert boundaries(fields, np.array([[32.0], [33.0], [41.0]])).tolist() == [[33.0], [41.0], [math.inf]]


def test_the_layer_at_the_boundary_is_a_base_layer():
    assert base_layers(np.array([[33.0], [41.0]]), np.array([[33.0]])).tolist() == [[True, False]]


def test_on_a_rectangle_an_enhancement_layer_exceeds_every_axis():
    assert base_layers(np.array([[41.0, 41.0], [73.0, 73.0]]), np.array([[33.0, 65.0]])).tolist() == [[True, False]]


def test_a_convolution_with_fewer_axes_is_judged_by_those_it_has():
    fields = on_axes([(5.0, 7.0), (9.0,)], 2)
    assert fields.tolist() == [[5.0, 7.0], [math.inf, 9.0]]
    assert base_layers(fields, np.array([[8.0, 8.0], [8.0, 9.0]])).tolist() == [[True, False], [True, True]]


def test_equations_solved_for_what_enters_them():
    # r = 0.25: beta = 1 / 1.25 = 0.8; with E_total = 40 that is E_base = 30.
    assert scaling_factor(0.25) == pytest.approx(0.8)
    assert redundancy_of(0.8) == pytest.approx(0.25)
    assert redundancy(40, 30) == pytest.approx(0.25)
    assert base_flops_of(np.array([0.8, 1.0]), 40) == pytest.approx([30, 40])


@pytest.mark.parametrize(
    ("beta", "width", "expected"),
    [(453 / 512, 512, 453), (444 / 480, 480, 444), (0.5, 3, 2), (1.0, 7, 7), (1e-6, 5, 1), (1 / 1.2, 12, 10)],
)
def test_widths_round_up_but_not_by_rounding_error(beta, width, expected):
    assert scaled_width(beta, width) == expected
