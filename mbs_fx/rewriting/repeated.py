"""Repeated reduction: one plan of the original network for all of them.

Semantics
- A reduced network carries the plan that it was made by, in ``meta["mbs"]``, always as a plan of the original: widths
  before, channel indices and parameters are those of the first network.  So the original code, the plan and the
  weights rebuild it, however often it was reduced.
- A plan for a reduced network is made on that network.  `rewrite` takes it, or a plan of the original, and composes
  the two: beta is the product, indices lead through, z and densities are those of the last reduction.
- A plan that was edited by hand keeps its factors and thresholds; its costs are counted anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from mbs_fx.algorithm import redundancy_of
from mbs_fx.errors import MBSError
from mbs_fx.planning.costs import Costs
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.plan import MacroblockPlan, Plan, summary

BEFORE = "reduced before: "


def relative(earlier: Plan | None, plan: Plan) -> Plan:
    """A plan as one of the network that ``earlier`` made: itself, unless it is a plan of the original."""
    if earlier is None or plan.before == earlier.widths or plan.before != earlier.before:
        return plan
    channels: dict[str, tuple[int, ...]] = {}
    for path, kept in plan.channels.items():
        if path in earlier.channels:
            position = {channel: i for i, channel in enumerate(earlier.channels[path])}
            gone = next((channel for channel in kept if channel not in position), None)
            if gone is not None:
                raise MBSError(f"{path}: the plan keeps channel {gone} of the original, which this network has lost")
            channels[path] = tuple(position[channel] for channel in kept)
    rows = tuple(_row_after(a, b) for a, b in zip(earlier.macroblocks, plan.macroblocks, strict=False))
    return replace(
        plan,
        macroblocks=rows if len(rows) == len(plan.macroblocks) else plan.macroblocks,
        before=earlier.widths,
        channels=channels,
        params=(earlier.params[1], plan.params[1]),
        flops=(earlier.flops[1], plan.flops[1]),
        model_bytes=(earlier.model_bytes[1], plan.model_bytes[1]),
        activation_bytes=(earlier.activation_bytes[1], plan.activation_bytes[1]),
    )


def compose(earlier: Plan | None, plan: Plan, analysis: Analysis) -> Plan:
    """A plan of the original that does both: ``earlier``, then ``plan`` on the network that it made.

    ``analysis`` is of that network.
    """
    if earlier is None:
        return plan
    rows = plan.macroblocks
    if [m.spatial_size for m in rows] == [m.spatial_size for m in earlier.macroblocks]:
        pairs = _pairs(analysis, earlier.before, plan.widths)
        rows = tuple(_row(a, b, pairs[b.index]) for a, b in zip(earlier.macroblocks, rows, strict=True))
    history = [note for note in earlier.notes if note.startswith(BEFORE)]
    notes = [note for note in plan.notes if not note.startswith(BEFORE)]
    return replace(
        plan,
        macroblocks=rows,
        before=earlier.before,
        params=(earlier.params[0], plan.params[1]),
        flops=(earlier.flops[0], plan.flops[1]),
        model_bytes=(earlier.model_bytes[0], plan.model_bytes[1]),
        activation_bytes=(earlier.activation_bytes[0], plan.activation_bytes[1]),
        notes=(f"{BEFORE}{summary(earlier)}", *history, *notes),
        channels={
            path: tuple(earlier.channels[path][i] for i in kept)
            for path, kept in plan.channels.items()
            if path in earlier.channels
        },
    )


def _row_after(first: MacroblockPlan, both: MacroblockPlan) -> MacroblockPlan:
    """The row of the second of two reductions; `compose` is the other way round."""
    beta = both.beta / first.beta
    return replace(both, beta=beta, redundancy=redundancy_of(beta), flops=(first.flops[1], both.flops[1]))


def _row(first: MacroblockPlan, then: MacroblockPlan, pairs: tuple[tuple[int, int], ...]) -> MacroblockPlan:
    beta = first.beta * then.beta
    flops = (first.flops[0], then.flops[1])
    return replace(then, beta=beta, redundancy=redundancy_of(beta), widths=pairs, flops=flops)


def _pairs(
    analysis: Analysis, before: Mapping[str, int], after: Mapping[str, int]
) -> dict[int, tuple[tuple[int, int], ...]]:
    """The distinct widths (before, after) of every macroblock."""
    found: dict[int, dict[tuple[int, int], None]] = {m.index: {} for m in analysis.macroblocks}
    for stream in analysis.streams:
        path = analysis.by_name[stream.convs[0]].target
        found[stream.macroblock][before[path], after[path]] = None
    return {index: tuple(pairs) for index, pairs in found.items()}


def recounted(analysis: Analysis, plan: Plan, counts: Sequence[int]) -> Plan:
    """A plan whose widths were edited, with the costs that it comes to; any other as it is."""
    spent = Costs(analysis).at(np.array(counts, np.int64).reshape(-1, 1))
    if (int(spent.params[0]), int(spent.flops[0])) == (plan.params[1], plan.flops[1]):
        return plan
    pairs = _pairs(analysis, plan.before, plan.widths)
    place = {conv.name: i for i, conv in enumerate(analysis.convs)}
    inside = {m.index: [place[name] for name in m.convs] for m in analysis.macroblocks}
    return replace(
        plan,
        macroblocks=tuple(
            replace(m, widths=pairs[m.index], flops=(m.flops[0], int(spent.conv_flops[inside[m.index], 0].sum())))
            for m in plan.macroblocks
        ),
        params=(plan.params[0], int(spent.params[0])),
        flops=(plan.flops[0], int(spent.flops[0])),
        model_bytes=(plan.model_bytes[0], int(spent.model_bytes[0])),
        activation_bytes=(plan.activation_bytes[0], int(spent.activation_bytes[0])),
        notes=("widths were edited: factors and thresholds are those of the plan before", *plan.notes),
    )
