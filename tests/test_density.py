"""What `measure` counts, and that it changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from density_helpers import SHAPE, Pairs, chain_analysis, graph, oracle, rerouted, small_net, whole
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import mbs_fx
from mbs_fx.density import counting
from mbs_fx.errors import MBSError
from mbs_fx.results.analysis import Activation
from mbs_fx.results.density import Density


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


class Dense(nn.Module):
    """Every layer reads all channels before it, through a normalisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.linear = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.linear(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("build", [small_net, Twice, Spellings, Dense])
def test_the_fast_copy_runs_and_counts_the_same(build: Callable[[], nn.Module]) -> None:
    """Folding rounds differently, so that a value next to zero may change its sign."""
    gm = fx.symbolic_trace(build().eval())
    images, analysis = torch.randn(20, 3, 16, 16), mbs_fx.analyze(gm, SHAPE)
    exact, fast = (whole(gm, images, analysis=analysis, fast=fast) for fast in (False, True))
    assert not [note for note in fast.notes if "fast copy" in note]
    for name, p in exact.p.items():
        assert fast.p[name] == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dims", [(1, 2, 3), (2, 3), (1,)])
@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (1, 1, 1, 131), (2, 64, 16, 16)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_counts_are_exact_where_sums_are_cut_into_pieces(
    shape: tuple[int, ...], dims: tuple[int, ...], turned: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "CACHED", 64)
    x = torch.randn(shape).relu_() - torch.randn(shape).relu_()
    x = torch.where(x == 0, -0.0, x).to(dtype)  # zeros of either sign are zeros
    x = x.contiguous(memory_format=torch.channels_last) if turned else x
    assert torch.equal(counting.nonzeros(x, dims, signed=True), (x != 0).sum(dims))
    sparse = (x > 0).sum(dims)
    assert torch.equal(counting.nonzeros(x, dims, False, torch.relu_), sparse)
    assert torch.equal((x != 0).sum(dims), sparse)


def test_a_row_longer_than_two_bytes_count_is_exact() -> None:
    x = torch.ones(2, 1, 1, 70_001, dtype=torch.bfloat16)  # a prime above 2 ** 16: no pieces, no sum in int16
    assert counting.nonzeros(x, (1, 2, 3), signed=False).tolist() == [70_001, 70_001]


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
    fast = whole(gm, images, fast=True)
    assert fast.nonzero == whole(gm, images).nonzero
    assert any("does not run as a fast copy (channels last, float32)" in note for note in fast.notes)


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


def test_a_file_that_is_no_density_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name in ("absent", "bytes"):
        with pytest.raises(MBSError, match=name):
            Density.load(tmp_path / name)


def test_a_density_belongs_to_its_graph_at_any_input_size() -> None:
    gm = graph()
    density = mbs_fx.measure(gm, torch.randn(4, 3, 16, 16))
    density.check(mbs_fx.analyze(gm, (1, 3, 32, 32)))
    gm.conv3 = nn.Conv2d(8, 12, 1)
    with pytest.raises(MBSError, match="another graph"):
        density.check(mbs_fx.analyze(gm, SHAPE))


def test_values_that_overflow_in_the_copy_alone_are_an_error() -> None:
    gm = graph()
    with torch.no_grad():
        gm.conv1.weight.mul_(1e6)
    with pytest.raises(MBSError, match=r"overflow in the copy for measuring .*float16"):
        whole(gm, torch.randn(4, 3, 16, 16), fast=True, dtype=torch.float16)


def test_a_compiled_graph_counts_the_same() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval())
    images = torch.randn(10, 3, 16, 16)
    assert whole(gm, images, compile=True, batch_size=4).nonzero == whole(gm, images, fast=True).nonzero
