"""Reconstruction: every layer's fit against numpy on explicit patches, whole networks, and what stays untouched."""

import copy

import numpy as np
import pytest
import torch
import wirings
from torch import nn
from torch.nn import functional as F

import mbs_fx
from mbs_fx.reconstruction.few_rows import Rows, Span
from mbs_fx.reconstruction.linear_forms import LinearForm, form_of
from mbs_fx.reconstruction.readers import reader
from mbs_fx.reconstruction.solve import Sums, fit, solve

KINDS = [
    name
    for name, held in vars(wirings).items()
    if isinstance(held, type) and issubclass(held, wirings.Net) and held is not wirings.Net
]


def images_for(seed=0, count=24):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def halved(model, example, **kw):
    """A module's trace, and what it becomes at half of every width that can be chosen."""
    gm = mbs_fx.trace(model.eval(), example)
    analysis = mbs_fx.analyze(gm, example)
    plan = mbs_fx.plan(analysis, betas={block.index: 0.5 for block in analysis.macroblocks})
    return gm, mbs_fx.rewrite(gm, plan, **kw)


LAYERS = {
    "conv": (nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=1), (6, 9, 9)),
    "dilated": (nn.Conv2d(6, 8, 3, padding=2, dilation=2), (6, 9, 7)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), (6, 9, 9)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6, padding=1), (6, 9, 9)),
    "same": (nn.Conv2d(4, 4, 3, padding="same", dilation=2), (4, 7, 7)),
    "circular": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), (4, 7, 7)),
    "line": (nn.Conv1d(4, 5, 5, stride=3, padding=2), (4, 17)),
    "solid": (nn.Conv3d(3, 4, 3, padding=1), (3, 5, 4, 6)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1), (6, 5, 5)),
    "transposed in groups": (nn.ConvTranspose2d(6, 9, 3, stride=2, groups=3, dilation=2), (6, 5, 5)),
    "transposed line": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (4, 9)),
    "linear": (nn.Linear(6, 4), (6,)),
    "linear on a map": (nn.Linear(6, 4), (5, 3, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weights_are_the_layer(name):
    layer, shape = LAYERS[name]
    gm = mbs_fx.trace(nn.Sequential(layer), torch.zeros(2, *shape))
    node = next(node for node in gm.graph.nodes if node.op == "call_module")
    form = form_of(gm, node, {})
    value = torch.randn(3, *shape)
    with torch.no_grad():
        wanted = layer(value)
        chosen = torch.randperm(form.positions(wanted))[:7]
        patches = form.patches(value, tuple(wanted.shape), chosen)
        matrix = form.matrix(layer.weight)
        given = patches.double() @ matrix.transpose(1, 2) + layer.bias.double().reshape(matrix.shape[:2])[:, None]
    assert torch.allclose(given.float(), form.outputs(wanted, chosen), atol=1e-5)
    assert patches.shape[2] == form.unknowns(value)
    assert torch.equal(form.weight(matrix, layer.weight), layer.weight)


def test_a_fit_without_regularisation_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    u, y = (torch.randn(1, 50, n, generator=generator).double() for n in (6, 3))
    start, bias = torch.zeros(1, 3, 6).double(), torch.zeros(1, 3).double()
    weight, shift = solve(Sums.of(u, y, y), start, bias, True, 1e-12)
    rows = np.concatenate([u[0].numpy(), np.ones((50, 1))], 1)
    wanted = np.linalg.lstsq(rows, y[0].numpy(), rcond=None)[0]
    assert np.allclose(weight[0].numpy().T, wanted[:-1], atol=1e-8)
    assert np.allclose(shift[0].numpy(), wanted[-1], atol=1e-8)


def test_errors_from_sums_are_errors_of_rows():
    generator = torch.Generator().manual_seed(0)
    u, y, w, b = (torch.randn(*s, generator=generator).double() for s in ((2, 40, 5), (2, 40, 3), (2, 3, 5), (2, 3)))
    wanted = (y - u @ w.transpose(1, 2) - b[:, None]).square().mean(1)
    assert torch.allclose(Sums.of(u, y, y).error(w, b), wanted)
    assert torch.allclose((Sums.of(u[:, :9], y[:, :9], y) + Sums.of(u[:, 9:], y[:, 9:], y)).error(w, b), wanted)


@pytest.mark.parametrize("free", [True, False])
def test_the_multiple_is_the_one_with_the_least_error_on_images_held_back(free):
    generator = torch.Generator().manual_seed(0)
    u, w0, w1, b, noise, scale = (
        torch.randn(*shape, generator=generator).double()
        for shape in ((2, 60, 12), (2, 3, 12), (2, 3, 12), (2, 3), (2, 60, 3), (2, 3))
    )
    y = (u + 1) @ w1.transpose(1, 2) + 2 * noise
    fitted, held = (Sums.of(u[:, part] + 1, y[:, part], y[:, part]) for part in (slice(40), slice(40, None)))
    errors = {m: held.error(*solve(fitted, w0, b, free, m)) for m in (1e-3, 1e-1, 1.0, 10.0)}
    best = min(errors, key=lambda m: float((errors[m] * scale.square()).sum()))
    found = fit(fitted, held, w0, b, free, scale.square(), tuple(errors))
    assert found.regularisation == best
    assert torch.allclose(found.after, errors[best])
    assert torch.allclose(found.weight, solve(fitted + held, w0, b, free, best)[0])


def test_few_positions_give_the_same_weights_in_the_span_of_their_patches():
    generator = torch.Generator().manual_seed(0)
    u, y, weight, bias = (torch.randn(*s, generator=generator).double() for s in ((20, 50), (20, 3), (3, 50), (3,)))
    rows = Rows(u[None], y[None], y[None], 15)
    weight, bias = weight[None], bias[None]
    span = Span.of([rows.patches], weight)
    found = []
    for each, start in ((rows, weight), (span.written(rows), span.start(weight))):
        halves = (Sums.of(each.patches[:, p], each.targets[:, p], y[None, p]) for p in (slice(15), slice(15, None)))
        found.append(fit(*halves, start, bias, True, torch.ones(1, 3), (1e-2, 1.0), width=50))
    direct, spanned = found[0], span.whole(found[1], weight)
    assert direct.regularisation == spanned.regularisation
    assert torch.allclose(direct.weight, spanned.weight)
    assert torch.allclose(direct.bias, spanned.bias)


def test_weights_stay_where_nothing_is_better_on_images_held_back():
    u = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0)).double()
    weight, bias = torch.ones(1, 2, 4).double(), torch.zeros(1, 2).double()
    y = u @ weight.transpose(1, 2)
    noise = y + torch.randn(1, 30, 2, generator=torch.Generator().manual_seed(1))
    found = fit(Sums.of(u, noise, y), Sums.of(u, y, y), weight, bias, True, torch.ones(1, 2))
    assert found.regularisation is None
    assert torch.equal(found.weight, weight)
    assert torch.equal(found.before, found.after)


