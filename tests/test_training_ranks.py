"""Training with two processes."""

from __future__ import annotations

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
