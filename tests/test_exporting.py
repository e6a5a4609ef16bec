"""The exported file runs without mbs_fx, gives the same numbers, and reads as a person would write it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from own_networks import Counts, Own
from torch import nn
from torch.nn import functional as F

import mbs_fx
from mbs_fx import MBSError
from mbs_fx.exporting.trial import require_same
from mbs_fx.sample import resnet

RUFF = Path(sys.executable).with_name("ruff")


class Wrapped(nn.Module):
    """Holds a function in a class, a list of layers, a parameter, a buffer, and gives a dict."""

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(w, 12, 3, padding=1) for w in (3, 12, 12))
        self.seq = nn.Sequential(nn.BatchNorm2d(12), self.Twice(), nn.ReLU())
        self.scale = nn.Parameter(torch.rand(12, 1, 1))
        self.register_buffer("offset", torch.rand(12, 1, 1), persistent=False)
        self.register_buffer("steps", torch.tensor(2))

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        x = self.seq(x) * self.scale + self.offset
        x = x[:, :, ::2].flatten(2).softmax(-1) ** self.steps
        return {"mean": x.mean(-1), "parts": torch.split(x, [x.shape[1] - 1, 1], 1)[1]}


class Odd(nn.Conv2d):
    """A layer of a user's own: written as what it does."""

    def forward(self, x):
        return super().forward(x) + x.mean(1, keepdim=True)


class Shared(nn.Module):
    """One block that runs at two sizes, and two inputs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), Odd(16, 8, 1))

    def forward(self, image, other):
        x = F.relu(self.stem(image)) + F.interpolate(other, size=image.shape[-2:]).mean(1, keepdim=True)
        return self.head(x), self.head(F.max_pool2d(x, 2))


def own_networks():
    yield "own", Own(), [(2, 3, 8, 8)]
    yield "counts", Counts(), [(2, 3, 8, 8)]
    yield "resnet20", resnet(20), [(2, 3, 32, 32)]
    yield "wrapped", Wrapped(), [(2, 3, 8, 8)]
    yield "shared", Shared(), [(2, 3, 16, 16), (2, 3, 8, 8)]


TORCHVISION = (
    *("alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "resnet50", "shufflenet_v2_x0_5", "squeezenet1_1", "convnext_tiny"),
)
TIMM = ("test_resnet", "test_efficientnet", "test_convnext")


def networks():
    yield from own_networks()
    for name in TORCHVISION:
        more = {"init_weights": False} if name == "googlenet" else {}
        yield name, torchvision.models.get_model(name, weights=None, **more), [(2, 3, 64, 64)]
    timm = pytest.importorskip("timm")
    for name in TIMM:
        yield name, timm.create_model(name, pretrained=False), [(2, 3, 64, 64)]


def halved(net, shapes):
    example = shapes[0] if len(shapes) == 1 else tuple(shapes)
    gm = mbs_fx.trace(net.eval(), example)
    analysis = mbs_fx.analyze(gm)
    return mbs_fx.rewrite(gm, mbs_fx.plan(analysis, betas={m.spatial_size: 0.75 for m in analysis.macroblocks}))


ALONE = """
import sys, json
sys.modules["mbs_fx"] = sys.modules["timm"] = None  # an import of them fails
import importlib.util, torch
from pathlib import Path
found = {}
for file in sorted(Path(sys.argv[1]).glob("*.py")):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs = torch.load(file.with_suffix(".inputs"), weights_only=True)
    with torch.no_grad():
        torch.save(module.load()(*inputs), file.with_suffix(".outputs"))
    found[file.stem] = sum(p.numel() for p in module.load().parameters())
