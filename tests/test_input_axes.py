"""Inputs that the graph brings into the form (batch, channels, map) by itself, against networks that get them so."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from wirings import conv

import mbs_fx
from mbs_fx import MBSError


class Plain(nn.Module):
    channels = 1

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = conv(self.channels, 16), conv(16, 16, stride=2), nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(self.enter(x))))).mean((2, 3)))

    def enter(self, x):
        return x


class NoChannels(Plain):
    def enter(self, x):
        return x.unsqueeze(1)


class Colours(Plain):
    channels = 3


class ChannelsLast(Colours):
    def enter(self, x):
        return x.permute(0, 3, 1, 2)


class Grey(Plain):
    def enter(self, x):
        return x.mean(1, keepdim=True)


class NoBatch(Colours):
    def enter(self, x):
        return x.unsqueeze(0)


class NoBatchNoChannels(Plain):
    def enter(self, x):
        return x[None, None]


def planned(net, images):
    gm = mbs_fx.trace(net.eval(), images)
    analysis = mbs_fx.analyze(gm, images)
    density = mbs_fx.measure(gm, images)
    assert not any("there were images of" in note for note in density.notes)
    facts = [(c.spatial_size, c.stride, c.receptive_field, c.flops) for c in analysis.convs]
    return analysis.input_size, facts, mbs_fx.plan(analysis, density, z=0.1).widths, density.p


@pytest.mark.parametrize(
    ("usual", "own", "shape", "moved"),
    [
        (Plain, NoChannels, (4, 1, 8, 20), lambda x: x[:, 0]),
        (Colours, ChannelsLast, (4, 3, 8, 20), lambda x: x.permute(0, 2, 3, 1)),
        (Plain, Grey, (4, 1, 8, 20), lambda x: x.expand(-1, 3, -1, -1)),
    ],
    ids=["without channels", "channels last", "grey"],
)
def test_a_layout_of_its_own_changes_nothing(usual, own, shape, moved):
    torch.manual_seed(0)
    net, other = usual(), own()
    other.load_state_dict(net.state_dict())
    images = torch.randn(shape)
    size, facts, widths, p = planned(other, moved(images))
    assert size == (8, 20)
    assert (size, facts, widths) == planned(net, images)[:3]
    assert widths["b"] < 16
    assert p == pytest.approx(planned(net, images)[3])


@pytest.mark.parametrize(("net", "shape"), [(NoBatch(), (3, 8, 20)), (NoBatchNoChannels(), (8, 20))])
def test_an_input_without_a_batch_that_the_model_unsqueezes_is_refused(net, shape):
    with pytest.raises(MBSError, match=r"a: the first axis of the input \(.*\) is no batch .* let the model take"):
        mbs_fx.analyze(mbs_fx.trace(net, shape), shape)


class Frames(Plain):
    """Maps of frames, then lines of frames."""

    channels = 3

    def __init__(self):
        super().__init__()
        self.time = nn.Conv1d(16, 16, 3, padding=1)

    def forward(self, x):
        n, frames, *image = x.shape
        maps = F.relu(self.a(x.reshape(n * frames, *image))).mean((2, 3))
        return self.fc(F.relu(self.time(maps.view(n, frames, 16).transpose(1, 2))).mean(2))


def test_frames_in_the_batch_are_an_axis():
    x = torch.randn(2, 5, 3, 8, 20)
    gm = mbs_fx.trace(Frames().eval(), x)
    analysis = mbs_fx.analyze(gm, x)
    assert analysis.input_size == (5, 8, 20)
    assert [c.receptive_field for c in analysis.convs] == [(1, 3, 3), (3,)]
    assert mbs_fx.measure(gm, x).images == 2


class Lines(Plain):
    """Maps, then lines."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(16, 16, 15, padding=7)

    def forward(self, x):
        return self.fc(F.relu(self.line(F.relu(self.b(F.relu(self.a(x)))).mean(2))).mean(2))


def test_convolutions_of_fewer_axes_are_measured_and_planned():
    images = torch.randn(4, 1, 8, 20)
    gm = mbs_fx.trace(Lines().eval(), images)
    analysis = mbs_fx.analyze(gm, images)
    assert [len(c.receptive_field) for c in analysis.convs] == [2, 2, 1]
    density = mbs_fx.measure(gm, images, z=0.2)
    assert mbs_fx.plan(analysis, density, z=0.2).widths["line"] < 16
