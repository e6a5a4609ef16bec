"""`mbs_fx.plot`: what Algorithm 1 sees of a network, and what every threshold costs.

Semantics
- Four panels: receptive fields over depth with the threshold, effective flops per convolution (Eq. 4), the scaling
  factor of every macroblock (Eq. 9), and parameters and multiply-adds for every z (the paper's Fig. 4).
- Macroblocks have the colours of the other pictures.  Pale bars are flops whose result is zero.
- Without a plan a panel shows what all plans share; the report draws the rest itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbs_fx.algorithm import effective_flops
from mbs_fx.errors import MBSError
from mbs_fx.pictures.network_boxes import check, on_base_side
from mbs_fx.pictures.png import EXTRA
from mbs_fx.pictures.style import BASE, ENHANCEMENT, LIGHT, beta_text, macroblock_colour
from mbs_fx.pictures.target import target
from mbs_fx.planning.candidates import densities
from mbs_fx.planning.plan import plan as make_plan
from mbs_fx.planning.sweep import sweep
from mbs_fx.results.analysis import Analysis, Conv
from mbs_fx.results.density import Density
from mbs_fx.results.files import write_atomically
from mbs_fx.results.plan import Plan
from mbs_fx.results.sweep import Sweep
from mbs_fx.results.tables import place_text, size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
PARAMETERS, FLOPS, ACCURACY = "#0b5fb0", "#a0487d", "#2f7d4f"
BAR = 0.7
LOG_FROM = 30.0
"""A logarithmic scale where the largest value is this many times the smallest."""


@dataclass(frozen=True)
class Look:
    """Colours of text, lines and page, as matplotlib takes them."""

    text: str = LIGHT["text"]
    muted: str = LIGHT["muted"]
    line: str = LIGHT["line"]
    page: str = LIGHT["page"]

    @property
    def settings(self) -> dict[Any, Any]:
        return {
            "font.size": 9,
            "text.color": self.text,
            "axes.labelcolor": self.muted,
            "axes.edgecolor": self.line,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": self.line,
            "grid.linewidth": 0.6,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "figure.facecolor": self.page,
            "axes.facecolor": "none",
            "savefig.facecolor": self.page,
            "legend.frameon": False,
        }


def plot(
    analysis: Analysis,
    density: Density | None = None,
    plan: Plan | None = None,
    path: str | Path | None = None,
    *,
    plans: Sweep | None = None,
    title: str = "",
) -> Figure:
    """Receptive fields, effective flops, scaling factors, and the curve of all thresholds, in one figure.

    A notebook shows the figure where the call is the last line of a cell.

    Args:
        analysis: of the network.
        density: p_j per convolution; without it every output counts as non-zero.
        plan: the threshold and the factors to show; that of z = 1 if not given.
        path: where to; ``.png``, ``.svg`` or ``.pdf``.
        plans: what `mbs_fx.sweep` gave, with accuracies; made here if not given.
        title: the heading.

    Raises:
        MBSError: matplotlib is not installed, a path that cannot be written, a density or plan of another network.

    """
    require_matplotlib("plot")
    path = None if path is None else target(path, "a plot", SUFFIXES)
    check(analysis, density, plan)
    plan = plan if plan is not None else make_plan(analysis, density)
    from matplotlib import rc_context

    from mbs_fx.pictures.figure import Plot

    with rc_context(Look().settings):
        figure = Plot(figsize=(11, 7.2), layout="constrained")
        axes = figure.subplots(2, 2)
        fields_panel(axes[0, 0], analysis, plan)
        flops_panel(axes[0, 1], analysis, density, plan)
        factors_panel(axes[1, 0], analysis, plan)
        curve_panel(axes[1, 1], sweep(analysis, density) if plans is None else plans, plan)
        _legend(figure, analysis, title)
        if path is not None:
            write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=160))
    return figure


def require_matplotlib(what: str) -> None:
    """Say what is missing before any work is done."""
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise MBSError(f"{what} needs matplotlib, which is not installed: {EXTRA}") from error


def _legend(figure: Figure, analysis: Analysis, title: str) -> None:
    from matplotlib.patches import Patch

    names = [f"m{m.index}  {place_text(m.spatial_size, m.upsampled)}" for m in analysis.macroblocks]
    handles = [Patch(color=macroblock_colour(i), label=name) for i, name in enumerate(names)]
    handles += [Patch(color=BASE, label="base layers"), Patch(color=ENHANCEMENT, label="enhancement layers")]
    if title:
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))


def fields_panel(axes: Axes, analysis: Analysis, plan: Plan | None) -> None:
    """Receptive fields over depth, and the threshold (Fig. 2)."""
    fields = [_field(conv) for conv in analysis.convs]
    axes.set(title="Receptive field of each convolution", xlabel="convolution", ylabel="RF in pixels")
    for index, run in _by_macroblock(analysis):
        axes.plot(run, [fields[i] for i in run], "o", ms=_marker(len(fields)), mew=0, color=macroblock_colour(index))
    if max(fields) / min(fields) > LOG_FROM:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    _depth_axis(axes, len(fields))
    if plan is not None and plan.boundary is not None:
        _boundary_line(axes, fields, max(plan.boundary))


def _depth_axis(axes: Axes, count: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(-0.7, count - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))


def _boundary_line(axes: Axes, fields: Sequence[float], limit: float) -> None:
    """What lies above the threshold, and its value where no points are: they rise from left to right."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    shown = min(limit, high) if isfinite(limit) else high
    axes.axhspan(shown, high, color=ENHANCEMENT, alpha=0.12, lw=0)
    axes.axhline(shown, color=ENHANCEMENT, lw=1.3, clip_on=False)
    words = f"⌈z⌉ = {limit:g}, enhancement above" if isfinite(limit) else "all layers are base layers"
    crossing = next((i for i, field in enumerate(fields) if field > limit), len(fields))
    right = crossing < len(fields) / 2
    below = right or not isfinite(limit)
    axes.annotate(
        words,
        (0.985 if right else 0.015, shown),
        (0, -4 if below else 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="top" if below else "bottom",
        ha="right" if right else "left",
        fontsize=8,
    )


def flops_panel(axes: Axes, analysis: Analysis, density: Density | None, plan: Plan | None) -> None:
    """Effective flops of every convolution (Eq. 4, Fig. 3)."""
    title = (
        "Effective flops of each convolution (pale: times zero)" if density is not None else "Flops of each convolution"
    )
    axes.set(title=title, xlabel="convolution", ylabel="million multiply-adds")
    whole = [conv.flops / 1e6 for conv in analysis.convs]
    used = effective_flops(densities(analysis, density), whole)
    for index, run in _by_macroblock(analysis):
        edges = [i - 0.5 for i in (*run, run[-1] + 1)]
        colour = macroblock_colour(index)
        axes.stairs([whole[i] for i in run], edges, fill=True, color=colour, alpha=0.22, lw=0)
        axes.stairs([used[i] for i in run], edges, fill=True, color=colour, lw=0)
    _depth_axis(axes, len(whole))
    axes.set_ylim(0, max(whole) * 1.05)
    axes.tick_params(axis="x", length=0, pad=8)
    if plan is not None and plan.boundary is not None:
        _sides(axes, [on_base_side(conv.receptive_field, plan.boundary) for conv in analysis.convs])


def _sides(axes: Axes, sides: Sequence[bool | None]) -> None:
    """A band below the bars: base and enhancement layers."""
    from matplotlib.transforms import blended_transform_factory

    at_bottom = blended_transform_factory(axes.transData, axes.transAxes)
    for base, run in groupby(range(len(sides)), lambda i: sides[i]):
        first, *rest = run
        place = [(first - 0.5, len(rest) + 1)]
        colour = BASE if base else ENHANCEMENT
        axes.broken_barh(place, (-0.035, 0.03), transform=at_bottom, clip_on=False, color=colour)


def factors_panel(axes: Axes, analysis: Analysis, plan: Plan | None) -> None:
    """The scaling factor of every macroblock (Eq. 9)."""
    blocks = analysis.macroblocks
    axes.set(title="Scaling factor β of each macroblock", ylim=(0, 1.08))
    for m in blocks:
        axes.bar(m.index, 1, BAR, color=macroblock_colour(m.index), alpha=0.16, lw=0)
    for m in plan.macroblocks if plan is not None else ():
        axes.bar(m.index, m.beta, BAR, color=macroblock_colour(m.index))
        axes.text(m.index, m.beta + 0.015, beta_text(m.beta)[2:], ha="center", va="bottom", fontsize=8)
    names = [f"m{m.index}\n{size_text(m.spatial_size, '×')}" + (" up" if m.upsampled else "") for m in blocks]
    axes.set_xticks(range(len(names)), names if len(names) <= 8 else [f"m{m.index}" for m in blocks])
    axes.tick_params(axis="x", length=0)


def curve_panel(axes: Axes, swept: Sweep, plan: Plan | None) -> None:
    """Parameters and multiply-adds for every threshold (Fig. 4)."""
    z = plan.z if plan is not None else None
    first, last = span_of_thresholds(swept, z)
    axes.set(title="What each threshold leaves", xlabel="z in multiples of the input size", ylabel="% of the original")
    ordered = list(zip(swept.ranges, swept.plans, strict=True))[::-1]
    edges = [first, *(min(max(high, first), last) for (_, high), _ in ordered)]
    for name, colour, shares in (
        ("parameters", PARAMETERS, [100 * p.params[1] / p.params[0] for _, p in ordered]),
        ("multiply-adds", FLOPS, [100 * p.flops[1] / max(p.flops[0], 1) for _, p in ordered]),
    ):
        axes.stairs(shares, edges, baseline=None, color=colour, lw=1.8, label=name)
    _accuracies(axes, swept, (first, last))
    if last / first > LOG_FROM:
        _log_axis(axes)
    axes.set_xlim(first, last)
    axes.set_ylim(0, 105)
    axes.legend(loc="upper left")
    if z is not None:
        low, high = next((ends for ends in swept.ranges if ends[0] <= z < ends[1]), (z, z))
        axes.axvspan(max(low, first), min(high, last), color=ENHANCEMENT, alpha=0.18, lw=0)
        axes.axvline(z, color=ENHANCEMENT, lw=1.3)


def _accuracies(axes: Axes, swept: Sweep, span: tuple[float, float]) -> None:
    """A point for every plan whose accuracy is known, in the middle of its range."""
    known = [(ends, plan.tested) for ends, plan in zip(swept.ranges, swept.plans, strict=True)]
    points = [
        ((max(low, span[0]) * min(max(high, span[0]), span[1])) ** 0.5, 100 * tested)
        for (low, high), tested in known
        if tested is not None and 0 <= tested <= 1
    ]
    if points:
        axes.plot(*zip(*points, strict=True), "o", color=ACCURACY, ms=4, label="accuracy, % of images")


def _log_axis(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def span_of_thresholds(swept: Sweep, z: float | None) -> tuple[float, float]:
    """The thresholds that a curve shows: a little more than those between which something changes."""
    ends = [end for ends in (*swept.ranges, (z or 0.0,)) for end in ends if end > 0 and isfinite(end)]
    return (min(ends) / 1.3, max(ends) * 1.15) if ends else (0.5, 1.5)


def _by_macroblock(analysis: Analysis) -> Iterator[tuple[int, list[int]]]:
    """Neighbouring convolutions of one macroblock."""
    for index, run in groupby(range(len(analysis.convs)), lambda i: analysis.convs[i].macroblock):
        yield index, list(run)


def _field(conv: Conv) -> float:
    return max(conv.receptive_field)


def _marker(count: int) -> float:
    return 6.0 if count < 60 else 4.0 if count < 300 else 2.5