print(json.dumps(found))
"""


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def expected(folder):
    """What each network gives; its file stands in the folder, and inputs beside it."""
    torch.manual_seed(0)
    answers = {}
    for name, net, shapes in networks():
        small = halved(net, shapes)
        inputs = tuple(torch.randn(shape) for shape in shapes)
        mbs_fx.export_python(small, folder / f"{name}.py", folder / f"{name}.safetensors")
        torch.save(inputs, folder / f"{name}.inputs")
        with torch.no_grad():
            answers[name] = small(*inputs), sum(p.numel() for p in small.parameters())
    return answers


def test_files_run_where_mbs_fx_is_not(expected, folder):
    done = subprocess.run([sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    assert counted == {name: count for name, (_, count) in expected.items()}
    for name, (answer, _) in expected.items():
        assert same(answer, torch.load(folder / f"{name}.outputs", weights_only=True)), name
    assert len(counted) == 21


def test_files_are_formatted_and_clean(expected, folder):
    if not RUFF.exists():
        pytest.skip("ruff is not installed")
    for command in (["format", "--isolated", "--check"], ["check", "--isolated", "--select", "E,F,I,ANN"]):
        done = subprocess.run([RUFF, *command, folder], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_block_reads_as_torchvisions_own(expected, folder):
    text = (folder / "resnet50.py").read_text()
    assert len(text) < 25_000
    assert text.count("\nclass ") == 3  # two kinds of blocks, and the network
    assert "self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)" in text
    assert "y = y + x\n        return self.relu(y)" in text
    assert "mbs_fx" not in text.replace("mbs_fx.export_python", "")
    shuffle = (folder / "shufflenet_v2_x0_5.py").read_text()
    assert "x, y = x.chunk(2, dim=1)" in shuffle
    assert "n, c, h, w = x.size()" in shuffle


def test_a_module_and_its_wrappers_are_exported_too(tmp_path):
    torch.manual_seed(0)
    small = mbs_fx.reduce(Own().eval(), example=(2, 3, 8, 8), widths={"stem": 8})
    mbs_fx.export_python(torch.compile(small, backend="eager"), tmp_path / "net.py", tmp_path / "net.pt")
    space = {"__file__": str(tmp_path / "net.py"), "__name__": "net"}
    exec((tmp_path / "net.py").read_text(), space)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(space["load"]()(x), small(x))


def test_without_weights_load_takes_a_state_dict(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double().eval()
    mbs_fx.export_python(net, tmp_path / "net.py", example=(1, 3, 8, 8))
    space = {"__file__": str(tmp_path / "net.py"), "__name__": "net"}
    exec((tmp_path / "net.py").read_text(), space)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(space["load"](net.state_dict())(x), net(x))


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else x


def foreign(x):
    return x.relu()


torch.fx.wrap("foreign")


class Calls(nn.Module):
    def forward(self, x):
        return foreign(x)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (ByValue(), r"^1 \(\S*ByValue\) cannot be written: it is no layer of torch, and its code"),
        (Calls(), r"^%foreign cannot be written: it calls \S*\.foreign, which is neither torch's nor torchvision's"),
    ],
)
def test_what_cannot_be_written_is_named(last, message, tmp_path):
    gm = mbs_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 3), last).eval(), (1, 3, 8, 8), leaves=[ByValue])
    with pytest.raises(MBSError, match=message):
        mbs_fx.export_python(gm, tmp_path / "net.py")
    assert not (tmp_path / "net.py").exists()


def test_paths_that_are_refused(tmp_path):
    gm = mbs_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), (1, 3, 8, 8))
    (tmp_path / "net.py").write_text("mine")
    with pytest.raises(MBSError, match=r"net\.py exists: give another name, or force=True"):
        mbs_fx.export_python(gm, tmp_path / "net.py")
    with pytest.raises(MBSError, match=r"its name ends in \.py"):
        mbs_fx.export_python(gm, tmp_path / "net.txt")
    with pytest.raises(MBSError, match=r"written as \.safetensors or \.pt"):
        mbs_fx.export_python(gm, tmp_path / "other.py", tmp_path / "w.bin")
    mbs_fx.export_python(gm, tmp_path / "net.py", force=True)
    assert "class Sequential" not in (tmp_path / "net.py").read_text()


def test_to_folder_of_a_reduced_graph_can_be_imported(tmp_path):
    small = halved(resnet(20), [(2, 3, 32, 32)])
    with pytest.warns(UserWarning, match="saved as pickled files instead"):
        small.to_folder(tmp_path / "small", "Small")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules['mbs_fx'] = None\n"
        "import torch; from small import Small; print(tuple(Small()(torch.zeros(2, 3, 32, 32)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 10)", done.stderr


class InPlace(nn.Module):
    """Layers, functions and assignments that count by what they change, not by what they give."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(3, 8, 3)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.convs[2](x)
        F.leaky_relu(x, 0.1, inplace=True)
        x[:, 1:, 0] = x[:, :-1, 1] * 2
        x[..., 2:4] *= 3
        x = self.convs[1](x)
        self.relu(x)
        torch.sqrt_(x)
        return self.convs[0](x)


