"""Networks by name, weights from files, images from folders."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mbs_fx.errors import MBSError
from mbs_fx.folder import Preparation, folder
from mbs_fx.models import load_weights, resolve

FACTORY = """
from torch import nn
from beside import WIDTH

NOT_CALLABLE = 3

def tiny():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))

class Own(nn.Conv2d):
    def __init__(self):
        super().__init__(3, WIDTH, 3)

def wrong():
    return "a network"
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with networks of the user's, which imports from the file beside it."""
    (tmp_path / "beside.py").write_text("WIDTH = 5\n")
    (tmp_path / "own.py").write_text(FACTORY)
    return tmp_path / "own.py"


def rebuilt(code: tuple[str, ...]) -> nn.Module:
    space: dict[str, nn.Module] = {}
    exec("\n".join(code), space)
    return space["model"]


def conv(width: int = 4) -> nn.Conv2d:
    return nn.Conv2d(3, width, 1)


@pytest.mark.parametrize(
    "spec", ["torchvision/squeezenet1_1", "timm/resnet18", "timm/resnetv2_50x1_bit", "sample/resnet20"]
)
def test_library_networks_and_the_code_that_builds_them_again(spec: str):
    if spec.startswith("timm"):
        pytest.importorskip("timm")
    source = resolve(spec, weights="none")
    assert not source.model.training
    again = rebuilt(source.code)
    assert str(again) == str(source.model)
    assert source.name == spec.partition("/")[2]


def test_images_are_prepared_as_the_publisher_says():
    assert resolve("torchvision/efficientnet_b3", "none").preparation == Preparation(300)
    pytest.importorskip("timm")
    assert resolve("timm/resnetv2_50x1_bit", "none").preparation == Preparation(224, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(("factory", "width"), [("Own", 5), ("tiny", 5)])
def test_a_factory_in_a_file_may_import_what_lies_beside_it(own: Path, factory: str, width: int):
    source = resolve(f"{own}:{factory}")
    assert next(m for m in source.model.modules() if isinstance(m, nn.Conv2d)).out_channels == width
    assert str(rebuilt(source.code)) == str(source.model)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", "does not name a network"),
        ("torchvison/resnet50", "does not name a network"),
        ("torchvision/resnet51", "torchvision has no network 'resnet51'"),
        ("timm/nothing", "timm has no network 'nothing'"),
        ("sample/resnet56", "not shipped"),
        ("nowhere.py:net", "there is no file nowhere.py"),
    ],
)
def test_names_that_lead_nowhere(spec: str, message: str):
    with pytest.raises(MBSError, match=message):
        resolve(spec, "none")


@pytest.mark.parametrize(
    ("factory", "message"),
    [("absent", "no function or class 'absent'"), ("NOT_CALLABLE", "no function"), ("wrong", "gave a str")],
)
def test_files_without_a_network(own: Path, factory: str, message: str):
    with pytest.raises(MBSError, match=message):
        resolve(f"{own}:{factory}")


def test_a_file_that_fails_is_named_with_the_line(tmp_path: Path):
    file = tmp_path / "own.py"
    file.write_text("def net(width):\n    return width\n\ndef broken():\n    return {}['depth']\n")
    with pytest.raises(MBSError, match=r"broken\(\) in .*own.py failed in line 5: KeyError: 'depth'"):
        resolve(f"{file}:broken")
    with pytest.raises(MBSError, match=r"net\(\) in .*own.py failed: TypeError: .*missing 1 required"):
        resolve(f"{file}:net")
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(MBSError, match=r"own.py failed in line 1: ModuleNotFoundError"):
        resolve(f"{file}:net")


def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: object, **__: object):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(MBSError, match=r"could not be fetched \(no route to host\)"):
        resolve("torchvision/resnet18")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {f"module.{key}": value for key, value in state.items()},
    ],
)
def test_weights_of_torch_in_the_usual_wrappings(tmp_path: Path, wrap):
    trained, net = conv(), conv()
    torch.save(wrap(trained.state_dict()), tmp_path / "w.pth")
    load_weights(net, tmp_path / "w.pth")
    assert torch.equal(net.weight, trained.weight)


def test_weights_of_safetensors_in_half_precision(tmp_path: Path):
    trained, net = conv(), conv()
    save_file({key: value.half() for key, value in trained.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(net, tmp_path / "w.safetensors")
    assert net.weight.dtype == torch.float32
    assert torch.equal(net.weight, trained.weight.half().float())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(4, 3, 1, 1)}, "bias is missing"),
        ({**conv().state_dict(), "extra": torch.zeros(1)}, "extra is not part of the model"),
        (conv(5).state_dict(), r"weight has shape \(5, 3, 1, 1\), the model's has \(4, 3, 1, 1\) and 1 more"),
    ],
)
def test_weights_of_another_network_change_nothing(tmp_path: Path, state: dict, message: str):
    net = conv()
    before = net.weight.clone()
    save_file(dict(state), tmp_path / "w.safetensors")
    with pytest.raises(MBSError, match=message):
        load_weights(net, tmp_path / "w.safetensors")
    assert torch.equal(net.weight, before)


class Malicious:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", pickle.dumps(Malicious(), 2)], ids=["empty", "text", "code"]
)
def test_files_that_are_not_weights(tmp_path: Path, name: str, content: bytes, capsys):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MBSError, match="neither safetensors nor a state dict"):
        load_weights(conv(), tmp_path / name)
    assert capsys.readouterr().out == ""


def test_a_saved_module_is_refused(tmp_path: Path):
    torch.save(torch.zeros(3), tmp_path / "w.pth")
    with pytest.raises(MBSError, match="holds a Tensor"):
        load_weights(conv(), tmp_path / "w.pth")
    with pytest.raises(MBSError, match="there is no weights file"):
        load_weights(conv(), tmp_path / "absent.pth")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of one colour each at different depths, and a file that is no image."""
    for index, place in enumerate(["a", "a", "a", "b", "b", "b/deeper"]):
        (tmp_path / place).mkdir(exist_ok=True)
        Image.new("RGB", (40 + index, 30), (40 * index, 0, 255)).save(tmp_path / place / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_folder_reads_every_depth_and_normalises(pictures: Path):
    read = torch.stack(list(folder(pictures, Preparation(16))))
    assert read.shape == (6, 3, 16, 16)
    std, mean = torch.tensor([[0.229, 0.224, 0.225], [0.485, 0.456, 0.406]]).view(2, 3, 1, 1)
    raw = read * std + mean
    # each picture has one colour: red 40 * index, green 0, blue 255
    assert sorted((raw[:, 0, 8, 8] * 255).round().int().tolist()) == [0, 40, 80, 120, 160, 200]
    assert torch.allclose(raw[:, 1], torch.zeros(()), atol=1e-6)
    assert torch.allclose(raw[:, 2], torch.ones(()), atol=1e-6)


def test_grey_and_transparent_images_become_rgb(tmp_path: Path):
    Image.new("L", (9, 9), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tmp_path / "alpha.png")
    assert [tuple(x.shape) for x in folder(tmp_path, Preparation(7))] == [(3, 7, 7)] * 2


def test_folders_without_usable_images(tmp_path: Path):
    with pytest.raises(MBSError, match="is not a directory"):
        folder(tmp_path / "absent")
    with pytest.raises(MBSError, match="no images in"):
        folder(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    with pytest.raises(MBSError, match=r"broken\.jpg cannot be read as an image"):
        folder(tmp_path)[0]
