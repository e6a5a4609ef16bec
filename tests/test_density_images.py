"""What `measure` takes as images, how it samples them, and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from density_helpers import SHAPE, Pairs, chain_analysis, graph, oracle, small_net, whole
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

import mbs_fx
from mbs_fx.density.measure import measure
from mbs_fx.errors import MBSError


class Stream(IterableDataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.images)


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda x: x,
    "list of batches": lambda x: list(x.split(5)),
    "generator": lambda x: iter(x.split(5)),
    "pairs": lambda x: [(b, torch.zeros(len(b))) for b in x.split(5)],
    "dicts by name": lambda x: [{"label": torch.zeros(len(b)), "x": b} for b in x.split(5)],
    "dicts": lambda x: [{"label": torch.zeros(len(b), dtype=torch.long), "pixels": b} for b in x.split(5)],
    "dataset": Pairs,
    "tensor dataset": TensorDataset,
    "single images": list,
    "generator of single images": iter,
    "loader": lambda x: DataLoader(Pairs(x), batch_size=5),
    "shuffling loader": lambda x: DataLoader(Pairs(x), batch_size=5, shuffle=True),
    "loader that drops the last batch": lambda x: DataLoader(Pairs(x), batch_size=10, drop_last=True),
    "loader without batches": lambda x: DataLoader(Pairs(x), batch_size=None),
    "loader over a stream": lambda x: DataLoader(Stream(x), batch_size=5),
    "stream": Stream,
    "not contiguous": lambda x: x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_images_give_the_same_counts(form: str) -> None:
    gm = graph()
    images = torch.randn(20, 3, 16, 16)
    expected = oracle(gm, [images])
    density = whole(gm, FORMS[form](images))
    assert density.images == 20
    assert dict(density.nonzero) == expected.nonzero


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_images_show_the_input_shape(form: str) -> None:
    small = mbs_fx.reduce(graph(), FORMS[form](torch.randn(20, 3, 16, 16)), max_images=5)
    assert small.meta["mbs"].input_shapes[0][1:] == (3, 16, 16)


def test_images_of_mixed_sizes_have_equal_weight() -> None:
    gm = graph()
    images = [torch.randn(3, size, size) for size in (16, 24, 16, 24, 32, 16)]
    density = whole(gm, images)
    expected = oracle(gm, [image[None] for image in images])
    for conv in chain_analysis(gm, SHAPE).convs:
        (activation,) = conv.activations
        assert density.p[conv.name] == pytest.approx(np.mean(expected.shares[activation]), abs=1e-12)
    assert any("24 × 24, 32 × 32" in note for note in density.notes)


class Failing(Dataset[Tensor]):
    """Something happens when image 50 is read."""

    def __init__(self, happens: Callable[[], Any]) -> None:
        self.happens = happens

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Tensor:
        if index == 50:
            self.happens()
        return torch.zeros(3, 16, 16)


def fire() -> None:
    raise OSError("disk on fire")


def failing_batches() -> Iterator[Tensor]:
    yield torch.randn(4, 3, 16, 16)
    fire()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "empty list": (list, "no images"),
    "empty tensor": (lambda: torch.zeros(0, 3, 16, 16), "no images"),
    "empty iterator": (lambda: iter([]), "no images"),
    "empty loader": (lambda: DataLoader(TensorDataset(torch.zeros(0, 3, 16, 16))), "no images"),
    "one image": (lambda: torch.zeros(3, 16, 16), r"images\[None\]"),
    "bytes": (lambda: [torch.zeros(4, 3, 16, 16, dtype=torch.uint8)], "normalise"),
    "byte dataset": (lambda: torch.zeros(4, 3, 16, 16, dtype=torch.uint8), "preparation=mbs_fx.Preparation"),
    "one channel": (lambda: torch.zeros(4, 1, 16, 16), "takes 3 channels"),
    "channels last": (lambda: torch.zeros(4, 16, 16, 3), "permute to channels first"),
    "too small": (lambda: torch.zeros(4, 3, 2, 2), "cannot run on batch 0"),
    "a path": (lambda: "photos/", "'photos/' names image files, to be prepared"),
    "a number": (lambda: 5, "int"),
    "strings": (lambda: ["a", "b"], "str"),
    "a dict": (lambda: {"x": torch.zeros(4, 3, 16, 16)}, "dict"),
    "dicts without images": (lambda: [{"label": torch.zeros(4, dtype=torch.long)}], "keys label"),
    "loader that fails": (failing_batches, "batch 1, after 4 images: OSError: disk on fire"),
    "nothing in the middle": (lambda: [torch.zeros(4, 3, 16, 16), None], "batch 1: input x is a NoneType"),
    "collate function that repeats": (
        lambda: DataLoader(
            Pairs(torch.zeros(4, 3, 16, 16)), 2, collate_fn=lambda items: items[0][0].expand(6, -1, -1, -1)
        ),
        "6 images of 2 items",
    ),
    "dataset that fails": (lambda: Failing(fire), "after .* images: OSError: disk on fire"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_images_are_refused_with_the_reason(bad: str) -> None:
    gm = graph()
    make, message = BAD[bad]
    with pytest.raises(MBSError, match=message):
        whole(gm, make())


@pytest.mark.parametrize(
    "setting",
    [
        {"confidence": 1.0},
        {"max_images": 0},
        {"batch_size": 0},
        {"z": -1},
        {"z": ()},
        {"on_nonfinite": "keep"},
        {"workers": -1},
        {"timeout": 0},
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(MBSError, match=next(iter(setting))):
        whole(graph(), torch.zeros(4, 3, 16, 16), **setting)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch says it again in __del__
@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_that_dies_or_fails_is_an_error(workers: int) -> None:
    happens = fire if not workers else lambda: os._exit(1)
    loader = DataLoader(Failing(happens), batch_size=20, num_workers=workers)
    with pytest.raises(MBSError, match="reading images failed"):
        whole(graph(), loader)


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(self.conv(x)), 0.5, True)


@pytest.mark.parametrize("net", [small_net().train(), Drops().eval()])
def test_a_model_in_training_mode_is_refused(net: nn.Module) -> None:
    with pytest.raises(MBSError, match=r"\.eval\(\)"):
        whole(fx.symbolic_trace(net), torch.zeros(4, 3, 16, 16))


def test_a_model_that_is_not_traced_is_refused() -> None:
    with pytest.raises(MBSError, match="trace"):
        measure(small_net(), torch.zeros(4, 3, 16, 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_pixel_is_found(value: float) -> None:
    images = torch.randn(10, 3, 16, 16)
    images[7, 1, 2, 3] = value
    with pytest.raises(MBSError, match=r"image 7 .*the image itself"):
        whole(graph(), images, batch_size=4)


def test_a_bad_weight_is_found() -> None:
    gm = graph()
    conv = [m for m in gm.modules() if isinstance(m, nn.Conv2d)][1]
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(MBSError, match=r"image 0 .*node conv2 \(module conv2\) gives NaN"):
        whole(gm, [torch.randn(4, 3, 16, 16)])


def test_images_that_are_not_finite_can_be_skipped() -> None:
    gm = graph()
    images = torch.randn(10, 3, 16, 16)
    clean = torch.cat([images[:7], images[8:]])
    images[7, 1, 2, 3] = float("nan")
    density = whole(gm, images, on_nonfinite="skip")
    assert (density.images, density.skipped) == (9, 1)
    assert dict(density.nonzero) == oracle(gm, [clean]).nonzero
    with pytest.raises(MBSError, match="no image was left"):
        whole(gm, images[7:8], on_nonfinite="skip")


def test_a_set_is_sampled_at_random_and_a_seed_repeats_it() -> None:
    gm = graph()
    images = torch.randn(64, 3, 16, 16) * torch.linspace(0.1, 3, 64).view(64, 1, 1, 1)
    runs = [whole(gm, images, max_images=8, seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].nonzero != runs[2].nonzero
    assert runs[0].images == 8
    assert runs[0].population == 64


def test_a_loader_in_order_is_sampled_with_a_notice_when_reading_may_stop() -> None:
    gm = graph()
    images = torch.randn(64, 3, 16, 16)
    loader = DataLoader(TensorDataset(images), batch_size=8)
    sampled = whole(gm, loader, max_images=8)
    assert sampled.nonzero == whole(gm, images, max_images=8).nonzero
    assert any("sampled at random" in note for note in sampled.notes)
    assert not whole(gm, loader).notes


def test_a_loader_over_a_subset_draws_from_the_subset() -> None:
    gm, images = graph(), torch.randn(64, 3, 16, 16)
    loader = DataLoader(TensorDataset(images), batch_size=8, sampler=SubsetRandomSampler(range(10, 30)))
    density = whole(gm, loader)
    assert density.nonzero == oracle(gm, [images[10:30]]).nonzero
    assert density.population == 20


def test_an_iterable_is_read_whole_unless_it_is_shuffled() -> None:
    gm = graph()
    batches = list(torch.randn(100, 3, 16, 16).split(10))
    read = whole(gm, iter(batches), confidence=0.9)
    assert read.images == read.population == 100
    assert any("shuffled=True" in note for note in read.notes)
    assert whole(gm, iter(batches), confidence=0.9, shuffled=True).images < 100
    first = whole(gm, iter(batches), max_images=25)
    assert first.images == 25
    assert any("as they came" in note for note in first.notes)


def test_two_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return F.relu(self.conv(left) - self.conv(right))

    gm = fx.symbolic_trace(Net().eval())
    left, right = torch.randn(2, 6, 3, 16, 16)
    forms = [[(left, right)], [{"right": right, "left": left}], TensorDataset(left, right)]
    counts = [whole(gm, form).nonzero for form in forms]
    assert counts[0] == counts[1] == counts[2] == {"relu": int((gm(left, right) != 0).sum())}
    with pytest.raises(MBSError, match="left, right"):
        whole(gm, [left])