class Scaled(nn.Module):
    """A number that is an argument of the block, and a layer of the name that such an argument would have."""

    def __init__(self, channels, factor):
        super().__init__()
        self.number, self.channels, self.factor = nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), factor

    def forward(self, x):
        return self.number(self.channels(x) * self.factor).relu() * self.factor


class load(nn.Module):  # noqa: N801 - a name that the file has for something else
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 8, 3), Scaled(8, 2), Scaled(8, 3))

    def forward(self, torch, F):  # noqa: N803
        return self.blocks(torch).sigmoid() + F.mean()


class Read(nn.Module):
    """Layers that are called and whose weights are read, tied ones, and one whose weights are computed."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(w, 6, 3, padding=1) for w in (3, 6, 6))
        self.layers[2].weight = self.layers[1].weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1))
        self.divided = nn.utils.spectral_norm(nn.Conv2d(6, 6, 1))
        self.dropout = self.Dropout()

    class Dropout(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, self.training)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        x = F.conv2d(x, self.layers[1].weight / self.layers[1].weight.norm(), self.layers[2].bias)
        return self.dropout(self.divided(self.normed(x)))


@pytest.mark.parametrize(
    ("net", "shapes"), [(InPlace(), [(2, 3, 8, 8)]), (load(), [(2, 3, 8, 8), (2, 8, 6, 6)]), (Read(), [(2, 3, 8, 8)])]
)
@pytest.mark.parametrize("training", [False, True])
def test_the_file_gives_the_same(net, shapes, training, tmp_path):
    torch.manual_seed(0)
    small = halved(net, shapes).train(training)
    mbs_fx.export_python(small, tmp_path / "net.py", tmp_path / "net.safetensors")
    space = {"__file__": str(tmp_path / "net.py"), "__name__": "net"}
    exec((tmp_path / "net.py").read_text(), space)
    made = space["load"]()
    inputs = [torch.randn(shape) for shape in shapes]
    with torch.no_grad():
        assert torch.equal(made(*(each.clone() for each in inputs)), small.eval()(*inputs))
    if isinstance(net, Read):
        assert made.layers[2].weight is made.layers[1].weight
        assert type(made.normed) is nn.Conv2d
        assert list(made.divided.state_dict()) == ["weight", "bias"]


def test_what_would_differ_is_not_written(tmp_path):
    gm = mbs_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), (1, 3, 8, 8))
    for text, reason in (
        ("def load(state): return lambda x: x", "it fails: AttributeError"),
        ("def load(state): return x =", "it fails: SyntaxError"),
        ("from torch import nn\ndef load(state): return nn.Conv2d(3, 8, 3)", r"the output differs by"),
    ):
        with pytest.raises(MBSError, match=f"the file would not give what the network gives, {reason}"):
            require_same(text, gm.state_dict(), gm, ((1, 3, 8, 8),), ())
    net = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    net[0].register_forward_hook(lambda module, inputs, output: output * 2)
    with pytest.raises(MBSError, match=r"^0 \(Conv2d\) cannot be written: it has forward hooks"):
        mbs_fx.export_python(mbs_fx.trace(net, (1, 3, 8, 8)), tmp_path / "net.py")
    assert not (tmp_path / "net.py").exists()
