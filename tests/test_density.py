"""What `measure` counts, what it takes as images, and what it refuses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from density_helpers import chain_analysis, oracle, rerouted, small_net
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mbs_fx.analysis import Activation
from mbs_fx.density import measure
from mbs_fx.density_result import Density
from mbs_fx.errors import MBSError

SHAPE = (1, 3, 16, 16)


def graph() -> fx.GraphModule:
    return fx.symbolic_trace(small_net())


def whole(gm: fx.GraphModule, images: Any, **settings: Any) -> Density:
    """Everything is read, by the graph itself."""
    settings = {"analysis": chain_analysis(gm, SHAPE), "confidence": None, "fast": False, **settings}
    return measure(gm, images, **settings)


class Twice(nn.Module):
    """One in-place ReLU module for two convolutions, and an addition into its output."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        y = self.relu(self.norm(self.b(x)))
        y += x
        return y


class Spellings(nn.Module):
    """Six ways to write ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(6))
        self.six = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs[0](x))
        x = torch.relu(self.convs[1](x))
        x = torch.relu_(self.convs[2](x))
        x = self.convs[3](x).relu()
        x = self.convs[4](x).relu_()
        return self.six(self.convs[5](x))


@pytest.mark.parametrize("build", [small_net, Twice, Spellings])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_counts_equal_a_plain_count_exactly(build: Callable[[], nn.Module], batch_size: int) -> None:
    gm = fx.symbolic_trace(build().eval())
    images = torch.randn(20, 3, 16, 16)
    density = whole(gm, images, batch_size=batch_size)
    expected = oracle(gm, list(images.split(batch_size)))
    assert dict(density.nonzero) == expected.nonzero
    assert density.images == 20
    for conv in chain_analysis(gm, SHAPE).convs:
        (activation,) = conv.activations
        shares = np.array(expected.shares[activation])
        assert density.p[conv.name] == pytest.approx(shares.mean(), abs=1e-12)
        assert density.stderr[conv.name] == pytest.approx(shares.std(ddof=1) / np.sqrt(20), abs=1e-12)


def test_counts_equal_forward_hooks() -> None:
    model = small_net()
    gm = fx.symbolic_trace(model)
    images = torch.randn(12, 3, 16, 16)
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: counts.update({name: int(torch.count_nonzero(out))})
            )
    with torch.no_grad():
        model(images)
    for module in model.modules():
        module._forward_hooks.clear()
    density = whole(gm, images)
    assert {n.target: density.nonzero[n.name] for n in gm.graph.nodes if n.name in density.nonzero} == counts


def test_some_channels_of_an_activation() -> None:
    gm = graph()
    analysis = chain_analysis(gm, SHAPE)
    first, second = analysis.convs[0].name, analysis.convs[1].name
    names = list(analysis.activations)
    analysis = rerouted(analysis, first, {names[0]: (0, 3, 5), names[1]: None})
    analysis = rerouted(analysis, second, {names[1]: (7, 2)})
    images = torch.randn(9, 3, 16, 16)
    density = whole(gm, images, analysis=analysis, batch_size=4)
    kept = {}
    with torch.no_grad():
        run = fx.Interpreter(gm, garbage_collect_values=False)
        run.run(images)
        kept = {n.name: v != 0 for n, v in run.env.items() if n.name in names}
    shares = [kept[names[0]][:, [0, 3, 5]].flatten(1), kept[names[1]].flatten(1)]
    expected = sum(s.double().mean(1) for s in shares) / 2
    assert density.p[first] == pytest.approx(float(expected.mean()), abs=1e-12)
    assert density.stderr[first] == pytest.approx(float(expected.std()) / 3, abs=1e-12)
    assert density.p[second] == pytest.approx(float(kept[names[1]][:, [2, 7]].double().mean()), abs=1e-12)


def test_activations_without_zeros_are_not_counted() -> None:
    gm = graph()
    analysis = chain_analysis(gm, SHAPE)
    names = list(analysis.activations)
    dense = {**analysis.activations, names[0]: Activation(names[0], "SiLU", False, 1)}
    analysis = replace(analysis, activations=dense)
    analysis = rerouted(analysis, analysis.convs[1].name, {names[0]: None, names[1]: None})
    density = whole(gm, torch.randn(6, 3, 16, 16), analysis=analysis)
    share = density.nonzero[names[1]] / density.elements[names[1]]
    assert density.p[analysis.convs[0].name] == 1
    assert density.stderr[analysis.convs[0].name] == 0
    assert density.p[analysis.convs[1].name] == pytest.approx((1 + share) / 2)
    assert any("no information" in note for note in density.notes)


def test_fast_densities_agree_within_their_standard_error() -> None:
    gm = graph()
    images = torch.randn(40, 3, 16, 16)
    exact, fast = whole(gm, images), whole(gm, images, fast=True)
    for name, p in exact.p.items():
        assert abs(fast.p[name] - p) < max(exact.stderr[name] / 10, 1e-4)


class Pairs(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index


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


def test_images_of_mixed_sizes_have_equal_weight() -> None:
    gm = graph()
    images = [torch.randn(3, size, size) for size in (16, 24, 16, 24, 32, 16)]
    density = whole(gm, images)
    expected = oracle(gm, [image[None] for image in images])
    for conv in chain_analysis(gm, SHAPE).convs:
        (activation,) = conv.activations
        assert density.p[conv.name] == pytest.approx(np.mean(expected.shares[activation]), abs=1e-12)


class Failing(Dataset[Tensor]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Tensor:
        if index == 50:
            raise OSError("disk on fire")
        return torch.zeros(3, 16, 16)


def failing_batches() -> Iterator[Tensor]:
    yield torch.randn(4, 3, 16, 16)
    raise OSError("disk on fire")


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "empty list": (list, "no images"),
    "empty tensor": (lambda: torch.zeros(0, 3, 16, 16), "no images"),
    "empty iterator": (lambda: iter([]), "no images"),
    "empty loader": (lambda: DataLoader(TensorDataset(torch.zeros(0, 3, 16, 16))), "no images"),
    "one image": (lambda: torch.zeros(3, 16, 16), r"images\[None\]"),
    "bytes": (lambda: [torch.zeros(4, 3, 16, 16, dtype=torch.uint8)], "normalise"),
    "byte dataset": (lambda: torch.zeros(4, 3, 16, 16, dtype=torch.uint8), "normalise"),
    "one channel": (lambda: torch.zeros(4, 1, 16, 16), "takes 3 channels"),
    "channels last": (lambda: torch.zeros(4, 16, 16, 3), "permute to channels first"),
    "too small": (lambda: torch.zeros(4, 3, 2, 2), "cannot run on batch 0"),
    "a path": (lambda: "photos/", "ImageFolder"),
    "a number": (lambda: 5, "int"),
    "strings": (lambda: ["a", "b"], "str"),
    "a dict": (lambda: {"x": torch.zeros(4, 3, 16, 16)}, "dict"),
    "dicts without images": (lambda: [{"label": torch.zeros(4, dtype=torch.long)}], "keys label"),
    "loader that fails": (failing_batches, "batch 1, after 4 images: OSError: disk on fire"),
    "dataset that fails": (Failing, "after .* images: OSError: disk on fire"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_images_are_refused_with_the_reason(bad: str) -> None:
    gm = graph()
    make, message = BAD[bad]
    with pytest.raises(MBSError, match=message):
        whole(gm, make())


@pytest.mark.parametrize(
    "setting",
    [{"confidence": 1.0}, {"max_images": 0}, {"batch_size": 0}, {"z": -1}, {"z": ()}, {"on_nonfinite": "keep"}],
)
def test_bad_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(MBSError, match=next(iter(setting))):
        whole(graph(), torch.zeros(4, 3, 16, 16), **setting)


def test_a_model_in_training_mode_is_refused() -> None:
    gm = fx.symbolic_trace(small_net().train())
    with pytest.raises(MBSError, match=r"\.eval\(\)"):
        whole(gm, torch.zeros(4, 3, 16, 16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_pixel_is_found(value: float) -> None:
    images = torch.randn(10, 3, 16, 16)
    images[7, 1, 2, 3] = value
    with pytest.raises(MBSError, match="image 7 .*the image itself"):
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


@pytest.mark.parametrize("fast", [True, False])
def test_nothing_of_the_model_or_the_random_state_changes(fast: bool) -> None:
    gm = graph()
    before = {k: v.clone() for k, v in gm.state_dict().items()}
    storage = {k: v.data_ptr() for k, v in gm.state_dict().items()}
    code, modes = gm.code, [m.training for m in gm.modules()]
    states = torch.get_rng_state(), random.getstate()
    whole(gm, DataLoader(Pairs(torch.randn(20, 3, 16, 16)), batch_size=5, shuffle=True), fast=fast)
    after = gm.state_dict()
    assert all(torch.equal(v, after[k]) and after[k].data_ptr() == storage[k] for k, v in before.items())
    assert all(p.requires_grad for p in gm.parameters())
    assert (gm.code, modes) == (code, [m.training for m in gm.modules()])
    torch.randn(20, 3, 16, 16)  # what the test itself drew
    assert random.getstate() == states[1]


def test_the_random_state_is_kept() -> None:
    gm, loader = graph(), DataLoader(Pairs(torch.randn(20, 3, 16, 16)), batch_size=5, shuffle=True)
    state = torch.get_rng_state()
    whole(gm, loader)
    assert torch.equal(torch.get_rng_state(), state)


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


class Hungry(nn.Module):
    """Runs out of memory on more than 3 images."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("pretended")
        return x


