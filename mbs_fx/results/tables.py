"""Tables that a person reads at a glance: text and HTML of the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from tabulate import tabulate

from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density, Interval
from mbs_fx.results.plan import MacroblockPlan, Plan

PLAN_HEADERS = (
    "m",
    "size",
    "convs",
    "RF",
    "layers",
    "density",
    "r",
    "β",
    "widths before → after",
    "MFLOP before → after",
)


def size_text(size: tuple[int, ...]) -> str:
    """A size as people write it."""
    return " × ".join(str(s) for s in size)


def plan_row(m: MacroblockPlan) -> tuple[str, ...]:
    """A macroblock as a row under `PLAN_HEADERS`."""
    if m.base == m.convs:
        layers = "base"
    else:
        layers = "enhancement" if m.base == 0 else f"{m.base} base, {m.convs - m.base} enh."
    low, high = m.receptive_field
    return (
        f"{m.index}{'*' if m.segments else ''}",
        size_text(m.spatial_size) + (" up" if m.upsampled else ""),
        str(m.convs),
        f"{low:g}" if low == high else f"{low:g} – {high:g}",
        layers,
        "" if m.density is None else f"{m.density:.3f}",
        f"{m.redundancy:.4f}",
        f"{m.beta:.4f}",
        _widths(m.widths),
        f"{m.flops[0] / 1e6:.1f} → {m.flops[1] / 1e6:.1f}",
    )


def _widths(pairs: tuple[tuple[int, int], ...], most: int = 5) -> str:
    text = [f"{a} → {b}" if a != b else str(a) for a, b in pairs[:most]]
    return ", ".join(text) + (f", … ({len(pairs)})" if len(pairs) > most else "")


def summary(plan: Plan) -> str:
    """One line: parameters, flops, threshold, images."""
    (p0, p1), (f0, f1) = plan.params, plan.flops
    share = 1 - f1 / f0 if f0 else 0.0
    text = f"parameters {p0:,} → {p1:,} ({plan.reduction:.2%} fewer), multiply-adds {f0:,} → {f1:,} ({share:.2%} fewer)"
    if plan.z is not None and plan.boundary is not None:
        limit = ", ".join(f"{b:g}" for b in dict.fromkeys(plan.boundary))
        text += f"; z = {plan.z:g} L, ⌈z⌉_RF = {limit}"
        text += f" and {plan.beyond:.0%} of the layers just beyond" if plan.beyond else ""
    return text + (f"; {plan.images} images" if plan.images else "")


def memory(plan: Plan) -> str:
    """One line: bytes on disk and in feature maps."""
    pairs = [f"{a / 1e6:,.2f} → {b / 1e6:,.2f} MB" for a, b in (plan.model_bytes, plan.activation_bytes)]
    return f"weights {pairs[0]}, feature maps of one image {pairs[1]} at the most"


def kept_lines(kept: Mapping[str, str], most: int = 12) -> list[str]:
    """What keeps its width, grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in kept.items():
        by_reason.setdefault(reason, []).append(path)
    ranked = Counter({reason: len(paths) for reason, paths in by_reason.items()}).most_common(most)
    lines = []
    for reason, count in ranked:
        paths = by_reason[reason]
        shown = ", ".join(paths[:3]) + (f" and {count - 3} more" if count > 3 else "")
        lines.append(f"{shown}: {reason}")
    return lines


_ANALYSIS_HEADERS = ("m", "size", "convs", "counted", "RF", "widths", "MFLOP")


def _analysis_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for m in analysis.macroblocks:
        convs = [analysis.by_name[name] for name in m.convs]
        low, high = min(min(c.receptive_field) for c in convs), max(max(c.receptive_field) for c in convs)
        widths = dict.fromkeys((s.width, s.width) for s in analysis.streams if s.macroblock == m.index)
        rows.append(
            (
                f"{m.index}{'*' if m.segments else ''}",
                size_text(m.spatial_size) + (" up" if m.upsampled else ""),
                str(len(convs)),
                str(sum(c.counted for c in convs)),
                f"{low:g}" if low == high else f"{low:g} – {high:g}",
                _widths(tuple(widths)),
                f"{sum(c.flops for c in convs) / 1e6:.1f}",
            )
        )
    return rows


def _analysis_rest(analysis: Analysis) -> list[str]:
    segments = dict.fromkeys(s.name for m in analysis.macroblocks for s in m.segments)
    lines = ["* opaque segments, scaled as a whole: " + ", ".join(segments)] if segments else []
    lines += [f"kept  {line}" for line in kept_lines(analysis.kept)]
    return lines + [f"note  {note}" for note in analysis.notes[:8]]


def analysis_text(analysis: Analysis) -> str:
    """Macroblocks of a graph with what lies in each, and what cannot change."""
    table = tabulate(_analysis_rows(analysis), _ANALYSIS_HEADERS, disable_numparse=True)
    return "\n".join([table, *_analysis_rest(analysis)])


