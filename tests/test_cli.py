"""The command line: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import mbs_fx
from mbs_fx import sample
from mbs_fx.cli import main
from mbs_fx.cli.session import outputs
from mbs_fx.density.meter import Meter

TINY = """
from torch import nn

def tiny():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )

def untraceable():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x
    return Branching()

def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
"""


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder with a file of networks in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(TINY)
    return tmp_path


@pytest.fixture
def photos(workplace: Path) -> Path:
    folder = workplace / "photos"
    folder.mkdir()
    for index in range(5):
        noise = torch.randint(0, 256, (20, 24, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return (left.value.code or 0, *capsys.readouterr())

    return run


def loaded(code: list[str]) -> nn.Module:
    """What the printed lines of Python build."""
    space: dict[str, nn.Module] = {}
    exec("\n".join(code), space)
    return space["small"]


def test_without_arguments_the_shipped_network_becomes_smaller(run, workplace: Path):
    code, out, err = run("reduce")
    assert (code, err) == (0, "")
    written = json.loads((workplace / "resnet20-mbs.json").read_text())
    assert sorted(p.name for p in workplace.iterdir()) == [
        "net.py",
        "resnet20-mbs.json",
        "resnet20-mbs.safetensors",
    ]
    small = loaded([line.strip() for line in out.splitlines() if line.startswith("    ")])
    size = sum(p.numel() for p in small.parameters())
    assert size == written["params"][1] < written["params"][0] == 269722
    assert small.eval()(sample.images()[:2]).shape == (2, 10)
    printed = next(line for line in out.splitlines() if line.startswith("parameters")).partition(";")[0]
    assert printed in (Path(__file__).parents[1] / "README.md").read_text(), "the output that README shows"
    accuracy = written["accuracy"]
    assert list(accuracy) == ["original", "inherited", "reconstructed"]
    assert accuracy["original"] > 0.88 < accuracy["reconstructed"] + 0.05
    assert "Accuracy is top-1 on 500 test images of CIFAR-10" in out


def test_the_files_hold_what_python_would_have_made(run, workplace: Path):
    run("reduce")
    small = mbs_fx.reduce(torch.fx.symbolic_trace(sample.trained()), sample.images())
    again = mbs_fx.load(sample.resnet(20), workplace / "resnet20-mbs.json", workplace / "resnet20-mbs.safetensors")
    x = sample.images()[:4]
    torch.testing.assert_close(again.eval()(x), small.eval()(x))


def test_a_network_of_ones_own_on_ones_own_images(run, photos: Path, workplace: Path):
    code, out, _ = run("reduce", "net.py:tiny", "--images", "photos", "--size", "16", "--out", "small", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["files"] == ["small.json", "small.safetensors"]
    assert answer["plan"] == json.loads((workplace / "small.json").read_text())
    assert answer["plan"]["images"] == 5
    assert loaded(answer["code"])(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def test_no_more_images_are_read_than_asked_for(run, photos: Path):
    _, out, _ = run("reduce", "net.py:tiny", "--images", "photos", "--size", "16", "--max-images", "2", "--json")
    assert json.loads(out)["plan"]["images"] == 2


def test_without_images_the_output_says_that_densities_are_equal(run):
    code, out, _ = run("reduce", "net.py:tiny", "--size", "16")
    assert code == 0
    assert "densities are taken as equal (p = 1)" in out


def test_weights_from_a_file_reach_the_small_network(run, workplace: Path):
    weights = {key: torch.full_like(value, 0.25) for key, value in sample.trained().state_dict().items()}
    torch.save(weights, workplace / "w.pth")
    code, out, _ = run("reduce", "--weights", "w.pth", "--no-reconstruct", "--json")
    assert code == 0
    assert all((p == 0.25).all() for p in loaded(json.loads(out)["code"]).parameters())


def test_where_nothing_can_be_reduced_nothing_is_written(run, workplace: Path):
    code, out, err = run("reduce", "--z", "100")
    assert (code, err) == (3, "")
    assert "Nothing can be reduced: every receptive field stays within z = 100" in out
    assert "retrain" not in out
    assert [p.name for p in workplace.iterdir()] == ["net.py"]
    plan = json.loads(run("reduce", "--z", "100", "--json")[1])["plan"]
    assert plan["params"][0] == plan["params"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet50"], "does not name a network (torchvision/resnet50"),
        (["torchvision/resnet5O"], "no network 'resnet5O' (torchvision/resnet50,"),
        (["torchvison/resnet50"], "does not name a network (torchvision/resnet50,"),
        (["--max-params", "0.5"], 'did you mean "50%"?'),
        (["--max-flops", "50"], 'did you mean "50%"?'),
        (["net.py:tiny", "--size", "16", "--device", "cpu"], "--device: no effect"),
        (["net.py:tiny", "--size", "16", "--batch", "4", "--workers", "2"], "--batch, --workers: no effect"),
        (["net.py:absent"], "no function or class 'absent'"),
        (["net.py:untraceable", "--size", "16"], ""),
        (["net.py:linear", "--size", "16"], ""),
        (["--images", "."], "no images in"),
        (["--weights", "nowhere.pth"], "no weights file nowhere.pth"),
        (["--z", "0"], "z"),
        (["--size", "64"], "shipped images are 32 x 32"),
        (["--init", "old"], "init 'old'"),
        (["--criterion", "best"], "criterion 'best'"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--out", "nowhere/small"], "there is no folder nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(run, workplace: Path, arguments: list[str], message: str):
    code, out, err = run("reduce", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("mbs-fx: error: ")
    assert message in err
    assert "Traceback" not in err
    assert [p.name for p in workplace.iterdir() if p.suffix in (".json", ".safetensors")] == []


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C at the third reading of a batch: `interruptible` takes it as it takes the signal."""
    real, calls = Meter.run, []

    def run(self: Meter, *given: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(self, *given)

    monkeypatch.setattr(Meter, "run", run)


@pytest.mark.parametrize("command", ["measure", "plan", "sweep", "reduce"])
def test_ctrl_c_leaves_earlier_files_and_writes_beside_them(run, workplace: Path, interrupted, command: str):
    (workplace / "resnet20-density.json").write_text("earlier")
    before = set(workplace.iterdir())
    code, out, err = run(command, "--force")
    assert (code, out) == (130, "")
    assert (
        "interrupted after 32 images. Wrote what they gave to resnet20-density.partial.json" in err
    )  # 2 batches of 16
    assert set(workplace.iterdir()) - before == {workplace / "resnet20-density.partial.json"}
    assert (workplace / "resnet20-density.json").read_text() == "earlier"
    assert mbs_fx.Density.load(workplace / "resnet20-density.partial.json").partial


def test_few_images_are_not_the_population(run, photos: Path):
    small = ("net.py:tiny", "--images", "photos", "--size", "16")
    sentence = "only 5 images were read: the widths hold for these, not for others like them"
    assert sentence in run("measure", *small)[1]
    assert sentence in run("reduce", *small)[1]


@pytest.mark.parametrize("broken", [0, 3], ids=["first", "later"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_read_is_named_or_skipped(
    run, photos: Path, workplace: Path, broken: int, workers: str
):
    (photos / f"{broken}.png").write_bytes(b"no image")
    small = ("measure", "net.py:tiny", "--images", "photos", "--size", "16", "--workers", workers)
    code, _, err = run(*small)
    assert code == 1
    assert err.startswith(f"mbs-fx: error: photos/{broken}.png cannot be read as an image (")
    assert err.count("\n") == 1
    code, out, _ = run(*small, "--on-bad-image", "skip")
    assert code == 0
    assert "4 of 5 images" in out
    assert "1 images were left out: they could not be read" in out
    found = mbs_fx.Density.load(workplace / "tiny-density.json")
    assert (found.images, found.skipped) == (4, 1)


def test_where_no_image_can_be_read_that_is_said(run, photos: Path):
    for file in photos.iterdir():
        file.write_bytes(b"")
    small = ("measure", "net.py:tiny", "--images", "photos", "--size", "16", "--on-bad-image")
    assert run(*small, "skip")[2] == "mbs-fx: error: no images: none of 5 can be read\n"
    assert "'raise' or 'skip'" in run(*small, "ignore")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["reduce", "--batch", "0"],
        ["plan", "--round-to", "0"],
        ["plan", "--round-to", "some"],
        ["reduce", "--images", "nowhere"],
        ["reduce", "--size", "big"],
        ["shrink"],
    ],
)
def test_a_wrong_command_line_exits_with_2(run, arguments: list[str]):
    assert run(*arguments)[0] == 2


def test_help_and_version(run):
    code, out, _ = run("reduce", "--help")
    assert code == 0
    assert [out.index(title) for title in ("Input", "How much", "What stays", "Output")] == sorted(
        out.index(title) for title in ("Input", "How much", "What stays", "Output")
    )
    assert out.index("--images") < out.index("How much") < out.index("--max-params") < out.index("What stays")
    code, out, _ = run("--version")
    assert code == 0
    assert out[0].isdigit()


def test_the_installed_command_answers(workplace: Path):
    command = shutil.which("mbs-fx", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("mbs-fx is not installed in this environment")
    answer = subprocess.run([command, "reduce", "--help"], capture_output=True, text=True, cwd=workplace)
    assert answer.returncode == 0, answer.stderr
    assert "MODEL" in answer.stdout


def test_help_imports_nothing_heavy():
    script = """
import sys
from mbs_fx.cli import main
try:
    main(["reduce", "--help"])
except SystemExit:
    print("modules", *sys.modules)
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    modules = printed.partition("modules ")[2].split()
    assert "mbs_fx.cli.reduce" in modules
    assert sorted({"torch", "numpy", "torchvision", "PIL", "timm", "networkx"} & set(modules)) == []


def test_the_package_is_a_program():
    answer = subprocess.run([sys.executable, "-m", "mbs_fx", "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout == f"{mbs_fx.__version__}\n"


def test_every_public_name_is_there():
    for name in mbs_fx.__all__:
        assert getattr(mbs_fx, name).__name__ == name


def test_stems_folders_and_file_names_all_say_where_to_write(tmp_path: Path):
    suffixes = (".json", ".safetensors")
    assert outputs(None, "net", suffixes) == (Path("net.json"), Path("net.safetensors"))
    assert outputs(tmp_path, "net", suffixes) == (tmp_path / "net.json", tmp_path / "net.safetensors")
    assert outputs(Path("z0.8"), "net", suffixes) == (Path("z0.8.json"), Path("z0.8.safetensors"))
    assert outputs(Path("a.safetensors"), "net", suffixes) == (Path("a.json"), Path("a.safetensors"))
