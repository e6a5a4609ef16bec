"""Rewritten networks against the masked original, on small networks of every kind of wiring."""

import copy
import inspect

import pytest
import torch
from proof import difference, is_exact, random_inputs, reloads, trains, widths_hold, zeroed
from torch import nn
from torch.nn import functional as F

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.sample import resnet


def conv(i, o, k=3, **kw):
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


class Net(nn.Module):
    """Stem, something in the middle, head."""

    width = 16

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU())
        self.make()
        self.tail = conv(self.width, 24)
        self.fc = nn.Linear(24, 5)

    def make(self):
        pass

    def forward(self, x):
        x = F.relu(self.tail(self.middle(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Residual(Net):
    def make(self):
        self.a, self.b = conv(16, 16), conv(16, 16)

    def middle(self, x):
        return x + self.b(torch.relu_(self.a(x)))


class Concatenation(Net):
    width = 40

    def make(self):
        self.a, self.bn = conv(16, 24), nn.BatchNorm2d(40)

    def middle(self, x):
        return self.bn(torch.cat([x, self.a(x)], 1)).relu()


class ChunkGate(Net):
    width = 8

    def make(self):
        self.a = conv(16, 16)

    def middle(self, x):
        a, b = self.a(x).chunk(2, dim=1)
        return a * torch.sigmoid(b)


class SplitSizes(Net):
    width = 16

    def make(self):
        self.a, self.b = conv(16, 16), conv(10, 10)

    def middle(self, x):
        a, b = torch.split(self.a(x), [6, 10], dim=1)
        return torch.cat([a, self.b(b)], 1)


class Slices(Net):
    def make(self):
        self.a = conv(4, 4)

    def middle(self, x):
        return torch.cat([self.a(x[:, :4]), x[:, 4:]], 1)


class ConstantView(Net):
    def make(self):
        self.a = nn.Linear(16 * 8 * 8, 32)
        self.tail2 = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x).view(-1, 16 * 8 * 8)
        return self.tail2(self.a(x).relu())


class SqueezeExcitation(Net):
    def make(self):
        self.down, self.up = conv(16, 4, 1), conv(4, 16, 1)

    def middle(self, x):
        return x * self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()


class Grouped(Net):
    def make(self):
        self.a, self.b = conv(16, 32, groups=4), conv(32, 16, groups=8)

    def middle(self, x):
        return self.b(self.a(x).relu())


class Depthwise(Net):
    width = 32

    def make(self):
        self.a = conv(16, 32, groups=16)

    def middle(self, x):
        return self.a(x).relu()


class Shuffle(Net):
    def make(self):
        self.a, self.b, self.c = conv(16, 16, 1, groups=2), conv(16, 16, groups=16), conv(16, 16, 1, groups=2)

    def middle(self, x):
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x + self.c(self.b(y))


class PixelShuffle(Net):
    width = 4

    def middle(self, x):
        return F.pixel_shuffle(x, 2)


class Transposed(Net):
    width = 12

    def make(self):
        self.a = nn.ConvTranspose2d(16, 12, 2, stride=2)

    def middle(self, x):
        return self.a(x).relu()


class SharedTwice(Net):
    def make(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(self.a(x).relu()).relu()


class LayerScale(Net):
    def make(self):
        self.a = conv(16, 16)
        self.gamma = nn.Parameter(torch.rand(16, 1, 1))
        self.register_buffer("shift", torch.rand(1, 16, 1, 1))

    def middle(self, x):
        return x + self.gamma * self.a(x) + self.shift


class FunctionalConv(Net):
    def make(self):
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3))
        self.bias = nn.Parameter(torch.randn(16))

    def middle(self, x):
        return F.relu(F.conv2d(x, self.weight, self.bias, padding=1))


class Blur(Net):
    def make(self):
        self.register_buffer("kernel", torch.ones(16, 1, 3, 3) / 9)

    def middle(self, x):
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=16)


