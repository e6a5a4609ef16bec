"""What comes back for a module is the user's own class, and it can be kept where mbs_fx is not."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from own_networks import Counts, Own
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.rewriting.modes import looks_at_training

SHAPE = (2, 3, 8, 8)
HALF = {"stem": 8, "block.widen": 12, "last": 20}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return mbs_fx.reduce(Own().eval(), example=SHAPE, widths=HALF)


@pytest.fixture
def x():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))


def answer(net, x):
    with torch.no_grad():
        return net(x)


def test_class_methods_and_attributes(small, x):
    assert type(small) is Own
    assert small.forward_features(x).shape == (2, 20, 4, 4)
    assert (small.num_features, small.num_classes, small.widths) == (20, 10, [8, 20])
    assert (small.block.in_channels, small.block.inner_width) == (8, 12)
    assert small.offset.shape == (1, 20, 1, 1)
    assert "forward" not in vars(small)
    again = copy.deepcopy(small)
    again.reset_classifier(3)
    assert answer(again, x).shape == (2, 3)


def test_it_computes_what_the_graph_computes(small, x):
    torch.manual_seed(0)
    gm = mbs_fx.trace(Own().eval(), SHAPE)
    graph = mbs_fx.reduce(gm, example=SHAPE, widths=HALF)
    assert isinstance(graph, torch.fx.GraphModule)
    assert torch.equal(answer(graph, x), answer(small, x))


def test_code_that_only_training_runs_is_alive(small, x):
    assert small.auxiliary.out_channels == 20
    trained = copy.deepcopy(small).train()
    trained(x).sum().backward()
    assert trained.auxiliary.weight.grad.abs().sum() > 0


def test_the_plan_stays_with_it(small):
    plan = small.meta["mbs"]
    assert isinstance(plan, mbs_fx.Plan)
    assert copy.deepcopy(small).meta["mbs"] is plan
    again = pickle.loads(pickle.dumps(small))
    assert type(again.meta) is dict
    assert mbs_fx.plan_of(again) == plan
    assert mbs_fx.reduce(again, example=SHAPE, widths={"stem": 4}).meta["mbs"].before["stem"] == 16


ALONE = """
import sys
sys.modules["mbs_fx"] = None  # an import of it fails
import torch
small, x, y = torch.load(sys.argv[1], weights_only=False)
assert type(small).__name__ == "Own" and small.meta["mbs"]["widths"]["stem"] == 8
with torch.no_grad():
    assert torch.equal(small(x), y)
