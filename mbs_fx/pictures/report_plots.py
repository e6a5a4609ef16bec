"""The plots of a report: matplotlib draws what all plans share, the page what the slider moves.

Semantics
- Each panel is an SVG of its own, with the page's colours, and says where its axes lie (pixels of the SVG), so that
  report.js can put lines, bars and bands in their places.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from mbs_fx.pictures.plots import BAR, Look, curve_panel, factors_panel, fields_panel, flops_panel, span_of_thresholds
from mbs_fx.pictures.style import macroblock_colour
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density
from mbs_fx.results.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_THEME = {"#010203": "var(--text)", "#010204": "var(--muted)", "#010205": "var(--line)"}
_LOOK = Look("#010203", "#010204", "#010205", "none")
_DOTS = 72


@dataclass(frozen=True)
class Panel:
    """One plot: its SVG, and where what moves has to go."""

    name: str
    svg: str
    places: dict[str, Any]


def panels(
    analysis: Analysis, density: Density | None, swept: Sweep, boundaries: Sequence[tuple[float, ...] | None]
) -> list[Panel]:
    """The four panels.  ``boundaries`` are those of the plans that the slider goes through."""
    count = len(analysis.macroblocks)

    def fields(axes: Axes, at: Callable[[float, float], tuple[float, float]]) -> dict[str, Any]:
        top = axes.get_ylim()[1]
        limits = [None if b is None else max(b) for b in boundaries]
        return {"lines": [None if b is None else at(0, min(b, top))[1] if isfinite(b) else None for b in limits]}

    def flops(_axes: Axes, at: Callable[[float, float], tuple[float, float]]) -> dict[str, Any]:
        return {"first": at(-0.5, 0)[0], "step": at(0.5, 0)[0] - at(-0.5, 0)[0]}

    def factors(_axes: Axes, at: Callable[[float, float], tuple[float, float]]) -> dict[str, Any]:
        bars = [[at(i - BAR / 2, 0)[0], at(i + BAR / 2, 0)[0]] for i in range(count)]
        return {
            "bars": bars,
            "zero": at(0, 0)[1],
            "one": at(0, 1)[1],
            "colours": list(map(macroblock_colour, range(count))),
        }

    def curve(axes: Axes, at: Callable[[float, float], tuple[float, float]]) -> dict[str, Any]:
        first, last = span_of_thresholds(swept, None)
        ends = [(min(max(low, first), last), min(max(high, first), last)) for low, high in swept.ranges]
        return {"bands": [[at(low, 0)[0], at(high, 0)[0]] for low, high in ends]}

    return [
        _panel("fields", lambda axes: fields_panel(axes, analysis, None), fields),
        _panel("flops", lambda axes: flops_panel(axes, analysis, density, None), flops),
        _panel("factors", lambda axes: factors_panel(axes, analysis, None), factors),
        _panel("curve", lambda axes: curve_panel(axes, swept, None), curve),
    ]


def _panel(name: str, draw: Callable[[Axes], None], places: Callable[..., dict[str, Any]]) -> Panel:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**_LOOK.settings, "svg.fonttype": "none", "svg.hashsalt": name}):
        figure = Figure(figsize=(6.4, 3.5), dpi=_DOTS, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    height = figure.get_figheight() * _DOTS

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = axes.transData.transform((x, y))
        return round(float(across), 2), round(height - float(up), 2)

    box = axes.get_window_extent()
    frame = [round(v, 2) for v in (box.x0, height - box.y1, box.x1, height - box.y0)]
    return Panel(name, _in_page(buffer.getvalue(), name), {"frame": frame, **places(axes, at)})


def _in_page(svg: str, name: str) -> str:
    """Without the preamble, with ids of its own and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for sentinel, colour in _THEME.items():
        svg = svg.replace(sentinel, colour)
    size = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg class="plot" {size[0] if size else ""} xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + svg[svg.index(">") + 1 :]
