"""Ctrl-C, checkpoints, and going on from them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from density_helpers import chain_analysis, small_net
from torch import Tensor, fx
from torch.utils.data import Dataset

from mbs_fx.density import reading
from mbs_fx.density.measure import measure
from mbs_fx.errors import MBSError
from mbs_fx.results.density import Density


class Images(Dataset[Tensor]):
    """Random images; something happens when the ``at``-th is read."""

    def __init__(self, at: int | None = None, happens: Any = None) -> None:
        self.images = torch.randn(60, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        self.at, self.happens, self.reads = at, happens, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        if self.reads == self.at:
            self.happens()
        return self.images[index] + torch.rand(())


def run(images: Any, **settings: Any) -> Density:
    gm = fx.symbolic_trace(small_net())
    settings = {"analysis": chain_analysis(gm, (1, 3, 16, 16)), "confidence": None, "batch_size": 7} | settings
    return measure(gm, images, **settings)


def interrupt() -> None:
    raise KeyboardInterrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("happens", "images"), [(interrupt, 21), (press, 28)])
def test_ctrl_c_gives_what_was_measured_so_far(happens: Any, images: int) -> None:
    partial = run(Images(25, happens))
    assert partial.partial
    assert partial.images == images
    assert partial.p == run(Images(), max_images=images).p
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_before_the_first_batch_is_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Images(2, interrupt))


@pytest.mark.parametrize("happens", [interrupt, press])
def test_an_interrupted_measurement_resumes_exactly(happens: Any, tmp_path: Path) -> None:
    file = tmp_path / "state"
    assert run(Images(25, happens), checkpoint=file).partial
    images = Images()
    resumed = run(images, checkpoint=file)
    assert resumed == run(Images())
    assert images.reads < 60
    again = Images()
    assert run(again, checkpoint=file) == resumed
    assert again.reads <= 8


def test_a_killed_measurement_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "QUEUE", 2)

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    with pytest.raises(Killed):
        run(Images(40, kill), checkpoint=tmp_path / "state")
    images = Images()
    assert run(images, checkpoint=tmp_path / "state") == run(Images())
    assert images.reads < 60
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_what_was_measured_before_a_failure_is_kept(tmp_path: Path) -> None:
    def fire() -> None:
        raise OSError("disk on fire")

    with pytest.raises(MBSError, match="disk on fire"):
        run(Images(40, fire), checkpoint=tmp_path / "state")
    images = Images()
    assert run(images, checkpoint=tmp_path / "state") == run(Images())
    assert images.reads == 60 - 35 + 1


def test_the_last_batch_may_be_smaller_and_is_not_what_the_graph_is_analyzed_for(tmp_path: Path) -> None:
    assert run(Images(58, interrupt), checkpoint=tmp_path / "state", analysis=None).images == 56
    assert run(Images(), checkpoint=tmp_path / "state", analysis=None) == run(Images(), analysis=None)


def test_an_iterable_resumes_by_skipping(tmp_path: Path) -> None:
    batches = list(Images().images.split(7))

    def cut() -> Any:
        yield from batches[:4]
        raise KeyboardInterrupt

    run(cut(), checkpoint=tmp_path / "state")
    assert run(iter(batches), checkpoint=tmp_path / "state") == run(iter(batches))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"max_images": 30},
        {"batch_size": 5},
        {"dtype": torch.float64},
        {"images": torch.randn(9, 3, 16, 16)},
    ],
)
def test_a_checkpoint_of_another_measurement_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    run(Images(25, interrupt), checkpoint=tmp_path / "state")
    images = change.pop("images", Images())
    with pytest.raises(MBSError, match="another measurement"):
        run(images, checkpoint=tmp_path / "state", **change)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(MBSError, match="checkpoint"):
        run(Images(), checkpoint=tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "hello"
    with pytest.raises(MBSError, match="cannot write"):
        run(Images(), checkpoint=tmp_path / "nowhere" / "state")


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    gm = fx.symbolic_trace(small_net())
    settings: dict[str, Any] = {"analysis": chain_analysis(gm, (1, 3, 16, 16)), "checkpoint": tmp_path / "state"}
    measure(gm, Images(25, interrupt), batch_size=7, **settings)
    with torch.no_grad():
        next(gm.parameters()).add_(1)
    with pytest.raises(MBSError, match="weights"):
        measure(gm, Images(), batch_size=7, **settings)


def test_a_bar_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    run(Images())
    assert capsys.readouterr().err == ""
    run(Images(), progress=True)
    assert "/60" in capsys.readouterr().err