def test_a_reader_prices_removals_by_what_compensation_leaves():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 7, generator=generator).double() @ torch.randn(7, 7, generator=generator).double()
    weight = torch.randn(1, 3, 7, generator=generator).double()
    held = reader(LinearForm(None), weight, x.T @ x / len(x), np.arange(7))
    ridge = 1e-2 * float((x.T @ x / len(x)).diagonal().mean())
    moments = (x.T @ x / len(x)).numpy() + ridge * np.eye(7)
    products = (weight[0].T @ weight[0]).numpy()

    def loss(gone):
        """tr(A S) with S the Schur complement of the kept channels."""
        kept = [c for c in range(7) if c not in gone]
        cross = moments[np.ix_(gone, kept)]
        unexplained = moments[np.ix_(gone, gone)] - cross @ np.linalg.inv(moments[np.ix_(kept, kept)]) @ cross.T
        return np.trace(products[np.ix_(gone, gone)] @ unexplained)

    gone = []
    for c in (4, 0, 5):
        assert np.allclose(held.costs()[c] * held.energy, loss([*gone, c]) - (loss(gone) if gone else 0))
        held.remove(c)
        gone.append(c)


@pytest.mark.parametrize("name", KINDS)
def test_every_wiring_runs_and_no_layer_is_worse(name):
    torch.manual_seed(0)
    images = images_for()
    gm, small = halved(getattr(wirings, name)(), images[:2])
    refitted = mbs_fx.reconstruct(small, gm, images)
    before, after = small.state_dict(), refitted.state_dict()
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    report = refitted.meta["mbs_reconstruction"]
    assert all(layer.after <= layer.before for layer in report.layers)
    assert refitted(images).isfinite().all()
    mixers = {layer.path for layer in report.layers} | set(report.left)
    assert "fc" in mixers or "tail2" in mixers
    assert mbs_fx.Reconstruction.from_dict(report.to_dict()) == report
    assert all(layer.path in str(report) for layer in report.layers)


