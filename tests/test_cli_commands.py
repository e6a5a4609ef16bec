"""One test a command: what it prints and writes, the Python it shows, and how it fails."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout

import pytest
import torch
import torchvision
from PIL import Image

import mbs_fx
from mbs_fx import sample
from mbs_fx.cli import main
from mbs_fx.runtime.devices import block

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
MODEL = ("net.py:net", "--size", "16")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        return (left.value.code or 0, *capsys.readouterr())

    return run


def test_analyze(run):
    code, out, _ = run("analyze", *MODEL)
    assert code == 0
    assert "16 × 16" in out
    document = json.loads(run("analyze", *MODEL, "--json")[1])
    assert [conv["width"] for conv in document["convs"]] == [8, 16, 32, 32]
    assert run("analyze", *MODEL, "--opaque", "9+")[2].endswith("no convolution lies in such a module\n")


def test_measure_plan_sweep_reduce_show(run, workplace):
    code, out, _ = run("measure", "--max-images", "32", "--out", "d.json")
    assert (code, "Wrote d.json" in out) == (0, True)
    assert mbs_fx.Density.load("d.json").images == 32
    code, out, _ = run("plan", "--density", "d.json", "--max-params", "60%", "--keep", "conv1", "--json")
    planned = json.loads(out)
    assert code == 0
    assert 0.55 < planned["params"][1] / planned["params"][0] <= 0.6
    assert (workplace / "resnet20-plan.json").exists()
    assert len(json.loads(run("sweep", "--density", "d.json", "--json")[1])["plans"]) > 5
    code, out, _ = run("reduce", "--plan", "resnet20-plan.json", "--json")
    assert json.loads(out)["plan"]["widths"] == planned["widths"]
    assert "Density: 32" in run("show", "d.json")[1]
    assert "fewer" in run("show", "resnet20-plan.json")[1]
    written = (workplace / "resnet20-plan.json").read_text()
    assert json.loads(run("show", "resnet20-plan.json", "--json")[1]) == json.loads(written)
    shown, code = run("show", "d.json")[1], run("show", "d.json", "--show-code")[1]
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == shown


def test_draw_and_report(run, workplace):
    assert json.loads(run("draw", "net.svg", *MODEL, "--json")[1]) == {"files": ["net.svg"]}
    assert (workplace / "net.svg").read_text().startswith("<")
    pytest.importorskip("matplotlib", reason="the extra 'pictures' is not installed")
    assert run("reduce", *MODEL, "--report", "out.html")[0] == 0
    assert "<html" in (workplace / "out.html").read_text()[:200]


def test_overrides_reach_the_plan(run):
    options = ("--beta", "m0=0.5", "--width", "[6]=20", "--round-to", "4", "--min-width", "4")
    widths = json.loads(run("plan", *MODEL, *options, "--json")[1])["widths"]
    assert (widths["0"], widths["6"]) == (4, 20)
    assert all(width % 4 == 0 for width in widths.values())


@pytest.mark.parametrize("command", ["analyze", "plan", "sweep", "reduce", "draw"])
def test_the_code_that_is_shown_does_the_same(run, workplace, command):
    place = ("net.svg",) if command == "draw" else ()
    code, out, _ = run(command, *place, *MODEL, "--show-code")
    assert code == 0
    made = {path: path.read_bytes() for path in workplace.iterdir() if path.suffix in (".json", ".safetensors", ".svg")}
    for path in made:
        path.unlink()
    torch.manual_seed(0)
    exec(out, {})
    assert {path: path.read_bytes() for path in made} == made


@pytest.mark.parametrize(
    "arguments",
    [
        ["measure", "--max-images", "16", "--out", "d.json"],
        ["plan", "--density", "given.json", "--max-flops", "80%", "--keep", "conv1", "--beta", "m2=0.8"],
        ["sweep", "--density", "given.json", "--round-to", "4", "--out", "all.json"],
        ["sweep", *MODEL, "--images", "photos", "--keep", "0", "--eval", "photos", "--out", "tested.json"],
        [
            "reduce",
            "--plan",
            "plan.json",
            "--eval",
            "photos",
            "--density",
            "given.json",
            "--report",
            "out.html",
            "--init",
            "fresh",
        ],
        ["draw", "net.html", "--density", "given.json", "--plan", "plan.json"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_option_is_in_the_code_that_is_shown(run, workplace, arguments):
    if "--report" in arguments:
        pytest.importorskip("matplotlib", reason="the extra 'pictures' is not installed")
    mbs_fx.measure(mbs_fx.trace(sample.trained()), sample.images()[:32]).save("given.json")
    run("plan", "--density", "given.json", "--out", "plan.json")
    (workplace / "photos" / "1").mkdir(parents=True)
    for number in range(10):
        noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(workplace / "photos" / "1" / f"{number}.png")
    given = set(workplace.iterdir())
    torch.manual_seed(0)
    code, out, _ = run(*arguments, "--show-code")
    assert code == 0
    made = {path: path.read_bytes() for path in set(workplace.iterdir()) - given}
    for path in made:
        path.unlink()
    torch.manual_seed(0)
    exec(out, {})
    assert {path: path.read_bytes() for path in made} == made


def test_thresholds_and_blocks(run):
    run("measure", "--max-images", "32", "--z", "0.8", "--z", "1.2", "--out", "d.json")
    assert {i.z for i in mbs_fx.Density.load("d.json").intervals} == {0.8, 1.2}
    made = json.loads(run("plan", "--density", "d.json", "--round-to", "auto", "--device", "cpu", "--json")[1])
    multiple = block(torch.device("cpu"), torch.float32)
    assert all(w % multiple == 0 or w == made["before"][path] for path, w in made["widths"].items())


def test_weights_are_fetched_only_to_measure(run, monkeypatch):
    built = []
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, **given: built.append(given) or torchvision.models.resnet18()
    )
    assert run("plan", "torchvision/fcn_resnet50", "--size", "64")[0] == 0
    assert run("sweep", "torchvision/resnet18", "--size", "64")[0] == 0
    assert built == [{"weights": None, "weights_backbone": None}, {"weights": None}]
    run("reduce", "torchvision/resnet18", "--size", "64")
    assert built[2] == {"weights": "DEFAULT"}


def test_what_a_report_needs_is_looked_for_first(run, workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    before = set(workplace.iterdir())
    assert "pip install" in run("reduce", *MODEL, "--report", "out.html")[2]
    assert set(workplace.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", *MODEL, "--max-params", "101"], "smallest"),
        (["plan", *MODEL, "--max-params", "few"], "write a number, or a share"),
        (["plan", *MODEL, "--keep", "layer9.*"], "layer9"),
        (["plan", *MODEL, "--beta", "[0]=0.5", "--width", "[0]=5"], "[0]"),
        (["plan", *MODEL, "--beta", "half"], "KEY=NUMBER"),
        (["plan", *MODEL, "--out", "nowhere/plan.json"], "no folder nowhere"),
        (["measure", *MODEL], "--images DIR"),
        (["reduce", *MODEL, "--plan", "new.json"], "version 99"),
        (["reduce", *MODEL, "--plan", "new.json", "--z", "0.5"], "leave out z"),
        (["reduce", *MODEL, "--plan", "new.json", "--images", "."], "leave out images"),
        (["sweep", *MODEL, "--density", "new.json"], "new.json"),
        (["reduce", *MODEL, "--out", "nowhere/small"], "no folder nowhere"),
        (["reduce", *MODEL, "--report", "nowhere/out.html"], "no folder nowhere"),
        (["reduce", *MODEL, "--report", "out.pdf"], ".pdf"),
        (["measure", "--out", "nowhere/d.json"], "no folder nowhere"),
        (["sweep", *MODEL, "--out", "nowhere/s.json"], "no folder nowhere"),
        (["draw", "nowhere/net.svg", *MODEL], "no folder nowhere"),
        (["draw", "net.svg", *MODEL, "--plan", "new.json"], "version 99"),
        (["show", "new.json"], "version 99"),
        (["plan", *MODEL, "--keep", "9x9"], "9x9"),
        (["plan", *MODEL, "--keep", "m0", "--beta", "m0=0.5"], "m0"),
        (["plan", *MODEL, "--beta", "m0=1.5"], "1.5"),
        (["plan", *MODEL, "--width", "[0]=9"], "9"),
        (["plan", *MODEL, "--max-params", "0%"], "0%"),
        (["draw", "net.bmp", *MODEL], ".bmp"),
        (["plan", *MODEL, "--density", "new.json"], "this is a plan: use --plan"),
        (["reduce", *MODEL, "--plan", "d.json"], "this is a density: use --density"),
        (["reduce", *MODEL, "--plan", "new.json", "--device", "cpu"], "leave out device"),
        (["show", "net.py"], "not a file of mbs-fx"),
        (["show", "absent.json"], "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(run, workplace, arguments, message):
    (workplace / "new.json").write_text('{"format": "mbs_fx.plan", "version": 99}')
    (workplace / "d.json").write_text('{"format": "mbs_fx.density", "version": 1}')
    code, _, err = run(*arguments)
    assert code == 1
    assert err.startswith("mbs-fx: error: ")
    assert message in err
    assert "Traceback" not in err


def test_a_plan_is_applied_at_the_size_it_was_made_for(run, workplace):
    assert run("plan", *MODEL, "--out", "p.json")[0] == 0
    assert run("draw", "net.svg", "net.py:net", "--plan", "p.json")[0] == 0
    assert "16 × 16" in (workplace / "net.svg").read_text()
    code, _, err = run("reduce", "net.py:net", "--plan", "p.json", "--size", "32")
    assert (code, err) == (1, "mbs-fx: error: p.json was made for --size 16: leave out --size 32, or plan anew\n")


def test_nothing_is_overwritten_unless_told_to(run, workplace):
    (workplace / "net-mbs.json").write_text("edited by hand")
    (workplace / "small.py").write_text("mine")
    arguments = ["reduce", "net.py:net", "--size", "16", "--weights", "none"]
    for more, taken in (([], "net-mbs.json"), (["--export", "small.py", "--out", "other"], "small.py")):
        code, _, error = run(*arguments, *more)
        assert (code, error.count("\n")) == (1, 1)
        assert f"{taken} exists: --force overwrites it" in error
    assert (workplace / "net-mbs.json").read_text() == "edited by hand"
    code, out, _ = run(*arguments, "--export", "small.py", "--force")
    assert code == 0
    assert "small.py, small.safetensors" in out
    assert "def load(" in (workplace / "small.py").read_text()


def test_bench(run, workplace, monkeypatch):
    monkeypatch.setattr("mbs_fx.benchmarking.bench.BLOCK", 1e-4)
    run("plan", "net.py:net", "--size", "16", "--beta", "4=0.5", "--out", "p.json")
    code, out, _ = run("bench", "net.py:net", "p.json", "--batch", "2", "--threads", "1", "--repetitions", "2")
    assert code == 0
    assert "times faster" in out
    code, out, _ = run("bench", "net.py:net", "p.json", "--batch", "2", "--repetitions", "1", "--show-code")
    assert "mbs_fx.bench(source.model, small, batch_sizes=(2,), backends=('eager',), repetitions=1)" in out
