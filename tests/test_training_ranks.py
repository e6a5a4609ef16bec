"""Training with two processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import training_worker
import two_ranks

pytestmark = two_ranks.needs_gloo

WORKER = Path(training_worker.__file__)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    assert two_ranks.run(WORKER, folder) == [0, 0], (folder / "log").read_text()
    return folder


def test_ranks_end_with_the_weights_of_a_single_process(folder: Path) -> None:
    alone, result = training_worker.train()
    for rank in "01":
        state, accuracy, losses = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(state[name], weight)
        assert accuracy == pytest.approx(result.accuracy)
        assert losses == pytest.approx([epoch.loss for epoch in result.epochs])


def test_only_one_rank_writes(folder: Path) -> None:
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3
    assert (folder / "run.ckpt").exists()


def test_ranks_agree_on_statistics(folder: Path) -> None:
    first, second = (torch.load(folder / f"normalised{rank}.pt", weights_only=True) for rank in "01")
    assert all(torch.equal(first[name], second[name]) for name in first)


def refused(folder: Path, name: str) -> list[str]:
    return [json.loads((folder / f"refused{rank}.json").read_text())[name] for rank in "01"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoint", "rank 1: .*not a checkpoint of retrain"),
        ("epochs", r"epochs in the checkpoint differ between the processes: \(4, 3\), \(4, 0\)"),
        ("test", "rank 1: test batch 1: label 99 is outside the 4 classes"),
        ("same", "2 processes would all read the same batches of this list"),
        ("order", "processes share the test batches in order"),
        ("uneven", r"differ between the processes: \(2, 0\), \(3, 0\)"),
        ("log", "rank 0: .*cannot write there"),
    ],
)
def test_what_one_rank_refuses_all_do(folder: Path, name: str, message: str) -> None:
    first, second = refused(folder, name)
    assert first == second
    assert re.search(message, first)


def test_a_rank_that_fails_in_a_step_takes_the_other_with_it(folder: Path) -> None:
    """Within the seconds of the fixture: it ends, and its connections with it."""
    first, second = refused(folder, "alone")
    assert "epoch 1, step 1: label 10" in second
    assert "Connection" in first
