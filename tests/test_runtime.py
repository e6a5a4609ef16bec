"""Helpers that every pass uses: random states, tables by identity, copies that share tensors."""

from __future__ import annotations

import gc
import random

import numpy as np
import pytest
import torch
from torch import nn

from mbs_fx.runtime.by_identity import ByIdentity
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.shapes.graph_attributes import attribute, shallow_copy


def drawn(generator: torch.Generator) -> tuple[float, ...]:
    own = torch.rand(1, generator=generator).item()
    return random.random(), np.random.random(), torch.rand(1).item(), own


def fail_after_drawing(generator: torch.Generator) -> None:
    with random_state_kept(torch.device("cpu"), [generator]):
        torch.manual_seed(5)
        drawn(generator)
        raise KeyError


def test_every_generator_goes_on_where_it_was() -> None:
    generator = torch.Generator().manual_seed(1)
    with random_state_kept(generators=[generator]):
        expected = drawn(generator)
    with pytest.raises(KeyError):
        fail_after_drawing(generator)
    assert drawn(generator) == expected


def test_a_table_by_identity_computes_once_and_keeps_its_keys_alive() -> None:
    table: ByIdentity[list[int], int] = ByIdentity()
    key = [1, 2]
    assert table.get(key, sum) == 3
    key.append(3)
    assert table.get(key, sum) == 3
    assert table.get([1, 2], sum) == 3
    gc.collect()  # were the last key not kept, the next could take its identity
    assert table.get([1, 2, 4], sum) == 7


def test_a_shallow_copy_shares_tensors_and_no_container() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    twin = shallow_copy(net[0])
    assert twin.weight is net[0].weight
    twin._parameters["weight"] = nn.Parameter(torch.zeros(1))
    twin.register_forward_hook(lambda *_: None)
    assert net[0].weight.shape == (2, 1, 3, 3)
    assert not net[0]._forward_hooks
    assert attribute(net, "1.running_mean") is net[1].running_mean
