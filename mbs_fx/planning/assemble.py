"""From kept choices to `Plan`s, many at once: the rows of the paper's table, every width, every cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mbs_fx import algorithm
from mbs_fx.algorithm import Counts, Scaling
from mbs_fx.planning.allocation import check_had, partners
from mbs_fx.planning.candidates import Problem
from mbs_fx.planning.overrides import Overrides
from mbs_fx.results.analysis import Analysis, Macroblock, Stream
from mbs_fx.results.density import FEWEST, Density, few
from mbs_fx.results.plan import MacroblockPlan, Plan
from mbs_fx.results.tables import listed, size_text


@dataclass(frozen=True, slots=True)
class Point:
    """The threshold of a plan, None where all factors are the caller's.

    ``beyond`` is the share of the layers just beyond the boundary that counts as base.
    """

    z: float | None
    beyond: float = 0.0


def assemble(problem: Problem, scaling: Scaling, points: Sequence[Point], notes: Sequence[str] = ()) -> list[Plan]:
    """One plan for each E_base of a scaling; ``points`` say to which thresholds they belong."""
    return _Assembly(problem, scaling).plans(points, tuple(notes))


def unscaled(problem: Problem) -> Plan:
    """The plan with the caller's factors and widths alone."""
    own = replace(problem, scaled=False)
    return assemble(own, own.at([np.inf]), [Point(None)])[0]


def original(problem: Problem) -> Plan:
    """The plan that keeps everything."""
    return unscaled(replace(problem, overrides=Overrides()))


def everything(problem: Problem) -> Counts:
    """Counts that keep everything."""
    return np.array([cell.size for cell in problem.analysis.cells], np.int64).reshape(-1, 1)


class _Assembly:
    """Builds the plans of one scaling from what they share."""

    def __init__(self, problem: Problem, scaling: Scaling) -> None:
        self.problem, self.analysis, self.scaling = problem, problem.analysis, scaling
        counts = problem.counts(scaling)
        self.spent, self.full = problem.costs.at(counts), problem.costs.at(everything(problem))
        self.paths = [conv.target for conv in self.analysis.convs]
        self.before = {conv.target: conv.width for conv in self.analysis.convs}
        place = {conv.name: i for i, conv in enumerate(self.analysis.convs)}
        self.streams = self.spent.widths[[place[s.convs[0]] for s in self.analysis.streams]]
        self.rows = [_Row(problem, m, [place[name] for name in m.convs]) for m in self.analysis.macroblocks]
        self.kept = {**self.analysis.kept, **_kept(problem)}

    def plans(self, points: Sequence[Point], notes: tuple[str, ...]) -> list[Plan]:
        """One plan per column of counts."""
        zs = [np.inf if point.z is None else point.z for point in points]
        limits = self.analysis.boundaries(zs)
        base = algorithm.base_layers(self.analysis.fields, limits)
        return [self._plan(i, point, limits[i], base[i], notes) for i, point in enumerate(points)]

    def _plan(
        self, i: int, point: Point, limit: algorithm.Floats, base: NDArray[np.bool_], notes: tuple[str, ...]
    ) -> Plan:
        widths = self.streams[:, i]
        for index, wanted in self.problem.overrides.fixed.items():
            check_had(self.analysis, self.analysis.streams[index], wanted, int(widths[index]))
        flops = self.spent.conv_flops[:, i]
        density = self.problem.density
        return Plan(
            z=point.z,
            boundary=None if point.z is None else tuple(limit.tolist()),
            beyond=point.beyond,
            macroblocks=tuple(row.at(self.scaling, i, base, flops, widths) for row in self.rows),
            widths=dict(zip(self.paths, self.spent.widths[:, i].tolist(), strict=True)),
            before=self.before,
            kept=self.kept,
            params=(int(self.full.params[0]), int(self.spent.params[i])),
            flops=(int(self.full.flops[0]), int(self.spent.flops[i])),
            model_bytes=(int(self.full.model_bytes[0]), int(self.spent.model_bytes[i])),
            activation_bytes=(int(self.full.activation_bytes[0]), int(self.spent.activation_bytes[i])),
            input_shapes=self.analysis.input_shapes,
            input_types=self.analysis.input_types,
            input_names=self.analysis.input_names,
            opaque=self.analysis.opaque,
            leaves=self.analysis.leaves,
            outputs=self.analysis.outputs,
            images=density.images if density is not None else 0,
            notes=(*_notes(self.problem, widths, point), *notes, *self.analysis.notes),
        )


