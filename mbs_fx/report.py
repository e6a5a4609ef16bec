"""Tables that a person reads at a glance: text and HTML of the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tabulate import tabulate

from mbs_fx.analysis import Analysis
from mbs_fx.plan_result import MacroblockPlan, Plan

_HEADERS = (
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


def _row(m: MacroblockPlan) -> tuple[str, ...]:
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
    return text + (f"; {plan.images} images" if plan.images else "")


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


def analysis_text(analysis: Analysis) -> str:
    """Macroblocks of a graph with what lies in each, and what cannot change."""
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
    headers = ("m", "size", "convs", "counted", "RF", "widths", "MFLOP")
    lines = [tabulate(rows, headers, disable_numparse=True)]
    segments = dict.fromkeys(s.name for m in analysis.macroblocks for s in m.segments)
    if segments:
        lines.append("* opaque segments, scaled as a whole: " + ", ".join(segments))
    lines += [f"kept  {line}" for line in kept_lines(analysis.kept)]
    lines += [f"note  {note}" for note in analysis.notes[:8]]
    return "\n".join(lines)


def plan_text(plan: Plan) -> str:
    """The paper's table for a plan, and what was left alone and why."""
    lines = [tabulate([_row(m) for m in plan.macroblocks], _HEADERS, disable_numparse=True), summary(plan)]
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
    table = tabulate([_row(m) for m in plan.macroblocks], _HEADERS, tablefmt="html", disable_numparse=True)
    rest = tabulate([[line] for line in [summary(plan), *kept_lines(plan.kept), *plan.notes]], tablefmt="html")
    return str(table) + str(rest)
