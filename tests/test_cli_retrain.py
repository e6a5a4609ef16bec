"""``mbs-fx retrain``: what ``reduce`` wrote, trained on folders of labelled images."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mbs_fx
from mbs_fx.cli import main, retrain

NET = """
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )
"""
ARGUMENTS = (
    "retrain",
    "net-mbs.json",
    "net.py:net",
    "--data",
    "photos",
    "--epochs",
    "2",
    "--batch",
    "4",
    "--lr",
    "0.01",
)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, run):
    """A reduced network, and four images of each of two classes to train and to test on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    for part in ("train", "val"):
        for colour, name in ((40, "dark"), (220, "light")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (20, 20), (colour + index,) * 3).save(folder / f"{index}.png")
    assert run("reduce", "net.py:net", "--size", "16", "--beta", "m2=0.6")[0] == 0
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return (left.value.code or 0, *capsys.readouterr())

    return run


def test_the_network_is_trained_and_written_under_another_name(run, workplace):
    start = (workplace / "net-mbs.safetensors").read_bytes()
    code, out, _ = run(*ARGUMENTS, "--log", "run.jsonl", "--teacher", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["files"] == ["net-mbs-retrained.json", "net-mbs-retrained.safetensors"]
    assert [epoch["epoch"] for epoch in document["epochs"]] == [1, 2]
    assert document["recipe"]["distill"] == 0.5  # the teacher's share where nothing else is said
    assert document["accuracy"] == {"retrained": document["epochs"][-1]["accuracy"]}  # of photos/val
    assert (workplace / "net-mbs.safetensors").read_bytes() == start
    after = load_file("net-mbs-retrained.safetensors")
    assert any(not torch.equal(after[name], value) for name, value in load_file("net-mbs.safetensors").items())
    assert len((workplace / "run.jsonl").read_text().splitlines()) == 2


def test_the_code_that_is_shown_does_the_same(run, workplace):
    _, code, _ = run(*ARGUMENTS, "--checkpoint", "run.ckpt", "--show-code")
    files = ("net-mbs-retrained.json", "net-mbs-retrained.safetensors")
    made = {name: (workplace / name).read_bytes() for name in files}
    for name in (*files, "run.ckpt"):
        (workplace / name).unlink()
    exec(code, {})
    assert {name: (workplace / name).read_bytes() for name in files} == made


def test_a_teacher_needs_no_labels_and_accuracies_add_up(run, workplace):
    code, out, _ = run("reduce", "net.py:net", "--size", "16", "--beta", "m2=0.6", "--images", "photos/train",
                       "--eval", "photos/val", "--out", "again")  # fmt: skip
    assert code == 0
    assert "Accuracy is top-1 on 8 images of photos/val, classes in the order of their names." in out
    found = mbs_fx.Plan.from_json("again.json").accuracy
    assert list(found) == ["original", "inherited", "reconstructed"]
    taught = ("retrain", "again.json", "net.py:net", "--images", "photos/train", "--teacher", "--epochs", "1")
    code, out, _ = run(*taught, "--eval", "photos/val", "--json")
    assert code == 0
    document = json.loads(out)
    assert document["recipe"]["lr"] == 0.01  # a smaller first rate from reconstructed weights
    assert list(document["accuracy"]) == [*found, "retrained"]
    assert mbs_fx.Plan.from_json("again-retrained.json").accuracy == document["accuracy"]
    assert "% reconstructed → " in run("retrain", "again-retrained.json", *taught[2:])[1]


def test_every_field_of_the_recipe_is_an_option():
    options = {name.rstrip("_") for name in inspect.signature(retrain.retrain).parameters}
    assert {field.name for field in dataclasses.fields(mbs_fx.Recipe)} <= options


def test_ctrl_c_writes_no_network(run, workplace, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(mbs_fx, "retrain", interrupted)
    before = set(workplace.iterdir())
    code, _, err = run(*ARGUMENTS, "--checkpoint", "run.ckpt")
    assert code == 130
    assert "no network was written, the same command goes on from run.ckpt" in err
    assert set(workplace.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net-mbs.json", "net.py:net"], "--data DIR"),
        (["net-mbs.json", "net.py:net", "--data", "nowhere"], "nowhere is not a directory"),
        (["net-mbs.json", "net.py:net", "--data", "photos/train/dark"], "each class is a folder"),
        (["net-mbs.json", "net.py:net", "--data", "photos", "--start", "nowhere.pth"], "no weights file nowhere.pth"),
        (["net-mbs.json", "net.py:net", "--data", "photos", "--epochs", "0"], "epochs is 0"),
        (["net-mbs.json", "net.py:net", "--data", "photos", "--out", "nowhere/x"], "no folder nowhere"),
        (["net-mbs.json", "--data", "photos"], ""),
        (["net-mbs.json", "net.py:net", "--data", "photos", "--images", "photos"], "not both"),
        (["net-mbs.json", "net.py:net", "--images", "photos"], "add --teacher"),
        (["net-mbs.json", "net.py:net", "--images", "photos", "--teacher", "--classes", "net.py"], "no effect"),
        (["net-mbs.json", "net.py:net", "--data", "photos", "--classes", "net.py"], "class 'dark' stands 0 times"),
        (["absent.json", "net.py:net", "--data", "photos"], "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(run, arguments, message):
    code, out, err = run("retrain", *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("mbs-fx: error: ")
    assert message in err
    assert err.count("\n") == 1