class _Row:
    """The row of one macroblock: what all plans share, and `at` each of them."""

    def __init__(self, problem: Problem, macroblock: Macroblock, place: list[int]) -> None:
        analysis = problem.analysis
        convs = [analysis.by_name[name] for name in macroblock.convs]
        total = sum(conv.flops for conv in convs if conv.counted)
        effective = algorithm.effective_flops(problem.p[place], [conv.flops for conv in convs])
        mean = sum(effective.tolist()) / total if total else None
        fields = [conv.receptive_field for conv in convs]
        self.macroblock = macroblock
        self.place = np.array(place)
        self.flops = sum(conv.flops for conv in convs)
        self.density = mean if problem.density is not None else None
        self.receptive_field = (min(map(min, fields)), max(map(max, fields)))
        self.streams = np.array([s.index for s in analysis.streams if s.macroblock == macroblock.index], np.int64)
        self.designed = [analysis.streams[i].width for i in self.streams]
        self.segments = tuple(segment.name for segment in macroblock.segments)

    def at(self, scaling: Scaling, plan: int, base: NDArray[np.bool_], flops: Counts, widths: Counts) -> MacroblockPlan:
        """The row in plan number ``plan`` of a scaling."""
        m = self.macroblock
        return MacroblockPlan(
            index=m.index,
            spatial_size=m.spatial_size,
            upsampled=m.upsampled,
            convs=len(m.convs),
            base=int(base[self.place].sum()),
            receptive_field=self.receptive_field,
            density=self.density,
            e_total=float(scaling.e_total[m.index]),
            e_base=float(scaling.e_base[plan]),
            redundancy=float(scaling.redundancy[plan, m.index]),
            beta=float(scaling.beta[plan, m.index]),
            widths=tuple(dict.fromkeys(zip(self.designed, widths[self.streams].tolist(), strict=True))),
            segments=self.segments,
            flops=(self.flops, int(flops[self.place].sum())),
        )


def _kept(problem: Problem) -> Mapping[str, str]:
    """Why paths keep their width: the caller asked for it, or for a layer that shares their channels."""
    said, analysis = problem.overrides, problem.analysis
    result = dict(said.kept)
    for stream in analysis.streams:
        if stream.index not in said.fixed and said.whole.issuperset(stream.out.cells):
            for path in (analysis.by_name[name].target for name in stream.convs):
                result.setdefault(path, f"shares its channels with what keep= names: {partners(analysis, stream)}")
    return result


def _notes(problem: Problem, widths: Counts, point: Point) -> list[str]:
    """Notes on what limits this plan."""
    analysis, notes = problem.analysis, list[str]()
    if (widths == [s.width for s in analysis.streams]).all():
        notes.append("nothing is reduced: every scaling factor is 1, or every width is kept")
    if problem.density is None and point.z is not None:
        notes.append("densities are taken as equal (p = 1): nothing was measured")
    if problem.density is not None:
        notes += _doubts(problem.density, analysis, point)
    grain = problem.overrides.grain
    for what, held in (("a multiple of", grain.multiple), ("at least", grain.least)):
        odd = [s for s in analysis.streams if held > 1 and _misses(problem, s, int(widths[s.index]), what, held)]
        if odd:
            text = listed([f"{analysis.by_name[s.convs[0]].target} ({widths[s.index]})" for s in odd], 8)
            notes.append(
                f"not {what} {held}: {text}: the original width, or channels shared with others, leave no other"
            )
    return notes


def _doubts(density: Density, analysis: Analysis, point: Point) -> Iterator[str]:
    """Notes on what a measurement leaves open."""
    if density.partial:
        yield f"the measurement was cut short after {density.images} images"
    if density.skipped:
        yield f"{density.skipped} images were left out of the measurement"
    if density.images < FEWEST:
        yield few(density.images)
    planned = [m.spatial_size for m in analysis.macroblocks]
    seen = {i.macroblock: i.spatial_size for i in density.intervals}
    moved = next((size_text(size) for m, size in seen.items() if planned[m : m + 1] != [size]), "")
    if moved:
        yield f"the densities were measured at another input size, where a macroblock was {moved}: measure at this one"
    open_ones = [size_text(i.spatial_size) for i in density.intervals if i.z == point.z and not i.settled]
    if open_ones and not moved:
        yield f"{density.images} images do not settle the widths at {', '.join(open_ones)}: read more to be sure"


def _misses(problem: Problem, stream: Stream, width: int, what: str, held: int) -> bool:
    """Whether a scaled width is not what the caller's grain asks for."""
    if stream.index in problem.overrides.fixed:
        return False
    return width % held != 0 if what == "a multiple of" else width < min(held, stream.width)
