"""Random networks with gradient regions, caches, two inputs and nested outputs: their traces are the networks."""

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

import mbs_fx

WIDTH = 6


class Negated(torch.autograd.Function):
    """A gradient reversal."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Step(nn.Module):
    """One step between feature maps of one width; ``shaped`` lets a shape decide something, so that fx alone fails."""

    def __init__(self, kind, shaped):
        super().__init__()
        self.kind, self.shaped = kind, shaped
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.bias = nn.Parameter(torch.randn(3))
        self.register_buffer("index", torch.arange(WIDTH) % 3)
        self.kept, self.size = None, None

    def forward(self, x, other):
        if self.shaped:
            assert x.shape[1] == WIDTH
        return getattr(self, f"do_{self.kind}")(x, other)

    def do_plain(self, x, other):
        return self.norm(self.conv(x)).relu()

    def do_frozen(self, x, other):
        with torch.no_grad():
            y = self.conv(x)
        return x + y.relu()

    def do_gate(self, x, other):
        y = self.conv(x)
        with torch.no_grad():
            gate = y.mean((2, 3), keepdim=True).sigmoid()
        return y * gate

    def do_reversed(self, x, other):
        return self.conv(Negated.apply(x)).relu() + x

    def do_kept(self, x, other):
        if self.kept is None:
            self.kept = self.bias[self.index].view(1, -1, 1, 1)
        return self.conv(x) + self.kept

    def do_positions(self, x, other):
        if self.size != tuple(x.shape[2:]):
            self.size = tuple(x.shape[2:])
            self.kept = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.arange(x.shape[3], dtype=x.dtype)
        return self.conv(x).tanh() + self.kept / 100

    def do_other(self, x, other):
        return self.conv(x) * other.mean(1, keepdim=True)


KINDS = sorted(name[3:] for name in vars(Step) if name.startswith("do_"))


class Nested(nn.Module):
    def __init__(self, steps, shape):
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, 1)
        self.steps = nn.ModuleList(Step(kind, shaped) for kind, shaped in steps)
        self.head = nn.Conv2d(WIDTH, 2, 1)
        self.shape = shape

    def forward(self, x, other):
        x, seen = self.enter(x), []
        for step in self.steps:
            x = step(x, other)
            seen.append(x)
        y = self.head(x)
        return {"one": y, "dict": {"out": y, "seen": tuple(seen)}, "list": [y, (seen[0], [y.mean((2, 3))])]}[self.shape]


def gradients(network, inputs):
    """Gradients of a copy for a fixed sum of the outputs, by parameter and input; zeros where there are none."""
    twin, inputs = copy.deepcopy(network), [x.clone().requires_grad_() for x in inputs]
    total = sum((out * torch.arange(out.numel()).view(out.shape).cos()).sum() for out in tree_leaves(twin(*inputs)))
    total.backward()
    tensors = [*twin.named_parameters(), *((str(i), x) for i, x in enumerate(inputs))]
    return {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in tensors}


def inputs_of(height, width, batch=2):
    return torch.randn(batch, 3, height, width).double(), torch.rand(batch, 2, height, width).double()


@st.composite
def networks(draw):
    steps = draw(st.lists(st.tuples(st.sampled_from(KINDS), st.booleans()), min_size=1, max_size=3))
    return steps, draw(st.sampled_from(["one", "dict", "list"])), draw(st.booleans()), draw(st.booleans())


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_trace(case):
    steps, shape, training, called = case
    torch.manual_seed(0)
    net = Nested(steps, shape).double().train(training)
    fresh, inputs = copy.deepcopy(net), inputs_of(8, 8)
    if called:
        with torch.no_grad():
            net(*inputs)
    gm = mbs_fx.trace(net, inputs)
    fresh.load_state_dict(net.state_dict())
    for given_inputs in (inputs, inputs_of(8, 8, 3), inputs_of(12, 6)):
        mine, expected = gradients(gm, given_inputs), gradients(fresh, given_inputs)
        for name, gradient in expected.items():
            # A parameter that nothing reads is no part of the graph.
            assert torch.allclose(mine.get(name, torch.zeros_like(gradient)), gradient, atol=1e-9), name
    other = Nested(steps, shape).double().train(training)
    gm.load_state_dict(other.state_dict(), strict=False)
    with torch.no_grad():
        outputs = zip(tree_leaves(gm(*inputs)), tree_leaves(other(*inputs)), strict=True)
        assert all(torch.allclose(mine, expected, atol=1e-9) for mine, expected in outputs)