class Radix(Net):
    def make(self):
        self.a, self.fc1, self.fc2 = conv(16, 32), conv(16, 8, 1), conv(8, 32, 1)

    def middle(self, x):
        y = self.a(x).relu()
        n, _, h, w = y.shape
        y = y.reshape(n, 2, 16, h, w)
        gate = self.fc2(self.fc1(y.sum(1).mean((2, 3), keepdim=True)).relu()).view(n, 2, 16, 1, 1).softmax(1)
        return (y * gate).sum(1)


class StackSelect(Net):
    def make(self):
        self.a, self.b = conv(16, 16), conv(16, 16, 5)

    def middle(self, x):
        return torch.stack([self.a(x), self.b(x)], 1).sum(1)


class ChannelsLast(Net):
    def make(self):
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def middle(self, x):
        y = self.norm(x.permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class Norms(Net):
    def make(self):
        self.g, self.i, self.p = nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True), nn.PReLU(16)

    def middle(self, x):
        return self.p(self.i(self.g(x)))


class Attention(Net):
    def make(self):
        self.q, self.k, self.v = conv(16, 16, 1), conv(16, 16, 1), conv(16, 16, 1)

    def middle(self, x):
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)
        return x + (v @ weights.transpose(1, 2)).view(x.shape)


class PadChannels(Net):
    width = 24

    def middle(self, x):
        y = F.pad(x, (0, 0, 0, 0, 4, 4))
        return y + self.a(x)

    def make(self):
        self.a = conv(16, 24)


class Einsum(Net):
    def make(self):
        self.mix = nn.Parameter(torch.randn(16, 16))

    def middle(self, x):
        return torch.einsum("nchw,dc->ndhw", x, self.mix).relu()


NETWORKS = [c for c in list(globals().values()) if inspect.isclass(c) and issubclass(c, Net) and c is not Net]


def reduced(net, shape=(2, 3, 8, 8), beta=0.7):
    gm = mbs_fx.trace(net, shape)
    analysis = mbs_fx.analyze(gm, shape)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: beta for m in analysis.macroblocks})
    return gm, analysis, plan


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_reduced_network(kind):
    torch.manual_seed(0)
    net = kind().eval()
    gm, analysis, plan = reduced(net)
    before = copy.deepcopy(gm.state_dict())
    small = mbs_fx.rewrite(gm, plan)
    assert plan.params[1] < plan.params[0]
    assert sum(p.numel() for p in small.parameters()) == plan.params[1]
    assert widths_hold(small, plan) == ""
    inputs = random_inputs(net, plan, torch.float32)
    with torch.no_grad():
        assert difference(mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))(*inputs), net(*inputs)) == 0
        as_module = mbs_fx.rewrite(net, plan)
        if not is_exact_module_fresh(small):
            assert difference(as_module(*inputs), small(*inputs)) < 1e-5
    assert reloads(lambda: kind().eval(), small, inputs)
    assert trains(small, inputs)
    assert trains(as_module, inputs)
    for name, tensor in gm.state_dict().items():
        assert torch.equal(tensor, before[name])


def is_exact_module_fresh(small):
    """Whether parts of the network were initialised at random, so that two rewrites differ."""
    return any("initialised fresh" in note for note in small.meta["mbs"].notes)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_zeroed_original_equals_reduced(kind):
    torch.manual_seed(0)
    gm, _, plan = reduced(kind().eval().double())
    if not is_exact(gm, plan):
        pytest.skip("opaque, or statistics over channels: the report names them")
    small = mbs_fx.rewrite(gm, plan)
    inputs = random_inputs(gm, plan, torch.float64)
    with torch.no_grad():
        assert difference(zeroed(gm, small.meta["mbs"])(*inputs), small(*inputs)) < 1e-10


def test_shuffle_unit_is_an_opaque_segment():
    _, analysis, plan = reduced(Shuffle().eval())
    assert [s.name for m in analysis.macroblocks for s in m.segments]
    assert "opaque" in str(plan)


