"""Random small networks out of every kind of wiring keep every promise of a reduced network."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from proof import difference, is_exact, random_inputs, trains, widths_hold, zeroed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import mbs_fx


def conv(i, o, k=3, **kw):
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


class Block(nn.Module):
    """A step from ``inp`` to ``out`` channels, wired in one of many ways; widths are multiples of 4."""

    def __init__(self, kind, inp, out):
        super().__init__()
        self.kind = kind
        self.enter = nn.Sequential(conv(inp, out), nn.BatchNorm2d(out), nn.ReLU())
        if kind in ("residual", "cat", "shared", "stack"):
            self.a = conv(out, out)
        if kind == "grouped":
            self.a = conv(out, out, groups=4)
        if kind == "depthwise":
            self.a = conv(out, out, groups=out)
        if kind in ("cat", "split"):
            self.b = conv(2 * out if kind == "cat" else out, out)
        if kind == "gate":
            self.a, self.b = conv(out, 4, 1), conv(4, out, 1)
        if kind == "halves":
            self.a = conv(out // 2, out)
        if kind == "scale":
            self.gamma = nn.Parameter(torch.rand(out, 1, 1))
            self.a = conv(out, out)

    def forward(self, x):
        x = self.enter(x)
        return getattr(self, f"do_{self.kind}")(x)

    def do_plain(self, x):
        return x

    def do_residual(self, x):
        return x + self.a(x)

    def do_cat(self, x):
        return self.b(torch.cat([self.a(x).relu(), x], 1))

    def do_shared(self, x):
        return self.a(self.a(x).relu()).relu()

    def do_stack(self, x):
        return torch.stack([x, self.a(x)], 1).amax(1)

    def do_grouped(self, x):
        return self.a(x).relu()

    def do_depthwise(self, x):
        return self.a(x)

    def do_split(self, x):
        a, b = torch.split(x, self.enter[0].out_channels // 2, 1)
        return self.b(torch.cat([b, a], 1))

    def do_gate(self, x):
        return x * self.b(self.a(x.mean((2, 3), keepdim=True)).relu()).sigmoid()

    def do_halves(self, x):
        a, b = x.chunk(2, 1)
        return self.a(a * b.sigmoid())

    def do_scale(self, x):
        return x + self.gamma * self.a(x)


KINDS = sorted(name[3:] for name in vars(Block) if name.startswith("do_"))


class Chain(nn.Module):
    def __init__(self, kinds, widths, joins):
        super().__init__()
        sizes = [3, *widths]
        self.blocks = nn.ModuleList(Block(k, i, o) for k, i, o in zip(kinds, sizes, widths, strict=False))
        self.joins = joins
        self.fc = nn.Linear(widths[-1], 3)

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            y = block(x)
            x = x + y if self.joins[number] and x.shape == y.shape else y
            if number == 0:
                x = F.max_pool2d(x, 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@st.composite
def chains(draw):
    length = draw(st.integers(1, 4))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=length, max_size=length))
    widths = draw(st.lists(st.sampled_from([8, 12, 16]), min_size=length, max_size=length))
    joins = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    beta = draw(st.sampled_from([0.3, 0.51, 0.75, 0.9]))
    return kinds, widths, joins, beta


@settings(max_examples=25)
@given(chains())
def test_random_network(case):
    kinds, widths, joins, beta = case
    torch.manual_seed(0)
    net = Chain(kinds, widths, joins).eval().double()
    shape = (2, 3, 8, 8)
    gm = mbs_fx.trace(net, shape)
    analysis = mbs_fx.analyze(gm, shape)
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: beta for m in analysis.macroblocks})
    small = mbs_fx.rewrite(gm, plan)
    inputs = random_inputs(net, plan, torch.float64)
    assert widths_hold(small, plan) == ""
    assert sum(p.numel() for p in small.parameters()) == plan.params[1]
    with torch.no_grad():
        assert difference(mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))(*inputs), net(*inputs)) == 0
        if is_exact(gm, plan):
            assert difference(zeroed(gm, small.meta["mbs"])(*inputs), small(*inputs)) < 1e-9
    assert trains(small, inputs)


@dataclass
class Answer:
    """What some of the networks below return."""

    logits: Tensor
    maps: dict[str, Tensor]


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


CHANGES = {
    "plain": lambda layer: None,
    "halved": lambda layer: parametrize.register_parametrization(layer, "weight", Halved()),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
OUTPUTS = {
    "tensor": lambda logits, held: logits,
    "dict": lambda logits, held: {"logits": logits, "maps": {"last": held}},
    "dataclass": lambda logits, held: Answer(logits, {"last": held}),
}


class TwoInputs(nn.Module):
    """A chain on an image, beside a second input that is read first; weights of its blocks may be computed."""

    def __init__(self, kinds, widths, change, second, answer):
        super().__init__()
        self.second, self.answer = second, answer
        self.chain = Chain(kinds, widths, [False] * len(kinds))
        width = widths[-1]
        self.side = nn.Linear(4, width) if second == "vector" else conv(1, width)
        self.mix = conv(width, 12)
        self.head = nn.Linear(12, 3)
        for block in self.chain.blocks:
            CHANGES[change](block.enter[0])

    def forward(self, other, image):
        gate = self.side(other)
        gate = gate[:, :, None, None] if self.second == "vector" else F.max_pool2d(gate, 2)
        x = image
        for number, block in enumerate(self.chain.blocks):
            x = block(x)
            x = F.max_pool2d(x, 2) if number == 0 else x
        held = F.relu(self.mix(x * gate.sigmoid()))
        return OUTPUTS[self.answer](self.head(held.mean((2, 3))), held[:, :4])


@st.composite
def two_inputs(draw):
    kinds, widths, _, beta = draw(chains())
    change, answer = draw(st.sampled_from(sorted(CHANGES))), draw(st.sampled_from(sorted(OUTPUTS)))
    return kinds, widths, change, draw(st.sampled_from(["vector", "map"])), answer, beta


def tensors(answer):
    return {"logits": answer.logits, **answer.maps} if isinstance(answer, Answer) else answer


@settings(max_examples=25)
@given(two_inputs())
def test_random_network_of_two_inputs(case):
    kinds, widths, change, second, answer, beta = case
    torch.manual_seed(0)
    net = TwoInputs(kinds, widths, change, second, answer).eval().double()
    example = (torch.randn((2, 4) if second == "vector" else (2, 1, 8, 8)).double(), torch.randn(2, 3, 8, 8).double())
    gm = mbs_fx.trace(net, example)
    analysis = mbs_fx.analyze(gm)
    assert analysis.input_size == (8, 8)
    layers = {path for path, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert {c.target for c in analysis.convs} == layers
    plan = mbs_fx.plan(analysis, betas={m.spatial_size: beta for m in analysis.macroblocks})
    small = mbs_fx.rewrite(gm, plan)
    assert widths_hold(small, plan) == ""
    assert sum(p.numel() for p in small.parameters()) == plan.params[1]
    module = mbs_fx.rewrite(net, small.meta["mbs"])
    with torch.no_grad():
        assert type(module(*example)) is type(net(*example))
        assert difference(tensors(small(*example)), tensors(module(*example))) < 1e-9
        same = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={}))
        assert difference(tensors(same(*example)), tensors(net(*example))) == 0
        # A weight norm of zeros is no number; tests/test_computed_weights.py has its own zeros.
        if is_exact(gm, plan) and change != "weight norm":
            zeros = tensors(zeroed(gm, small.meta["mbs"])(*example))
            assert difference(zeros, tensors(small(*example))) < 1e-9