class Chain(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 8, 3, bias=False), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def test_a_layer_is_the_least_squares_of_all_its_patches():
    torch.manual_seed(0)
    images = images_for(count=40)
    gm, small = halved(Chain(), images[:2])
    refitted = mbs_fx.reconstruct(small, gm, images, regularisation=1e-9)
    kept = list(small.meta["mbs"].channels["b"])
    with torch.no_grad():
        patches = F.unfold(F.relu(small.a(images)), 3).transpose(1, 2).flatten(0, 1).double().numpy()
        wanted = gm.b(F.relu(gm.a(images)))[:, kept].permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    solution = np.linalg.lstsq(patches, wanted, rcond=None)[0].T
    assert np.allclose(refitted.b.weight.detach().flatten(1).numpy(), solution, atol=1e-4)
    assert "a" in refitted.meta["mbs_reconstruction"].left


def test_whole_widths_give_the_same_weights_bit_for_bit():
    images = images_for()
    gm = mbs_fx.trace(wirings.Residual().eval(), images[:2])
    analysis = mbs_fx.analyze(gm, images[:2])
    small = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, keep=[conv.target for conv in analysis.convs]))
    refitted = mbs_fx.reconstruct(small, gm, images)
    assert not refitted.meta["mbs_reconstruction"].layers
    assert all(torch.equal(v, small.state_dict()[k]) for k, v in refitted.state_dict().items())


def test_a_redundant_network_comes_back_whole():
    """Every channel stands twice, so that half of them carry everything: the outputs return to rounding."""
    torch.manual_seed(0)
    model = Chain()
    with torch.no_grad():
        model.a.weight[6:], model.a.bias[6:] = 2 * model.a.weight[:6], 2 * model.a.bias[:6]
        model.b.weight[4:] = 3 * model.b.weight[:4]
    images = images_for(count=64)
    gm = mbs_fx.trace(model.eval(), images[:2])
    plan = mbs_fx.plan(mbs_fx.analyze(gm, images[:2]), widths={"a": 6, "b": 4})
    small = mbs_fx.rewrite(gm, mbs_fx.choose_channels(gm, plan, images))
    refitted = mbs_fx.reconstruct(small, gm, images)
    kept = small.meta["mbs"].channels
    assert {c % 6 for c in kept["a"]} == set(range(6))
    assert {c % 4 for c in kept["b"]} == set(range(4))
    assert torch.allclose(refitted(images), gm(images), atol=1e-2)
    assert refitted.meta["mbs_reconstruction"].output[1] < 0.01


def test_graph_and_module_give_equal_weights():
    torch.manual_seed(0)
    images, model = images_for(), wirings.Residual().eval()
    gm, small = halved(model, images[:2])
    module = mbs_fx.rewrite(model, small.meta["mbs"])
    a = mbs_fx.reconstruct(small, gm, images)
    b = mbs_fx.reconstruct(module, model, images)
    assert type(b) is wirings.Residual
    held = b.state_dict()
    assert all(torch.equal(v, held[k]) for k, v in a.state_dict().items())


def test_nothing_that_is_given_changes():
    images, model = images_for(), wirings.Residual()
    model.a.weight.requires_grad_(False)
    called = []
    small = halved(model, images[:2])[1]
    module = mbs_fx.rewrite(model, small.meta["mbs"]).train()
    module.register_forward_hook(lambda *_: called.append(1))
    states = copy.deepcopy((model.state_dict(), module.state_dict()))
    seed = torch.get_rng_state()
    refitted = mbs_fx.reconstruct(module, model, images)
    assert torch.equal(seed, torch.get_rng_state())
    for before, after in zip(states, (model.state_dict(), module.state_dict()), strict=True):
        assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert refitted.training
    assert not refitted.a.weight.requires_grad
    assert not called
    assert len(refitted._forward_hooks) == 1
    assert "mbs_reconstruction" not in module.meta


def test_a_second_time_starts_from_what_the_first_gave():
    torch.manual_seed(0)
    images = images_for()
    gm, small = halved(wirings.Concatenation(), images[:2])
    once = mbs_fx.reconstruct(small, gm, images)
    twice = mbs_fx.reconstruct(once, gm, images)
    assert twice.meta["mbs_reconstruction"].output[1] <= once.meta["mbs_reconstruction"].output[1] * 1.05


