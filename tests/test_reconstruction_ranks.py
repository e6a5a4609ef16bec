"""Reconstruction with two processes."""

from __future__ import annotations

from pathlib import Path

import reconstruction_worker
import torch
import two_ranks

pytestmark = two_ranks.needs_gloo


def test_ranks_refit_to_the_weights_of_a_single_process(tmp_path: Path) -> None:
    assert two_ranks.run(Path(reconstruction_worker.__file__), tmp_path) == [0, 0], (tmp_path / "log").read_text()
    alone = reconstruction_worker.refitted()
    for rank in "01":
        state = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        for name, weight in alone.items():
            torch.testing.assert_close(state[name], weight, rtol=1e-5, atol=1e-5)
