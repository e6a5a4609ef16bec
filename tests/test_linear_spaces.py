"""Linear bottlenecks in fewer dimensions, and layers behind an average fitted in front of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mbs_fx
from mbs_fx.reconstruction import reconstruct as reconstructing
from mbs_fx.reconstruction.layers import find_layers, is_plain_norm
from mbs_fx.reconstruction.linear_spaces import find_spaces
from mbs_fx.reconstruction.networks import pair
from mbs_fx.reconstruction.subspaces import _combinations


class Bottleneck(nn.Module):
    """An inverted residual stream: `a` and `c` write its 8 channels, `b` and `d` read them."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.a, self.norm_a = nn.Conv2d(16, 8, 1, bias=False), norm(8)
        self.b = nn.Conv2d(8, 16, 3)
        self.c, self.norm_c = nn.Conv2d(16, 8, 3, padding=2), norm(8)
        self.d, self.fc = nn.Conv2d(8, 16, 1), nn.Linear(16, 4)

    def stream(self, x):
        x = self.norm_a(self.a(F.relu(self.stem(x))))
        return x + self.norm_c(self.c(F.relu(self.b(x))))

    def forward(self, x):
        return self.fc(F.relu(self.d(self.stream(x))).mean((2, 3)))


class Bent(Bottleneck):
    """The same with an activation in the stream."""

    def stream(self, x):
        return F.relu(super().stream(x))


class Scaled(Bottleneck):
    """The same with a factor for every channel of the stream."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)

    def stream(self, x):
        return self.depthwise(super().stream(x))


class Named(nn.BatchNorm2d):
    """A BatchNorm of another class that does the same."""

    def forward(self, x):
        return super().forward(x)


class Active(nn.BatchNorm2d):
    """A BatchNorm with an activation in it."""

    def forward(self, x):
        return F.relu(super().forward(x))


def images_for(count=40):
    return torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def reduced(model, images, widths):
    """A trace, and what keeps the first channels of every layer."""
    gm = mbs_fx.trace(model.eval(), images[:2])
    plan = mbs_fx.plan(mbs_fx.analyze(gm, images[:2]), widths=widths)
    return gm, mbs_fx.rewrite(gm, plan, criterion="first")


def spaces_of(model, widths):
    gm, small = reduced(model, images_for(), widths)
    both = pair(small, gm, None)
    return find_spaces(both.keep, both.original, find_layers(both.keep, both.small)[0])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Named])
def test_a_stream_between_layers_is_found(norm):
    torch.manual_seed(0)
    (space,) = spaces_of(Bottleneck(norm), {"a": 5})
    assert space.writers == ("a", "c")
    assert space.readers == ("b", "d")
    assert len(space.kept) == 5


@pytest.mark.parametrize("model", [Bent, Scaled, lambda: Bottleneck(Active)])
def test_channels_that_are_looked_at_one_by_one_are_no_linear_space(model):
    torch.manual_seed(0)
    assert not spaces_of(model(), {"a": 5})
    assert not spaces_of(Bottleneck(), {"b": 8})


def test_batch_norms_of_other_classes_are_told_by_what_they_do():
    assert is_plain_norm(Named(3))
    assert not is_plain_norm(Active(3))
    assert not is_plain_norm(nn.BatchNorm2d(3, track_running_stats=False))
    assert not is_plain_norm(nn.InstanceNorm2d(3))


def test_a_stream_of_fewer_dimensions_than_channels_comes_back_whole():
    """Eight channels that are combinations of five: no five of them hold what five combinations hold."""
    torch.manual_seed(0)
    model, mix = Bottleneck(), torch.randn(8, 5)
    with torch.no_grad():
        for conv, norm in ((model.a, model.norm_a), (model.c, model.norm_c)):
            norm.running_var.uniform_(0.5, 2)
            norm.running_mean.normal_()
            norm.weight.uniform_(0.5, 2)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            inner = torch.einsum("oi,ickl->ockl", mix, torch.randn(5, *conv.weight.shape[1:]) / 4)
            conv.weight.copy_(inner / scale[:, None, None, None])
            offset = mix @ torch.randn(5)
            norm.bias.copy_(offset + scale * norm.running_mean)
        model.c.bias.zero_()
    images = images_for()
    gm, small = reduced(model, images, {"stem": 16, "a": 5, "b": 16, "d": 16})
    refitted = mbs_fx.reconstruct(small, gm, images)
    assert (small(images) - gm(images)).abs().max() > 1e-3 * gm(images).abs().max()
    assert torch.allclose(refitted(images), gm(images), rtol=1e-3, atol=1e-3)
    twice = mbs_fx.reconstruct(refitted, gm, images)
    assert torch.allclose(twice(images), gm(images), rtol=1e-3, atol=1e-3)


def test_what_kept_places_hold_is_not_nearly_dependent():
    """Kept channels that are almost copies of each other: their combinations are as far apart as others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator).double()
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    moment, weight = x.T @ x / len(x), torch.eye(8).double()
    down = _combinations(weight, moment, torch.arange(5))
    sizes = torch.linalg.svdvals(down @ torch.linalg.cholesky(moment))
    assert sizes[0] < 4 * sizes[-1]
    assert torch.linalg.matrix_rank(down) == 5


class Pooled(nn.Module):
    """A classifier on averages of 48 channels."""

    def __init__(self, pool):
        super().__init__()
        self.stem, self.features = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 48, 3)
        self.pool, self.fc = pool, nn.Linear(48, 10)

    def forward(self, x):
        return self.fc(self.pool(F.relu(self.features(F.relu(self.stem(x))))))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Viewed(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1)


POOLS = {
    "mean": Mean,
    "view": Viewed,
    "modules": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1)),
}


@pytest.mark.parametrize("name", POOLS)
def test_a_classifier_behind_averages_learns_from_every_position(name, monkeypatch):
    """Channels that stand twice, and fewer images than channels: only positions tell what takes the second's place."""
    torch.manual_seed(0)
    model, images = Pooled(POOLS[name]()), images_for(10)
    with torch.no_grad():
        model.features.weight[24:] = 2 * model.features.weight[:24]
        model.features.bias[24:] = 2 * model.features.bias[:24]
    gm, small = reduced(model, images, {"stem": 24, "features": 24})
    others = images_for(60)[10:]

    @torch.no_grad()
    def error(network):
        return float((network(others) - gm(others)).square().mean() / gm(others).square().mean())

    refitted = mbs_fx.reconstruct(small, gm, images)
    assert error(refitted) < 1e-5
    monkeypatch.setattr(reconstructing, "maps_before", lambda *_: {})
    assert error(mbs_fx.reconstruct(small, gm, images)) > 10 * error(refitted)


def test_a_classifier_behind_maxima_is_fitted_as_it_stands():
    torch.manual_seed(0)
    images = images_for(20)
    pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
    gm, small = reduced(Pooled(pool), images, {"features": 24})
    report = mbs_fx.reconstruct(small, gm, images).meta["mbs_reconstruction"]
    assert report.layers[-1].path == "fc"
    assert report.output[1] < report.output[0]