def test_few_values_at_a_time_give_the_same_weights_where_all_fit(monkeypatch):
    from mbs_fx.reconstruction import reconstruct as module

    torch.manual_seed(0)
    images = images_for(count=30)
    gm, small = halved(wirings.Residual(), images[:2])
    whole = mbs_fx.reconstruct(small, gm, images, batch_size=5)
    monkeypatch.setattr(module, "BUDGET", {"cpu": 1})
    tight = mbs_fx.reconstruct(small, gm, images, batch_size=5)
    assert {layer.images for layer in whole.meta["mbs_reconstruction"].layers} == {30}
    assert {layer.images for layer in tight.meta["mbs_reconstruction"].layers} == {5}


def test_reduce_reconstructs_and_evaluates():
    torch.manual_seed(0)
    images, model = images_for(count=40), wirings.Residual().eval()
    widths = {"stem.0": 8, "a": 8}
    small = mbs_fx.reduce(model, images, widths=widths, evaluate=lambda m: float(m(images).detach().square().mean()))
    assert small.meta["mbs_reconstruction"].layers
    assert list(mbs_fx.plan_of(small).accuracy) == ["original", "inherited", "reconstructed"]
    plain = mbs_fx.reduce(model, images, widths=widths, reconstruct=False)
    assert "mbs_reconstruction" not in plain.meta
    once = mbs_fx.reduce(model, iter(images.split(10)), widths=widths)
    assert once.meta["mbs_reconstruction"].images == 40


def test_statistics_in_opaque_segments_are_measured_anew():
    torch.manual_seed(0)
    images = images_for()
    unit = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))
    head = nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), unit, nn.ReLU(), *head)
    gm = mbs_fx.trace(model.eval(), images[:2])
    analysis = mbs_fx.analyze(gm, images[:2], opaque=["^2$"])
    small = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={b.index: 0.5 for b in analysis.macroblocks}))
    refitted = mbs_fx.reconstruct(small, gm, images)
    report = refitted.meta["mbs_reconstruction"]
    assert "2.1" in report.recalibrated
    assert "opaque" in report.left["2.0"]


BAD = {
    "no plan": (lambda s, g, x: (mbs_fx.trace(wirings.Residual(), x[:2]), g, x), "carries no plan"),
    "other original": (lambda s, g, x: (s, mbs_fx.trace(wirings.Depthwise().eval(), x[:2]), x), "does not fit"),
    "size": (lambda s, g, x: (s, g, torch.randn(8, 3, 9, 9)), "3 x 9 x 9"),
    "NaN": (lambda s, g, x: (s, g, x * torch.nan), "the image itself holds NaN"),
    "few": (lambda s, g, x: (s, g, x[:3]), "3 images are too few"),
    "none": (lambda s, g, x: (s, g, []), "no images"),
    "no network": (lambda s, g, x: ("small", g, x), "small is a str"),
    "training": (lambda s, g, x: (s, g.train(), x), "training mode"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name):
    make, message = BAD[name]
    images = images_for()
    gm, small = halved(wirings.Residual(), images[:2])
    with pytest.raises(mbs_fx.MBSError, match=message) as error:
        mbs_fx.reconstruct(*make(small, gm, images))
    assert "\n" not in str(error.value)


def test_an_original_that_changed_is_refused():
    images = images_for()
    gm, small = halved(wirings.Residual(), images[:2])
    with torch.no_grad():
        gm.get_submodule("b").weight.mul_(1.01)
    with pytest.raises(mbs_fx.MBSError, match=r"b\.weight of the small network is not what it inherits"):
        mbs_fx.reconstruct(small, gm, images)
    gm, fresh = halved(wirings.Residual(), images[:2], init="fresh")
    with pytest.raises(mbs_fx.MBSError, match="fresh weights"):
        mbs_fx.reconstruct(fresh, gm, images)


@pytest.mark.parametrize("change", [{"max_images": 2}, {"regularisation": 0.0}, {"batch_size": 0}, {"workers": -1}])
def test_arguments_are_checked(change):
    images = images_for()
    gm, small = halved(wirings.Residual(), images[:2])
    with pytest.raises(mbs_fx.MBSError, match=next(iter(change))):
        mbs_fx.reconstruct(small, gm, images, **change)