def test_modules_can_be_named_opaque():
    gm = mbs_fx.trace(Residual().eval(), (2, 3, 8, 8))
    named = mbs_fx.analyze(gm, (2, 3, 8, 8), opaque=["stem.*"])
    assert any("stem.0" in s.convs for m in named.macroblocks for s in m.segments)
    with pytest.raises(MBSError, match="no convolution lies in such a module"):
        mbs_fx.analyze(gm, (2, 3, 8, 8), opaque=["nowhere"])


@pytest.mark.parametrize("criterion", ["l1", "l2", "scale", "first", lambda path, w: w.flatten(1).amax(1)])
def test_criteria(criterion):
    gm, _, plan = reduced(Residual().eval())
    small = mbs_fx.rewrite(gm, plan, criterion=criterion)
    assert len(small.meta["mbs"].channels["a"]) == plan.widths["a"]


def test_l1_keeps_the_largest_filters():
    net = Residual().eval()
    with torch.no_grad():
        net.a.weight.copy_(torch.arange(16.0).view(16, 1, 1, 1).expand_as(net.a.weight))
    gm, _, plan = reduced(net)
    small = mbs_fx.rewrite(gm, plan)
    assert small.meta["mbs"].channels["a"] == tuple(range(16 - plan.widths["a"], 16))


def test_a_fresh_start_differs_and_a_callable_is_used():
    gm, _, plan = reduced(Residual().eval())
    assert not torch.equal(mbs_fx.rewrite(gm, plan, init="fresh").a.weight, mbs_fx.rewrite(gm, plan).a.weight)
    seen = []
    mbs_fx.rewrite(gm, plan, init=seen.append)
    assert any(isinstance(m, nn.Conv2d) for m in seen)


@pytest.mark.parametrize("arguments", [{"init": "random"}, {"criterion": "luck"}])
def test_unknown_words_are_refused(arguments):
    gm, _, plan = reduced(Residual().eval())
    with pytest.raises(MBSError, match="choose"):
        mbs_fx.rewrite(gm, plan, **arguments)


def test_a_plan_for_another_network_is_refused():
    _, _, plan = reduced(Residual().eval())
    with pytest.raises(MBSError, match="does not fit"):
        mbs_fx.rewrite(mbs_fx.trace(resnet(20).eval(), (2, 3, 8, 8)), plan)


def test_reduce_again():
    net = resnet(20).eval()
    once = mbs_fx.reduce(net, example=(1, 3, 32, 32))
    twice = mbs_fx.reduce(once, example=(1, 3, 32, 32))
    sizes = [sum(p.numel() for p in m.parameters()) for m in (net, once, twice)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_reduce_takes_a_module_and_images():
    torch.manual_seed(0)
    small = mbs_fx.reduce(resnet(20).eval(), torch.randn(8, 3, 32, 32), confidence=None)
    assert small.meta["mbs"].images == 8


def test_a_module_whose_maps_shrink_to_one_pixel():
    net = nn.Sequential(
        conv(3, 8), nn.ReLU(), nn.MaxPool2d(8), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )
    analysis = mbs_fx.analyze(mbs_fx.trace(net.eval(), (1, 3, 8, 8)), (1, 3, 8, 8))
    small = mbs_fx.rewrite(net, mbs_fx.plan(analysis, widths={"3": 5}))
    assert small[3].out_channels == small[4].num_features == 5


def test_a_network_without_numbers_is_rewritten_too():
    with torch.device("meta"):
        net = resnet(20).eval()
    small = mbs_fx.reduce(torch.fx.symbolic_trace(net), example=(1, 3, 32, 32))
    assert small.get_parameter("layer3.0.conv1.weight").shape[0] == 47


def test_module_keeps_its_class_and_mode():
    net = resnet(20).train()
    _, _, plan = reduced(resnet(20).eval(), (1, 3, 32, 32))
    small = mbs_fx.rewrite(net, plan)
    assert type(small) is type(net)
    assert small.training
    assert small(torch.randn(2, 3, 32, 32)).shape == (2, 10)
