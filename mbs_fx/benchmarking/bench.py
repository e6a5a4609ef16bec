"""`mbs_fx.bench`: how much faster the small network is, measured.

Semantics
- `torch.utils.benchmark` times; on an accelerator it waits for the result.
- The two networks take turns, and the order within a turn alternates.  The ratio is the median over turns: what slows
  the machine for a while slows both.  Turns go on until its standard error is `SETTLED`, `MOST` times as many as asked
  for or `LONGEST` at the most; a result that is not settled says so.
- Eval mode, no gradients, random inputs of the shapes that the plan was made for.  Neither network is changed.
- Peak memory: on an accelerator what the allocator held at the most during a run; elsewhere the bytes of the weights
  and the feature maps, by the plan, where the small network carries one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mbs_fx.benchmarking.backends import Run, check_backends, prepared
from mbs_fx.errors import MBSError
from mbs_fx.results.speed import SETTLED, Bench, Spread, Timing
from mbs_fx.rewriting.carried_plan import plan_in
from mbs_fx.rewriting.weights import unwrapped
from mbs_fx.runtime.devices import usable
from mbs_fx.shapes.shapes import random_inputs
from mbs_fx.tracing.check import copied
from mbs_fx.tracing.example import example_of, is_shape, place_and_dtype

BLOCK = 0.02
"""Seconds that one network runs in a turn, at least; short runs are repeated."""

MOST = 64
"""Turns at the most, in multiples of those that were asked for."""

LONGEST = 120.0
"""Seconds after which no more turns are taken than were asked for."""


def bench(
    original: nn.Module,
    small: nn.Module,
    example: Any = None,
    *,
    batch_sizes: Sequence[int] = (1, 16),
    threads: int | None = None,
    device: torch.device | str | None = None,
    backends: Sequence[str] = ("eager",),
    repetitions: int = 15,
) -> Bench:
    """Time two networks side by side.

    Args:
        original: the network before.
        small: the network after.
        example: an input, its shape, or one per input; None where ``small`` carries a plan.
        batch_sizes: images in a batch, one row of the result each.
        threads: threads on the CPU; None as torch has it.
        device: where; None where the parameters of ``small`` are.
        backends: "eager", "compile" (torch.compile), "onnxruntime".
        repetitions: turns; more are taken until the ratio is settled.

    Returns:
        A `Bench`, which prints as a table.

    Raises:
        MBSError: a device or runtime that is not there, or an input that is not known.

    """
    for name, numbers in (("batch_sizes", batch_sizes), ("repetitions", [repetitions]), ("threads", [threads or 1])):
        if not numbers or min(numbers) < 1:
            raise MBSError(f"bench: {name} = {numbers}: give 1 or more")
    for name, model in (("original", original), ("small", small)):
        if not isinstance(model, nn.Module):
            raise MBSError(f"bench: {name} is a {type(model).__name__}: give the network itself, an nn.Module")
    where = usable(place_and_dtype(small)[0] if device is None else device)
    check_backends(backends, where)
    pair = [copied(unwrapped(model)).eval().to(where) for model in (original, small)]
    used = torch.get_num_threads() if threads is None else threads
    made = [
        _timing(pair, _inputs(small, example, batch, where), backend, batch, used, repetitions)
        for backend in backends
        for batch in batch_sizes
    ]
    on_host = where.type == "cpu"
    memory = "weights and feature maps, by the plan" if on_host else "held by the allocator"
    name = "CPU" if on_host else torch.cuda.get_device_name(where) if where.type == "cuda" else str(where)
    return Bench(tuple(made), name, memory, f"torch {torch.__version__}")


def _inputs(small: nn.Module, example: Any, batch: int, device: torch.device) -> list[Tensor]:
    """Random inputs with so many images."""
    plan = plan_in(unwrapped(small))
    if example is not None:
        held = example_of(small, (example,) if isinstance(example, Tensor) or is_shape(example) else example)
        assert held is not None
        tensors = held.tensors()
        return [_repeated(tensor, batch).to(device) for tensor in tensors]
    if plan is None:
        raise MBSError("bench: the small network carries no plan, so the input is not known: give an example")
    shapes = [(batch, *shape[1:]) for shape in plan.input_shapes]
    return [value.to(device) for value in random_inputs(shapes, plan.input_types, place_and_dtype(small)[1])]


def _repeated(tensor: Tensor, batch: int) -> Tensor:
    """The images of a batch again and again until there are so many."""
    return tensor[torch.arange(batch, device=tensor.device) % len(tensor)]


def _timing(
    pair: Sequence[nn.Module], inputs: list[Tensor], backend: str, batch: int, threads: int, repetitions: int
) -> Timing:
    runs = [
        _ready(model, name, inputs, backend, threads) for model, name in zip(pair, ("original", "small"), strict=True)
    ]
    from torch.utils.benchmark import Timer  # imports setuptools

    timers = [Timer("run()", globals={"run": run}, num_threads=threads) for run in runs]
    numbers = [max(1, round(BLOCK / max(timer.timeit(2).mean, 1e-9))) for timer in timers]
    times: tuple[list[float], list[float]] = [], []
    ratios: list[float] = []
    start = time.monotonic()
    while not ratios or (
        Spread.error(ratios) > SETTLED and len(ratios) < MOST * repetitions and time.monotonic() - start < LONGEST
    ):
        for _ in range(repetitions):
            for which in (0, 1) if len(ratios) % 2 == 0 else (1, 0):
                times[which].append(timers[which].timeit(numbers[which]).mean * 1e3)
            ratios.append(times[0][-1] / times[1][-1])
    before, after, ratio = map(Spread.of, (*times, ratios))
    memory = _memory(pair, runs, batch)
    return Timing(backend, batch, threads, before, after, ratio, memory, Spread.error(ratios), len(ratios))


def _ready(model: nn.Module, name: str, inputs: list[Tensor], backend: str, threads: int) -> Run:
    """A network as a runtime runs it, which it did once."""
    try:
        run = prepared(model, inputs, backend, threads)
        run()
    except Exception as error:  # of the network, of a compiler, of an exporter
        said = next(iter(str(error).splitlines()), "")
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
        raise MBSError(
            f"bench: the {name} network fails in {backend} on inputs of shape {shapes}: {type(error).__name__}: {said}"
        ) from error
    return run


def _memory(pair: Sequence[nn.Module], runs: Sequence[Run], batch: int) -> tuple[int, int] | None:
    """Bytes at the peak of a run, before and after."""
    device = place_and_dtype(pair[1])[0]
    if device.type != "cpu":
        held = [_allocated(run, device) for run in runs]
        return held[0], held[1]
    plan = plan_in(pair[1])
    if plan is None:
        return None
    maps = plan.activation_bytes
    return plan.model_bytes[0] + batch * maps[0], plan.model_bytes[1] + batch * maps[1]


def _allocated(run: Run, device: torch.device) -> int:
    torch.accelerator.synchronize(device)
    torch.accelerator.memory.reset_peak_memory_stats(device)
    run()
    torch.accelerator.synchronize(device)
    return torch.accelerator.memory.max_memory_allocated(device)
