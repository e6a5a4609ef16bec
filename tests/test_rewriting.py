"""Rewritten networks against the masked original, on small networks of every kind of wiring."""

import copy
import gc
import inspect
import weakref

import pytest
import torch
import wirings
from proof import difference, is_exact, random_inputs, reloads, trains, widths_hold, zeroed
from torch import nn
from wirings import Grouped, Net, PartsOfParts, Residual, Shuffle, conv

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.sample import resnet

NETWORKS = [c for c in vars(wirings).values() if inspect.isclass(c) and issubclass(c, Net) and c is not Net]


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
        assert difference(small(*inputs)[:1], small(inputs[0][:1])) < 1e-4  # as general as the original
        as_module = mbs_fx.rewrite(net, plan)
        if not is_exact_module_fresh(small):
            assert difference(as_module(*inputs), small(*inputs)) < 1e-5
    assert reloads(lambda: kind().eval(), small, inputs)
    with torch.no_grad():
        if not is_exact_module_fresh(small):
            assert difference(mbs_fx.rewrite(gm, small.meta["mbs"])(*inputs), small(*inputs)) == 0
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
    named = mbs_fx.analyze(gm, (2, 3, 8, 8), opaque=["stem"])
    assert any("stem.0" in s.convs for m in named.macroblocks for s in m.segments)
    plan = mbs_fx.plan(named, betas={8: 0.5})
    assert plan.opaque == ("stem",)
    small = mbs_fx.rewrite(gm, mbs_fx.Plan.from_json(plan.to_json()))
    assert "stem.0" not in small.meta["mbs"].channels
    assert any("initialised fresh" in note for note in small.meta["mbs"].notes)
    by_class = mbs_fx.analyze(mbs_fx.trace(Grouped().eval(), (2, 3, 8, 8)), (2, 3, 8, 8), opaque=[nn.Conv2d])
    assert len(by_class.opaque) > 1
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


def test_another_module_in_the_same_place_is_another_network():
    gm, analysis, _ = reduced(Residual().eval())
    gm.set_submodule("stem.2", nn.GELU())
    same = mbs_fx.rewrite(gm, mbs_fx.plan(mbs_fx.analyze(gm, (2, 3, 8, 8)), betas={}))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert difference(gm(x), same(x)) == 0
        twin = torch.fx.GraphModule(Residual().eval(), gm.graph)
        assert difference(twin(x), mbs_fx.rewrite(twin, mbs_fx.plan(analysis, betas={}))(x)) == 0


def test_what_is_remembered_of_a_graph_goes_with_it():
    gm, _, _ = reduced(Residual().eval())
    seen = weakref.ref(gm)
    del gm
    gc.collect()
    assert seen() is None


def clip(x):
    """Not torch's."""
    return x * torch.arange(1.0, x.shape[1] + 1).view(1, -1, 1, 1)


torch.fx.wrap("clip")


def test_a_function_of_ones_own_is_not_taken_for_torchs():
    class Clipped(Residual):
        def middle(self, x):
            return clip(super().middle(x))

    gm = torch.fx.symbolic_trace(Clipped().eval())
    kept = mbs_fx.analyze(gm, (2, 3, 8, 8)).kept
    assert "no rule for this operation" in kept["b"]


def test_the_copy_shares_no_numbers_with_the_original():
    gm, _, plan = reduced(PartsOfParts().eval())
    small = mbs_fx.rewrite(gm, plan)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in gm.state_dict().values()}
    assert not theirs & {tensor.untyped_storage().data_ptr() for tensor in small.state_dict().values()}


def test_memory_order_and_what_is_saved_stay():
    class Unsaved(Residual):
        def make(self):
            super().make()
            self.register_buffer("gain", torch.full((1, 16, 1, 1), 2.0), persistent=False)

        def middle(self, x):
            return super().middle(x) * self.gain

    gm, _, plan = reduced(Unsaved().eval().to(memory_format=torch.channels_last))
    small = mbs_fx.rewrite(gm, plan)
    assert small.a.weight.is_contiguous(memory_format=torch.channels_last)
    assert "gain" in dict(small.named_buffers())
    assert set(small.state_dict()) == set(gm.state_dict())


class OnlyEvaluationTraces(nn.Module):
    """Has a head that only training uses, behind a branch on values that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        if self.training and x.mean() > 0:
            return self.head(x.mean((2, 3)))
        return x


def test_a_training_mode_that_cannot_be_traced_is_noted():
    net = OnlyEvaluationTraces().eval()
    _, _, plan = reduced(net)
    small = mbs_fx.rewrite(net, plan)
    (note,) = [note for note in small.meta["mbs"].notes if "not traced in training mode" in note]
    assert "keep their width" in note
    assert note in str(small.meta["mbs"])