def analysis_html(analysis: Analysis) -> str:
    """The same as HTML, for notebooks."""
    table = tabulate(_analysis_rows(analysis), _ANALYSIS_HEADERS, tablefmt="html", disable_numparse=True)
    return str(table) + _lines_html(_analysis_rest(analysis))


def _lines_html(lines: Sequence[str]) -> str:
    return str(tabulate([[line] for line in lines], tablefmt="html", disable_numparse=True)) if lines else ""


def density_html(density: Density) -> str:
    """A density for notebooks: what is known of every scaling factor, and p of every convolution."""
    head = str(density).splitlines()[0]
    factors = [
        (f"{i.z:g}", size_text(i.spatial_size), f"{i.beta:.4f}", f"{i.low:.4f} – {i.high:.4f}", _state(i))
        for i in density.intervals
    ]
    known = tabulate(factors, ("z", "size", "β", "between", "widths"), tablefmt="html", disable_numparse=True)
    rows = [(name, f"{p:.4f}", f"{density.stderr[name]:.4f}") for name, p in density.p.items()]
    table = tabulate(rows, ("convolution", "p", "standard error"), tablefmt="html", disable_numparse=True)
    each = f"<details><summary>p of {len(rows)} convolutions</summary>{table}</details>"
    return f"<p>{escape(head)}</p>{known if factors else ''}{each}{_lines_html(density.notes)}"


def _state(interval: Interval) -> str:
    return ("settled" if interval.settled else "not settled") + (f", {interval.edge}" if interval.edge else "")


def plan_text(plan: Plan) -> str:
    """The paper's table for a plan, and what was left alone and why."""
    lines = [
        tabulate([plan_row(m) for m in plan.macroblocks], PLAN_HEADERS, disable_numparse=True),
        summary(plan),
        memory(plan),
    ]
    segments = [name for m in plan.macroblocks for name in m.segments]
    if segments:
        lines.append("* opaque segments, scaled as a whole: " + ", ".join(dict.fromkeys(segments)))
    lines += [f"kept  {line}" for line in kept_lines(plan.kept)]
    lines += [f"note  {note}" for note in plan.notes[:8]]
    if len(plan.notes) > 8:
        lines.append(f"note  … and {len(plan.notes) - 8} more")
    return "\n".join(lines)


def plan_html(plan: Plan) -> str:
    """The same as HTML, for notebooks."""
    table = tabulate([plan_row(m) for m in plan.macroblocks], PLAN_HEADERS, tablefmt="html", disable_numparse=True)
    return str(table) + _lines_html([summary(plan), memory(plan), *kept_lines(plan.kept), *plan.notes])


SWEEP_HEADERS = (
    "z / L",
    "⌈z⌉_RF",
    "base",
    "β",
    "parameters",
    "fewer",
    "MFLOP",
    "fewer",
    "model, kB",
    "activations, kB",
)


def sweep_row(plan: Plan, span: tuple[float, float]) -> tuple[str, ...]:
    """A plan and the thresholds that lead to it as a row under `SWEEP_HEADERS`."""
    p1, (f0, f1) = plan.params[1], plan.flops
    low, high = span
    return (
        f"{low:.3g} – {high:.3g}" if high < float("inf") else f"from {low:.3g}",
        ", ".join(f"{b:g}" for b in dict.fromkeys(plan.boundary or ())),
        f"{sum(m.base for m in plan.macroblocks)} of {sum(m.convs for m in plan.macroblocks)}",
        ", ".join(f"{m.beta:.3f}" if m.beta < 1 else "1" for m in plan.macroblocks),
        f"{p1:,}",
        f"{plan.reduction:.2%}",
        f"{f1 / 1e6:,.1f}",
        f"{1 - f1 / f0 if f0 else 0.0:.2%}",
        f"{plan.model_bytes[1] / 1e3:,.1f}",
        f"{plan.activation_bytes[1] / 1e3:,.1f}",
    )


def sweep_text(plans: Sequence[Plan], ranges: Sequence[tuple[float, float]]) -> str:
    """What every threshold costs: the paper's Fig. 4(b) as a table."""
    rows = [sweep_row(plan, span) for plan, span in zip(plans, ranges, strict=True)]
    sizes = ", ".join(size_text(m.spatial_size) + (" up" if m.upsampled else "") for m in plans[0].macroblocks)
    lines = [tabulate(rows, SWEEP_HEADERS, disable_numparse=True), f"β of the macroblocks at {sizes}"]
    if any("p = 1" in note for note in plans[0].notes):
        lines.append("note  densities are taken as equal (p = 1): nothing was measured")
    return "\n".join(lines)


def sweep_html(plans: Sequence[Plan], ranges: Sequence[tuple[float, float]]) -> str:
    """The same as HTML, for notebooks."""
    rows = [sweep_row(plan, span) for plan, span in zip(plans, ranges, strict=True)]
    return str(tabulate(rows, SWEEP_HEADERS, tablefmt="html", disable_numparse=True))
