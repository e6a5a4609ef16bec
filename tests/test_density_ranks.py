"""Measuring with two processes."""

from __future__ import annotations

from pathlib import Path

import density_worker
import pytest
import two_ranks

from mbs_fx.results.density import Density

pytestmark = two_ranks.needs_gloo

WORKER = Path(density_worker.__file__)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """What two ranks wrote, and their exit codes."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, two_ranks.run(WORKER, folder)


def read(ended: tuple[Path, list[int]], name: str) -> list[str]:
    return [path.read_text() for path in sorted(ended[0].glob(f"{name}.*"))]


def test_two_ranks_and_one_come_to_the_same_bits(ended: tuple[Path, list[int]]) -> None:
    alone = density_worker.run().to_json()
    assert read(ended, "whole") == [alone, alone]


def test_ranks_stop_together(ended: tuple[Path, list[int]]) -> None:
    first, second = read(ended, "stops")
    assert first == second
    assert Density.from_json(first).images < 60


def test_an_error_on_one_rank_reaches_all(ended: tuple[Path, list[int]]) -> None:
    first, second = read(ended, "fails")
    assert first == second
    assert "disk on fire" in first


def test_a_rank_that_dies_makes_the_other_fail(ended: tuple[Path, list[int]]) -> None:
    """Both ended by themselves, and were not stopped for taking too long."""
    assert sorted(ended[1]) == [0, 7]
    (message,) = read(ended, "dies")
    assert "lost the others" in message