torch.save(small, sys.argv[1])
"""


def test_torch_load_needs_the_class_and_torch_alone(small, x, tmp_path):
    file = tmp_path / "small.pt"
    torch.save((small, x, answer(small, x)), file)
    here = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(here)!r})\n{ALONE}"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True, cwd=tmp_path)
    again = torch.load(file, weights_only=False)
    assert torch.equal(answer(again, x), answer(small, x))


def test_averaged_compiled_and_called_by_function(small, x):
    expected = answer(small, x)
    assert torch.equal(answer(AveragedModel(small), x), expected)
    assert torch.equal(answer(torch.compile(small, backend="eager"), x), expected)
    state = {name: tensor * 2 for name, tensor in small.state_dict().items()}
    fresh = mbs_fx.load(Own().eval(), small.meta["mbs"], state)
    with torch.no_grad():
        assert torch.equal(torch.func.functional_call(small, state, x), fresh(x))


def test_distributed(small, x, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(copy.deepcopy(small))
        wrapped(x).sum().backward()
        assert wrapped.module.stem.weight.grad is not None
        mbs_fx.save(wrapped, tmp_path / "p.json", tmp_path / "w.safetensors")
    finally:
        dist.destroy_process_group()
    again = mbs_fx.load(Own().eval(), tmp_path / "p.json", tmp_path / "w.safetensors")
    assert torch.equal(answer(again, x), answer(small, x))


def test_a_state_dict_fills_a_fresh_one(small, x):
    fresh = mbs_fx.reduce(Own().eval(), example=SHAPE, widths=HALF)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(answer(fresh, x), answer(small, x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"epoch": 3, "state_dict": s},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"ema": {f"_orig_mod.{k}": v for k, v in s.items()}, "lr": 0.1},
        lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
        lambda s: {k.replace("block.", "block._orig_mod."): v for k, v in s.items()},
    ],
)
def test_weights_of_checkpoints_and_wrappers(small, x, wrap, tmp_path):
    torch.save(wrap(small.state_dict()), tmp_path / "w.pt")
    again = mbs_fx.load(Own().eval(), small.meta["mbs"], tmp_path / "w.pt")
    assert torch.equal(answer(again, x), answer(small, x))


def test_weights_without_a_state_dict_say_what_they_are(small):
    with pytest.raises(MBSError, match="no state dict among 'optimizer', 'step'"):
        mbs_fx.load(Own(), small.meta["mbs"], {"optimizer": {}, "step": 3})


def test_a_compiled_network_is_saved_as_without(small, x, tmp_path):
    mbs_fx.save(torch.compile(small, backend="eager"), tmp_path / "p.json", tmp_path / "w.safetensors")
    again = mbs_fx.load(Own().eval(), tmp_path / "p.json", tmp_path / "w.safetensors")
    assert torch.equal(answer(again, x), answer(small, x))


def test_weights_of_the_graph_may_lack_what_only_training_uses(small):
    graph = mbs_fx.rewrite(mbs_fx.trace(Own().eval(), SHAPE), small.meta["mbs"])
    again = mbs_fx.load(Own().eval(), small.meta["mbs"], graph.state_dict())
    assert again.meta["mbs"].notes[-1] == (
        "the weights had no auxiliary.weight and 1 more, which only the other mode uses"
    )


def test_code_that_counts_channels_is_replaced_and_not_pickled(x):
    torch.manual_seed(0)
    net = Counts().eval()
    small = mbs_fx.reduce(net, example=SHAPE, widths={"first": 10, "second": 15})
    assert type(small) is Counts
    graph = mbs_fx.rewrite(mbs_fx.trace(net, SHAPE), small.meta["mbs"])
    assert torch.equal(answer(small, x), answer(graph, x))
    assert torch.equal(answer(copy.deepcopy(small), x), answer(graph, x))
    assert torch.equal(answer(torch.compile(small, backend="eager"), x), answer(graph, x))
    assert any("runs traced code" in note for note in small.meta["mbs"].notes)
    with pytest.raises(MBSError, match=r"Counts cannot be pickled: .*mbs_fx\.save and mbs_fx\.load"):
        pickle.dumps(small)
    twice = mbs_fx.reduce(small, example=SHAPE, widths={"first": 5})
    assert (twice.first.out_channels, answer(twice, x).shape) == (5, (2, 10))


WAYS = {
    "attribute": lambda net, x: x * net.dim**-0.5,
    "mean": lambda net, x: x.sum(1, keepdim=True) / net.dim,
    "layer": lambda net, x: x * net.second.out_channels**-0.5,
    "branch": lambda net, x: x * 2 if x.shape[1] % 4 == 0 else x * 3,
}
"""How code may compute with a width that no constant of a graph counts."""


class Computes(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.dim, self.way = 24, way
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.fc = nn.LazyConv2d(10, 1)

    def forward(self, x):
        return self.fc(WAYS[self.way](self, self.second(self.first(x).relu())))


@pytest.mark.parametrize("way", WAYS)
def test_code_that_computes_with_a_width_gives_what_the_graph_gives(way, x):
    torch.manual_seed(0)
    net = Computes(way).eval()
    net(x)
    small = mbs_fx.reduce(net, example=SHAPE, widths={"first": 10, "second": 15})
    graph = mbs_fx.rewrite(mbs_fx.trace(net, SHAPE), small.meta["mbs"])
    assert torch.equal(answer(small, x), answer(graph, x))
    if way in ("attribute", "mean"):  # the number that it computes with may stay, so the class's own code does
        assert torch.equal(answer(pickle.loads(pickle.dumps(small)), x), answer(graph, x))
        note = "attributes that count channels stay as they were, since the code computes with them: dim = 24"
    else:
        note = "Computes counts channels in its code: the small one runs traced code instead, and cannot be pickled"
    assert small.meta["mbs"].notes[-1] == note


def test_a_forward_that_was_replaced_is_refused():
    net = Own().eval()
    net.block.forward = lambda x: x
    with pytest.raises(MBSError, match=r"the forward of block \(Block\) was replaced by .*<lambda>"):
        mbs_fx.reduce(net, example=SHAPE)


def test_a_forward_that_wraps_the_models_own_is_refused_in_one_line():
    net = Own().eval()
    own = net.forward
    net.forward = lambda x: own(2 * x)
    with pytest.raises(MBSError, match=r"the forward of Own was replaced by .*<lambda>") as caught:
        mbs_fx.reduce(net, example=SHAPE)
    assert "\n" not in str(caught.value)


def test_a_class_that_cannot_be_copied_is_refused_in_one_line():
    class Single(Own):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is one\nand no other")

    with pytest.raises(MBSError, match=r"Single cannot be copied \(RuntimeError: there is one\)") as caught:
        mbs_fx.reduce(Single().eval(), example=SHAPE)
    assert "\n" not in str(caught.value)


def test_a_meta_of_the_models_own_is_refused():
    net = Own().eval()
    net.meta = "about me"
    with pytest.raises(MBSError, match=r"Own\.meta is a str of the model's own"):
        mbs_fx.reduce(net, example=SHAPE, widths=HALF)


def test_who_looks_at_the_mode():
    def helper(module, x):
        return x if module.training else -x

    class Asks(nn.Sequential):
        def forward(self, x):
            return helper(self, x)

    assert looks_at_training(Own())
    assert looks_at_training(nn.Sequential(Asks()))
    assert not looks_at_training(nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3), Counts()))


def test_classifiers_of_timm_can_be_reset():
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", pretrained=False).eval()
    small = mbs_fx.reduce(net, example=(1, 3, 64, 64), betas={2: 0.6})
    assert type(small) is type(net)
    assert small.num_features == small.fc.in_features == 308  # ceil(0.6 * 512)
    assert [info["num_chs"] for info in small.feature_info] == [64, 64, 128, 256, 308]
    small.reset_classifier(3)
    assert small(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert small.default_cfg["input_size"] == (3, 224, 224)
