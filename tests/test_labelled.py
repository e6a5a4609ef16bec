"""Labelled images: which output of the network a class is, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from mbs_fx import MBSError, Preparation
from mbs_fx.folder import folder, labelled

SMALL = Preparation(8)


@pytest.fixture
def photos(tmp_path: Path):
    """Make a folder with one image in each class."""

    def make(*names: str) -> Path:
        for number, name in enumerate(names):
            (tmp_path / "photos" / name / "deeper").mkdir(parents=True)
            Image.new("RGB", (8, 8), (50 * number,) * 3).save(tmp_path / "photos" / name / "deeper" / "x.png")
        return tmp_path / "photos"

    return make


def classes_of(data) -> dict[str, int]:
    return {path.parents[1].name: label for path, label in zip(data.paths, data.labels, strict=True)}


def test_names_in_order_are_the_outputs_where_there_are_as_many(photos):
    data = labelled(photos("dog", "cat", "eel"), SMALL, outputs=3)
    assert classes_of(data) == {"cat": 0, "dog": 1, "eel": 2}
    assert data.order == "in the order of their names"
    image, label = data[1]
    assert (image.shape, label) == ((3, 8, 8), 1)


def test_numbers_are_the_outputs_themselves(photos):
    data = labelled(photos("10", "2", "007"), SMALL, outputs=1000)
    assert classes_of(data) == {"10": 10, "2": 2, "007": 7}
    assert data.order == "by their numbers"


@pytest.mark.parametrize("by_file", [True, False])
def test_a_list_of_names_gives_the_outputs(photos, tmp_path, by_file):
    names = ["eel", "ape", "cat", "dog"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n\n")
    data = labelled(photos("dog", "cat"), SMALL, classes=tmp_path / "names.txt" if by_file else names, outputs=4)
    assert classes_of(data) == {"cat": 2, "dog": 3}
    assert data.order == "by the list of 4 names"


@pytest.mark.parametrize("head", ["", "file,label\n"])
def test_a_csv_names_files_and_labels(photos, head):
    root = photos("a", "b")
    (root / "test.csv").write_text(f"{head}a/deeper/x.png,7\n\nb/deeper/x.png, 3\n")
    data = labelled(root / "test.csv", SMALL, outputs=10)
    assert classes_of(data) == {"a": 7, "b": 3}
    (root / "test.csv").write_text(f"{head}a/deeper/x.png,zebra\nb/deeper/x.png,ant\na/deeper/x.png,ant\n")
    assert labelled(root / "test.csv", SMALL, outputs=2).labels == (1, 0, 0)


def test_training_draws_and_testing_does_not(photos):
    root = photos("a")
    noise = torch.randint(0, 256, (12, 12, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(root / "a" / "deeper" / "x.png")
    for make in (
        lambda augment: labelled(root, SMALL, augment=augment)[0][0],
        lambda augment: folder(root, SMALL, augment=augment)[0],
    ):
        assert len({tuple(make(True).flatten().tolist()) for _ in range(8)}) > 1
        assert len({tuple(make(False).flatten().tolist()) for _ in range(2)}) == 1


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("a", "b"), {"outputs": 3}, "there are 2 classes, and the network has 3 outputs: which is which?"),
        (("1", "2"), {"outputs": 2}, "class '2' would be output 2, and the network has 2, counted from 0"),
        (("a",), {"classes": ["b", "c"]}, "class 'a' stands 0 times in the list of 2 names"),
        (("a",), {"classes": ["a", "a"]}, "class 'a' stands 2 times"),
        (("b",), {"classes": ["a", "b"], "outputs": 1}, "class 'b' would be output 1"),
        (("a",), {"classes": "nowhere.txt"}, "nowhere.txt: cannot be read as a list of names"),
        ((), {}, "is not a directory"),
    ],
)
def test_what_does_not_tell_its_output_is_refused(photos, tmp_path, names, options, message):
    photos(*names)
    with pytest.raises(MBSError, match=re.escape(message)) as caught:
        labelled(tmp_path / "photos", SMALL, **options)
    assert "\n" not in str(caught.value)


def test_a_class_without_images_is_named(photos):
    root = photos("a")
    (root / "empty").mkdir()
    with pytest.raises(MBSError, match="empty: there are no images; each class is a folder"):
        labelled(root, SMALL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there are no images"),
        ("file,label\n", "there are no images"),
        ("x.png,1\n", "row 1: there is no file"),
        ("file,label\ny.png,1\n", "row 2: there is no file"),
        ("a/deeper/x.png\n", "row 1: 1 cells; give a file name and a label"),
        ("\x00\xff", "there are no images|cannot be read|1 cells"),
    ],
)
def test_what_is_no_csv_is_refused(photos, text, message):
    root = photos("a")
    (root / "test.csv").write_text(text)
    with pytest.raises(MBSError, match=rf"test\.csv.*({message})"):
        labelled(root / "test.csv", SMALL)
