"""`mbs_fx.write_report`: one page with everything there is to see, and a slider over z.

Semantics
- The slider goes through the plans of `mbs_fx.sweep`, from the smallest network to the original.  A plan that is none
  of these (a budget, overrides) has a place among them by its number of parameters.
- The page is one file and asks for nothing from outside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from mbs_fx.errors import MBSError
from mbs_fx.pictures.diagram import diagram
from mbs_fx.pictures.draw import network, reported_errors
from mbs_fx.pictures.graphviz_layout import PAGE, fitting
from mbs_fx.pictures.network_boxes import Scene, scene
from mbs_fx.pictures.outcome import cards, outcome, outcome_texts
from mbs_fx.pictures.page import fill, packed, picture_parts
from mbs_fx.pictures.plots import require_matplotlib
from mbs_fx.pictures.report_plots import panels
from mbs_fx.pictures.style import macroblock_colour
from mbs_fx.pictures.svg import asset, base_words
from mbs_fx.pictures.target import target
from mbs_fx.planning.plan import plan as make_plan
from mbs_fx.planning.sweep import sweep
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density
from mbs_fx.results.files import write_text
from mbs_fx.results.glossary import WORDS
from mbs_fx.results.plan import PLAN_HEADERS, Plan, plan_row
from mbs_fx.results.reconstruction import Reconstruction
from mbs_fx.results.speed import Bench
from mbs_fx.results.sweep import Sweep, sweep_rows
from mbs_fx.results.tables import kept_lines, place_text, size_text

CARDS = (
    ("params", "parameters"),
    ("flops", "multiply-adds for one image"),
    ("model", "weights on disk"),
    ("activations", "peak activation memory, one image"),
)


@dataclass(frozen=True)
class Stop:
    """A place of the slider: a plan, and its range of thresholds (its number in the sweep; None if not of it)."""

    plan: Plan
    ends: tuple[float, float]
    number: int | None


def write_report(
    x: Any,
    density: Density | None = None,
    plan: Plan | None = None,
    path: str | Path = "mbs-report.html",
    *,
    example: Any = None,
    title: str | None = None,
    code: Sequence[str] = (),
    reconstruction: Reconstruction | None = None,
    bench: Bench | None = None,
    plans: Sweep | None = None,
) -> Path:
    """Write the report of a reduction as one HTML page: tables, picture, plots, and a slider over z.

    Args:
        x: a traced graph or its `Analysis`.
        density: p_j per convolution; without it every output counts as non-zero.
        plan: what is shown first; that of z = 1 if not given.
        path: where to, ending in ``.html``.
        example: an input tensor or its shape, for a graph whose shapes are not known.
        title: the heading; the name of the network's class where it is known and nothing is said.
        code: lines of Python that load the reduced network, to be shown.
        reconstruction: ``small.meta["mbs_reconstruction"]``: what each layer of the plan's network lost.
        bench: what `mbs_fx.bench` gave for the plan's network.
        plans: what `mbs_fx.sweep` gave, with accuracies; made here if not given.

    Returns:
        The path.

    Raises:
        MBSError: matplotlib is not installed, a path that cannot be written, a graph of unknown shapes, a density or
            a plan of another network.

    """
    path = report_target(path)
    analysis, plan = network(x, None, plan, example)
    if analysis is None:
        raise MBSError("a report needs the network that the plan was made for: pass the analysis, and plan=")
    plan = plan if plan is not None else make_plan(analysis, density)
    name = analysis.name if title is None else title
    swept = sweep(analysis, density) if plans is None else plans
    if plans is not None and swept.plans[0].before != plan.before:
        raise MBSError("plans: this sweep was made for another network")
    seen = scene(analysis, density, plan, None, reported_errors(x, reconstruction))
    write_text(path, _page(seen, swept, plan, name, code, bench))
    return path


def report_target(path: str | Path) -> Path:
    """The path of a report, once it is known that one can be made and written there."""
    require_matplotlib("a report")
    return target(path, "a report", (".html",))


def _page(seen: Scene, swept: Sweep, plan: Plan, title: str, code: Sequence[str], bench: Bench | None) -> str:
    from markupsafe import Markup

    picture = diagram(seen)
    parts = picture_parts(picture, fitting(picture, "auto", PAGE)[1])
    stops = _stops(swept, plan)
    plots = panels(seen.analysis, seen.density, swept, [stop.plan.boundary for stop in stops])
    rows, headers = sweep_rows([(stop.plan, stop.ends) for stop in stops])
    data = _payload(seen, stops, plan, title, bench) | {"places": {panel.name: panel.places for panel in plots}}
    return fill(
        "report.html",
        parts
        | {
            "title": title or "Macroblock scaling",
            "subtitle": ", ".join(_subtitle(seen, plan)),
            "css": parts["css"] + Markup(asset("report.css")),
            "opaque": [s.name for m in seen.analysis.macroblocks for s in m.segments],
            "cards": [*CARDS, *cards([stop.plan for stop in stops], bench)],
            "errors": data["errors"] is not None,
            "headers": PLAN_HEADERS,
            "words": WORDS,
            "code": "\n".join(code),
            "sweep_headers": headers,
            "plans": [{"sweep_row": row} for row in rows],
            "convs": len(seen.analysis.convs),
            "keys": list(_keys(seen.analysis)),
            "panels": [{"name": panel.name, "svg": Markup(panel.svg)} for panel in plots],
            "captions": _captions(seen.density),
            "left_alone": _left_alone(seen.analysis, plan),
            "notes": plan.notes,
            "report_payload": packed(json.dumps(data).encode()),
            "report_script": Markup(asset("report.js")),
        },
    )


def _stops(swept: Sweep, plan: Plan) -> list[Stop]:
    """Where the slider stops, the smallest network first."""
    made = [_known(plan, p) if p.widths == plan.widths else p for p in swept.plans]
    stops = [Stop(p, ends, i) for i, (p, ends) in enumerate(zip(made, swept.ranges, strict=True))][::-1]
    if all(p.widths != plan.widths for p in made):
        z = plan.z or 0.0
        stops = sorted([*stops, Stop(plan, (z, z), None)], key=lambda stop: stop.plan.params[1])
    return stops


def _known(plan: Plan, swept: Plan) -> Plan:
    """The plan given, with the accuracy of the same plan in the sweep where it has none."""
    return plan if plan.accuracy else replace(plan, accuracy=swept.accuracy)


def _payload(seen: Scene, stops: list[Stop], plan: Plan, title: str, bench: Bench | None) -> dict[str, Any]:
    """What report.js works on.  Convolutions with the same widths in every plan share a column."""
    columns: dict[tuple[int, ...], int] = {}
    of_path: dict[str, int] = {}
    for path, before in plan.before.items():
        column = (before, *(stop.plan.widths[path] for stop in stops))
        of_path[path] = columns.setdefault(column, len(columns))
    boxes = seen.boxes
    given = next(i for i, stop in enumerate(stops) if stop.plan.widths == plan.widths)
    errors = [None if box.error is None else f"{box.error.after:.3f}" for box in boxes]
    original = plan.accuracy.get("original", max(stops, key=lambda stop: stop.plan.params[1]).plan.tested)
    return {
        "given": given,
        "errors": errors if any(errors) else None,
        "plans": [_stop_payload(stop, title, original, bench if i == given else None) for i, stop in enumerate(stops)],
        "columns": list(columns),
        "columnOf": [None if box.conv is None else of_path[box.conv.target] for box in boxes],
        "fields": [None if box.geometry is None else box.geometry.receptive_field for box in boxes],
        "blocks": [box.macroblock for box in boxes],
        "density": [None if box.p is None else f"{box.p:.3f}" for box in boxes],
        "convs": [box.number for box in boxes if box.conv is not None],
    }


def _stop_payload(stop: Stop, title: str, original: float | None, bench: Bench | None) -> dict[str, Any]:
    plan = stop.plan
    pairs = {
        "params": (plan.params, "{:,.0f}", 1),
        "flops": (plan.flops, "{:,.1f} million", 1e6),
        "model": (plan.model_bytes, "{:,.2f} MB", 1e6),
        "activations": (plan.activation_bytes, "{:,.2f} MB", 1e6),
    }
    lead = f"{sentence(plan, title)} {outcome(plan, original, bench)}".strip()
    texts = {
        **outcome_texts(plan, original, bench),
        "sentence": lead,
        "z": _z_text(stop),
        "boundary": _boundary_text(plan),
    }
    texts["limit"] = base_words(plan.boundary) if plan.boundary is not None else ""
    for name, ((before, after), form, unit) in pairs.items():
        texts[name] = form.format(after / unit)
        texts[f"{name}-change"] = f"{form.format(before / unit).removesuffix(' million')} → {form.format(after / unit)}"
        texts[f"{name}-fewer"] = f"{1 - after / before:.2%} fewer" if before else ""
    limits = plan.boundary
    return {
        "texts": texts,
        "rows": [plan_row(m) for m in plan.macroblocks],
        "betas": [m.beta for m in plan.macroblocks],
        "boundary": None if limits is None else [b if isfinite(b) else None for b in limits],
        "range": stop.number,
    }


def sentence(plan: Plan, name: str) -> str:
    """What a plan does and why, in one sentence."""
    name = name or "This network"
    sees = "the whole image" if plan.z == 1 else f"{plan.z:g} times the image" if plan.z is not None else ""
    if plan.params[0] == plan.params[1]:
        all_base = sees and all(m.base == m.convs for m in plan.macroblocks)
        why = f"no layer sees more than {sees}" if all_base else "every factor is 1, or every width is kept"
        return f"{name} keeps all its parameters: {why}."
    fewer = 1 - plan.flops[1] / plan.flops[0] if plan.flops[0] else 0.0
    loss = f"{name} loses {plan.reduction:.0%} of its parameters and {fewer:.0%} of its multiply-adds"
    smaller, total = [m for m in plan.macroblocks if m.beta < 1], len(plan.macroblocks)
    if not smaller or not sees:
        return f"{loss}, by factors or widths that were given."
    count = len(smaller)
    where = f"the last {count}" if smaller == list(plan.macroblocks[-count:]) else f"{count}"
    where = "every resolution" if count == total else f"{where} of {total} resolutions"
    sizes = ", ".join(size_text(m.spatial_size) for m in smaller[:4]) + (", …" if count > 4 else "")
    return f"{loss}: at {where} ({sizes}) layers see more than {sees}."


def _z_text(stop: Stop) -> str:
    if stop.number is None:
        return "the plan given"
    low, high = stop.ends
    if not isfinite(high):
        return f"z from {low:.3g} L"
    return f"z = {low:.3g} … {high:.3g} L"


def _boundary_text(plan: Plan) -> str:
    if plan.boundary is None:
        return "scaling factors were given: there is no threshold"
    limit = size_text(tuple(dict.fromkeys(plan.boundary)))
    base, convs = sum(m.base for m in plan.macroblocks), sum(m.convs for m in plan.macroblocks)
    if base == convs:
        return f"all {convs} convolutions are base layers"
    return f"⌈z⌉_RF = {limit}: {base} base layers, {convs - base} enhancement layers above the line"


def _subtitle(seen: Scene, plan: Plan) -> Iterator[str]:
    yield f"{len(seen.analysis.convs)} convolutions in {len(seen.analysis.macroblocks)} macroblocks"
    yield "input " + " and ".join(size_text(shape[1:]) for shape in seen.analysis.input_shapes)
    yield f"densities from {seen.density.images:,} images" if seen.density is not None else "no densities: p = 1"
    if plan.z is not None:
        yield f"planned at z = {plan.z:g} L"


def _keys(analysis: Analysis) -> Iterator[tuple[str, str]]:
    for m in analysis.macroblocks:
        yield macroblock_colour(m.index), f"m{m.index}, {place_text(m.spatial_size, m.upsampled)}"
    yield "var(--base)", "base layers"
    yield "var(--enhancement)", "enhancement layers"


def _captions(density: Density | None) -> dict[str, str]:
    solid = (
        "solid: p × flops; pale: work on zeros; white: not counted" if density is not None else "nothing was measured"
    )
    return {
        "fields": "",
        "flops": solid,
        "factors": "β = 1 / (1 + r), the factor for all widths of a macroblock",
        "curve": "the band is the range of z with the plan shown",
    }


def _left_alone(analysis: Analysis, plan: Plan) -> list[str]:
    segments = {s.name: s.reason for m in analysis.macroblocks for s in m.segments}
    lines = [f"{name}, opaque: {reason}; scaled by one β as a whole" for name, reason in segments.items()]
    return [*kept_lines(plan.kept, most=100), *lines]
