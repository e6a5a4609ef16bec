"""Labels move as data do: every operation against numpy on the expanded labels."""

import numpy as np
import pytest

from mbs_fx.channels import labels as move
from mbs_fx.channels.labels import along
from mbs_fx.channels.ties import Ties, components


def expanded(labels, shape):
    """One array per factor at the tensor's full shape."""
    return [np.broadcast_to(f, shape) for f in labels]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, 6, 4, 4), (2, 96)),
        ((2, 6, 4, 4), (2, 3, 2, 4, 4)),
        ((2, 6, 4, 4), (2, 6, 16)),
        ((2, 6, 1, 1), (2, 6)),
        ((2, 6), (2, 6, 1, 1)),
        ((1, 6, 4), (6, 4)),
        ((4, 6, 2), (2, 2, 12)),
    ],
)
def test_reshape_moves_labels_like_data(before, after):
    ties = Ties()
    labels = along(ties.new(6), 1 if before[0] != 6 else 0, len(before))
    moved = move.reshape(labels, before, after, ties, "")
    full = expanded(labels, before)[0].reshape(after)
    assert (expanded(moved, after)[0] == full).all()


def test_reshape_that_merges_two_kinds_of_channels_freezes_both():
    ties = Ties()
    rows, columns = ties.new(4), ties.new(3)
    moved = move.reshape((*along(rows, 0, 2), *along(columns, 1, 2)), (4, 3), (12,), ties, "merged")
    hard, _, _ = ties.resolve()
    assert moved == ()
    assert {int(r) for r in ties.frozen(hard)} >= {*rows.tolist(), *columns.tolist()}


def test_elementwise_ties_operands_and_broadcasts():
    ties = Ties()
    a, b = ties.new(5), ties.new(5)
    met = move.elementwise([(along(a, 1, 4), (2, 5, 3, 3)), (along(b, 1, 4), (2, 5, 1, 1))], (2, 5, 3, 3), ties, "")
    hard, _, _ = ties.resolve()
    assert (hard[a] == hard[b]).all()
    assert met[0].shape == (1, 5, 1, 1)


def test_a_single_channel_broadcast_over_channels_binds_nothing():
    ties = Ties()
    a = ties.new(5)
    move.elementwise([(along(a, 1, 4), (2, 5, 3, 3)), ((), (2, 1, 3, 3))], (2, 5, 3, 3), ties, "")
    hard, _, _ = ties.resolve()
    assert not set(a.tolist()) & set(ties.frozen(hard))


def test_an_operand_without_labels_freezes_what_it_meets():
    ties = Ties()
    a = ties.new(5)
    move.elementwise([(along(a, 1, 4), (2, 5, 3, 3)), ((), (2, 5, 3, 3))], (2, 5, 3, 3), ties, "the input")
    hard, _, _ = ties.resolve()
    assert [ties.frozen(hard)[int(x)] for x in a] == ["the input"] * 5


def test_concatenation_keeps_order_and_marks_fixed_positions():
    ties = Ties()
    a = ties.new(3)
    joined = move.concatenate([(along(a, 1, 2), (2, 3)), ((), (2, 2))], 1, ties, "")
    assert joined[0].tolist() == [[*a.tolist(), 0, 0]]


def test_concatenation_along_another_axis_ties_channels():
    ties = Ties()
    a, b = ties.new(3), ties.new(3)
    move.concatenate([(along(a, 2, 3), (2, 1, 3)), (along(b, 2, 3), (2, 4, 3))], 1, ties, "")
    hard, _, _ = ties.resolve()
    assert (hard[a] == hard[b]).all()


def test_sum_over_one_of_two_label_axes_ties_across_it():
    ties = Ties()
    a = ties.new(6)
    split = move.reshape(along(a, 1, 2), (2, 6), (2, 2, 3), ties, "")
    left, mixed = move.reduce(split, [1], False, ties)
    hard, _, _ = ties.resolve()
    assert not mixed
    assert (hard[a[:3]] == hard[a[3:]]).all()
    assert left[0].shape == (1, 3)


def test_balance_ties_only_softly():
    ties = Ties()
    a = ties.new(6)
    ties.balance(a, 2)
    hard, soft, steps = ties.resolve()
    assert len(set(hard[a])) == 6
    assert len(set(soft[a])) == 3
    assert set(steps[a]) == {2}


def test_components_against_networkx():
    import networkx as nx

    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 300, (2, 250))
    graph = nx.Graph(zip(a.tolist(), b.tolist(), strict=True))
    graph.add_nodes_from(range(300))
    found = components(300, [(a, b)])
    for group in nx.connected_components(graph):
        assert {int(found[i]) for i in group} == {min(group)}


def test_blocks_of_equal_volume():
    assert move.blocks((2, 6, 4), (2, 3, 2, 4)) == [([0], [0]), ([1], [1, 2]), ([2], [3])]