def test_a_batch_that_does_not_fit_is_halved() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hungry, self.net = Hungry(), small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.hungry(x))

    class KeepHungry(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
            return isinstance(m, Hungry) or super().is_leaf_module(m, qualname)

    net = Net().eval()
    gm = fx.GraphModule(net, KeepHungry().trace(net))
    images = torch.randn(20, 3, 16, 16)
    density = whole(gm, images, batch_size=10)
    assert dict(density.nonzero) == oracle(gm, list(images.split(2))).nonzero
    assert [n for n in density.notes if "halved" in n] == [
        "a batch of 10 images did not fit in memory; halved to 5",
        "a batch of 5 images did not fit in memory; halved to 2",
    ]


def test_a_network_that_insists_on_a_memory_order_is_measured() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(F.relu(self.conv(x)).view(-1, 4 * 16 * 16))

    gm = fx.symbolic_trace(Net().eval())
    images = torch.randn(6, 3, 16, 16)
    assert whole(gm, images, fast=True).nonzero == whole(gm, images).nonzero


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


def test_a_density_survives_json(tmp_path: Any) -> None:
    density = whole(graph(), torch.randn(20, 3, 16, 16), on_nonfinite="skip", z=(0.6, 1.0))
    assert Density.from_json(density.to_json()) == density
    density.save(tmp_path / "density.json")
    assert Density.load(tmp_path / "density.json") == density
    for text in (
        "{",
        "[]",
        '{"format": "mbs_fx.density", "version": 99}',
        density.to_json().replace('"mean": "', '"mean": "!'),
    ):
        with pytest.raises(MBSError, match="density"):
            Density.from_json(text)


def test_a_changed_graph_is_refused() -> None:
    density = whole(graph(), torch.randn(4, 3, 16, 16))
    density.check("hand")
    with pytest.raises(MBSError, match="another graph"):
        density.check("other")


def test_a_compiled_graph_counts_the_same() -> None:
    gm = graph()
    images = torch.randn(20, 3, 16, 16)
    assert whole(gm, images, compile=True, batch_size=8).nonzero == whole(gm, images, fast=True).nonzero
