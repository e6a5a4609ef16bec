"""How long the network that a plan makes takes on a device: built, run, timed.

Semantics
- One number per plan, in milliseconds: the time from giving a batch to having the result, after warm-up, in eval mode,
  without gradients.  On an accelerator the host waits for each result.
- The first network that is timed is the reference, its time the median over repetitions.  Every other one takes turns
  with it, and its time is the median ratio of a turn times the reference's: what slows the machine for a while slows
  both.  Turns go on until the ratio is known to `SETTLED`, `MOST` times as many as asked for at the most.
- Time depends on shapes and not on what the weights are.  Plans with equal widths are timed once.
- Neither the graph nor the random number generators change.  The device is left as it was, apart from its caches.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule

from mbs_fx.errors import MBSError
from mbs_fx.results.plan import Plan
from mbs_fx.results.speed import SETTLED, Spread
from mbs_fx.rewriting.rewrite import rewrite
from mbs_fx.runtime.devices import usable
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.shapes.graph_inputs import arguments_of
from mbs_fx.shapes.shapes import random_inputs
from mbs_fx.tracing.example import place_and_dtype

MOST = 4
"""Turns at the most, in multiples of those that were asked for."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a plan's network: call it with a plan.

    ``measured`` maps widths to what was found, ``errors`` to the standard error as a share of it.
    """

    gm: GraphModule
    device: torch.device
    batch: int | None
    repetitions: int
    warmup: int
    prepare: Callable[[GraphModule], Callable[..., Any]] | None
    progress: bool
    measured: dict[tuple[int, ...], float] = field(default_factory=dict[tuple[int, ...], float])
    errors: dict[tuple[int, ...], float] = field(default_factory=dict[tuple[int, ...], float])
    reference: list[tuple[Callable[[], float], float]] = field(default_factory=list[Any])

    def __call__(self, plan: Plan) -> float:
        """The time of a run of the network with a plan's widths."""
        key = tuple(plan.widths.values())
        if key not in self.measured:
            self.measured[key], self.errors[key] = self._time(plan)
            if self.progress:
                share = plan.flops[1] / max(1, plan.flops[0])
                found = f"{self.measured[key]:.3g} ms ± {self.errors[key]:.1%}"
                sys.stderr.write(f"timed a candidate with {share:.1%} of the multiply-adds: {found}\n")
        return self.measured[key]

    def error(self, plan: Plan) -> float:
        """The standard error of a plan's time, as a share of it; the plan was timed before."""
        return self.errors[tuple(plan.widths.values())]

    def _time(self, plan: Plan) -> tuple[float, float]:
        once = self._ready(plan)
        if not self.reference:
            times = [once() for _ in range(self.repetitions)]
            self.reference.append((once, statistics.median(times) * 1e3))
            return self.reference[0][1], Spread.error(times)
        ratios: list[float] = []
        while len(ratios) < MOST * self.repetitions:
            ratios += [self._ratio(once, turn) for turn in range(self.repetitions)]
            if Spread.error(ratios) <= SETTLED:
                break
        return self.reference[0][1] * statistics.median(ratios), Spread.error(ratios)

    def _ratio(self, once: Callable[[], float], turn: int) -> float:
        """Time of a network over that of the reference, one after the other."""
        reference, _ = self.reference[0]
        if turn % 2:
            return once() / reference()
        before = reference()
        return once() / before

    def _ready(self, plan: Plan) -> Callable[[], float]:
        """The network of a plan, warmed up; a call gives the seconds of a run."""
        with random_state_kept():
            small = rewrite(self.gm, plan, criterion="first").eval().to(self.device)
        run = small if self.prepare is None else self.prepare(small)
        inputs = self._inputs(plan)

        def once() -> float:
            with torch.no_grad():
                return self._once(run, inputs)

        for _ in range(self.warmup):
            once()
        return once

    def _inputs(self, plan: Plan) -> tuple[Any, ...]:
        """Random batches of the shapes and types that the plan was made for."""
        _, dtype = place_and_dtype(self.gm)
        shapes = [(self.batch or shape[0], *shape[1:]) for shape in plan.input_shapes]
        values = [value.to(self.device) for value in random_inputs(shapes, plan.input_types, dtype)]
        return arguments_of(plan.input_names, values)

    def _once(self, run: Callable[..., Any], inputs: tuple[Any, ...]) -> float:
        start = time.perf_counter()
        run(*inputs)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(self.device)


def latency_of(
    gm: GraphModule,
    *,
    device: torch.device | str | None = None,
    batch: int | None = 1,
    repetitions: int = 30,
    warmup: int = 5,
    prepare: Callable[[GraphModule], Callable[..., Any]] | None = None,
    progress: bool | None = None,
) -> Latency:
    """What `plan` asks for with ``latency=``: a function from a plan to milliseconds.

    Args:
        gm: the traced graph that the plan is for; not changed.
        device: where to time; None where its parameters lie.
        batch: images in a batch; None as many as in the plan's input shape.
        repetitions: turns of a network and the first one that was timed; more are taken until their ratio is settled.
        warmup: runs before.
        prepare: makes the small network ready as it will be used (``torch.compile``, an export to another
            runtime) and gives what is called with the inputs.
        progress: a line on standard error for every candidate; None where that is a terminal.

    """
    if not isinstance(gm, GraphModule):
        raise MBSError(
            f"{type(gm).__name__} is not a traced graph: trace the model first, mbs_fx.trace(model, example)"
        )
    for name, number in (("repetitions", repetitions), ("batch", 1 if batch is None else batch)):
        if number < 1:
            raise MBSError(f"latency_of: {name} = {number}: give 1 or more")
    if any(p.is_meta for p in gm.parameters()):
        raise MBSError(
            "latency_of: the network has no numbers (device 'meta') and cannot be run: give it weights first"
        )
    place = usable(place_and_dtype(gm)[0] if device is None else device)
    shown = sys.stderr.isatty() if progress is None else progress
    return Latency(gm, place, batch, repetitions, warmup, prepare, shown)
