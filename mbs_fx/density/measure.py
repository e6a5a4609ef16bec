"""The share of non-zero activations of every convolution: steps 1 to 7 of Algorithm 1.

Semantics
- p_j is the mean over images of the share of non-zero values at the activations that c_j's channels reach
  (which these are is the analysis' business), each image with equal weight.  Counts are exact integers.
- Reading stops when every width is settled at the stated confidence (`mbs_fx.density.stopping_rule`), provided
  that the images come in random order (`mbs_fx.density.images`); otherwise all of them are read.
- A private copy runs (`mbs_fx.density.fast_copy`): its densities differ from those of the graph itself by rounding,
  far below their standard error.  ``fast=False`` runs the graph as it is.
- The model, its mode, its BatchNorm statistics and the random state are unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import fx

from mbs_fx.density import checkpoint as checkpoints
from mbs_fx.density.batches import Signature, check_graph
from mbs_fx.density.columns import Columns
from mbs_fx.density.execution import Execution, executions
from mbs_fx.density.failures import workers_watched
from mbs_fx.density.images import ImageReader, Request, open_images
from mbs_fx.density.meter import Meter, OnNonfinite
from mbs_fx.density.pixels import warn_of_pixels
from mbs_fx.density.progress import Progress
from mbs_fx.density.reading import Numbered, Outcome, Reading
from mbs_fx.density.statistics import Moments
from mbs_fx.density.stopping_rule import StoppingRule, factors
from mbs_fx.errors import MBSError
from mbs_fx.folder import Preparation
from mbs_fx.macroblocks.analyze import facts
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import FEWEST, Density, few, fingerprint
from mbs_fx.results.tables import size_text
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.runtime.ranks import Ranks, join
from mbs_fx.shapes.graph_inputs import Name
from mbs_fx.shapes.shapes import types_of

Read = tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]

LOOKED_AT = 0.99
"""The confidence of the intervals in the result where ``confidence`` is None."""

SKIPPED = "could not be read, or gave values that are not finite"


@workers_watched
def measure(
    gm: fx.GraphModule,
    images: Any,
    *,
    analysis: Analysis | None = None,
    preparation: Preparation | None = None,
    device: torch.device | str | None = None,
    max_images: int | None = None,
    confidence: float | None = 0.99,
    z: float | Sequence[float] = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    shuffled: bool = False,
    workers: int = 0,
    fast: bool = True,
    dtype: torch.dtype | None = None,
    compile: bool = False,  # noqa: A002 - what torch calls it
    on_nonfinite: OnNonfinite = "raise",
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    timeout: float = 600.0,
) -> Density:
    """Count zeros after every activation, over ``images``.

    Args:
        gm: a traced graph in eval mode.
        images: a `DataLoader`, a map-style dataset, a tensor or array of images, or any iterable of batches; with
            ``preparation`` also a folder of image files, PIL images, or arrays of bytes.
        analysis: of this graph; made from the size of the first batch where it is not given.
        preparation: how pixels become what the network was trained on: `mbs_fx.Preparation`.
        device: where to run; where the parameters are, if not given.
        max_images: read no more than this.
        confidence: stop when all widths are settled with this confidence; None reads everything.
        z: the thresholds, in multiples of the input size, whose widths are to be settled.
        batch_size: for images that do not come in batches.
        seed: of the order in which a set of images is drawn.
        shuffled: the order of an iterable is random, so that reading may stop early.
        workers: processes that load images from a dataset (a `DataLoader` has its own).
        fast: run a private copy with BatchNorm folded, in the hardware's fastest memory order and precision.
        dtype: the precision of that copy, in place of the fastest.
        compile: run the copy through `torch.compile`, counting included.
        on_nonfinite: "raise" at an image that gives NaN or infinite values, or "skip" and count it.
        checkpoint: a file for the state; a measurement that was interrupted resumes from it.
        progress: show a bar; None shows it on a terminal only.
        timeout: seconds to wait for other processes, under torchrun.

    Returns:
        Densities with their covariance, intervals for the scaling factors, and notes.  After Ctrl-C, what was measured
        so far, marked as partial.

    Raises:
        MBSError: no images, images that the graph cannot take, a model in training mode, a loader that fails,
            values that are not finite, a checkpoint of another measurement, a process that was lost.

    """
    zs = (float(z),) if isinstance(z, int | float) else tuple(map(float, z))
    _check_arguments(max_images, confidence, zs, batch_size, workers, on_nonfinite, timeout)
    check_graph(gm)
    file = None if checkpoint is None else Path(checkpoint)
    with random_state_kept(), torch.no_grad(), join(timeout) as ranks:
        request = Request(batch_size, max_images, shuffled, seed, workers, ranks.rank, ranks.world, preparation)
        signature = Signature.of(gm, analysis)
        source = open_images(images, signature, request)
        state = _state(file, ranks)
        stream, inputs = _opened(source, state, ranks)
        analysis = analysis or _analysis(gm, inputs, signature.names)
        columns = Columns.of(analysis)
        rule = StoppingRule(analysis, factors(analysis, columns.index, zs), confidence or LOOKED_AT, source.population)
        ways = executions(gm, columns, analysis, device, fast, dtype, compile)
        identity = {} if file is None else _identity(gm, analysis, source, ways[0], max_images, seed)
        reading = Reading(
            meter=Meter(gm, ways, columns, analysis, on_nonfinite),
            columns=columns,
            ranks=ranks,
            progress=Progress(progress if ranks.rank == 0 else False, source.expected(max_images)),
            rule=rule if confidence is not None and source.random else None,
            file=file,
            identity=identity,
            moments=Moments.empty(columns) if state is None else checkpoints.resumed(state, identity),
        )
        outcome = reading.run(stream)
    density = _result(outcome, rule, columns, source, max_images)
    notes = _notes(density, columns, source, max_images, confidence is not None)
    return replace(density, notes=(*reading.meter.notes, *_sizes(reading.meter), *notes))


def _check_arguments(
    max_images: int | None,
    confidence: float | None,
    zs: tuple[float, ...],
    batch_size: int,
    workers: int,
    on_nonfinite: str,
    timeout: float,
) -> None:
    rules = (
        ("confidence", confidence, confidence is None or 0 < confidence < 1, "between 0 and 1, or None"),
        ("max_images", max_images, max_images is None or max_images >= 1, "at least 1, or None"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("workers", workers, workers >= 0, "0 or more"),
        ("timeout", timeout, timeout > 0, "positive"),
        ("z", zs, bool(zs) and all(z > 0 for z in zs), "positive"),
        ("on_nonfinite", on_nonfinite, on_nonfinite in ("raise", "skip"), '"raise" or "skip"'),
    )
    for name, value, fine, wanted in rules:
        if not fine:
            raise MBSError(f"{name} is {value!r}; it must be {wanted}")


def _state(file: Path | None, ranks: Ranks) -> checkpoints.State | None:
    """What the checkpoint of the first rank holds."""
    if file is None:
        return None
    return ranks.together(lambda: checkpoints.load(file) if ranks.rank == 0 else None)[0]


def _opened(source: ImageReader, state: checkpoints.State | None, ranks: Ranks) -> tuple[Iterator[Numbered], Read]:
    """Batches that were not read yet, and shapes and types of the very first."""
    if state is not None:
        return source.read(state.moments.batches), state.inputs
    stream = source.read(0)
    first: list[Numbered] = []

    def peek() -> Read | None:
        for item in stream:
            first.append(item)
            read = next((batch.inputs for batch in item[1] if batch.inputs), None)
            if read is not None:
                warn_of_pixels(read[0], "measure")
                return tuple(tuple(t.shape) for t in read), types_of(read)
        return None

    inputs = next((inputs for inputs in ranks.together(peek) if inputs is not None), None)
    if inputs is None:
        missing = sum(len(batch) for _, batches in first for batch in batches)
        unread = f"none of {missing} can be read" if missing else "the loader or iterable is empty"
        raise MBSError(f"no images: {unread}")
    return chain(first, stream), inputs


def _analysis(gm: fx.GraphModule, inputs: Read, names: tuple[Name, ...]) -> Analysis:
    shapes, types = inputs
    return facts(gm, shapes, types=types, names=names).analysis


def _identity(
    gm: fx.GraphModule, analysis: Analysis, source: ImageReader, execution: Execution, limit: int | None, seed: int
) -> dict[str, Any]:
    """What the totals in a checkpoint depend on."""
    return {
        "graph": fingerprint(analysis),
        "weights": checkpoints.digest(gm),
        "input_shapes": [list(shape) for shape in analysis.input_shapes],
        "input_types": list(analysis.input_types),
        "images": source.population,
        "batch_size": source.batch_size,
        "max_images": limit,
        "seed": seed,
        "precision": str(execution),
    }


def _result(outcome: Outcome, rule: StoppingRule, columns: Columns, source: ImageReader, limit: int | None) -> Density:
    moments, population = outcome.moments, source.population
    read = moments.images + moments.skipped
    if not moments.images:
        if outcome.interrupted:
            raise KeyboardInterrupt
        raise MBSError(f"no image was left: all {moments.skipped} {SKIPPED}")
    if outcome.ended and population is None and (limit is None or read < limit):
        population = read
    whole = {c.activation: k for k, c in enumerate(columns.columns) if c.positions is None}
    return Density(
        index=columns.index,
        mean=moments.mean,
        covariance=moments.covariance,
        images=moments.images,
        population=population,
        partial=outcome.interrupted,
        skipped=moments.skipped,
        nonzero={name: int(moments.nonzero[k]) for name, k in whole.items()},
        elements={name: int(moments.elements[k]) for name, k in whole.items()},
        confidence=rule.confidence,
        intervals=replace(rule, population=population if columns.columns else read)(moments, edges=True),
        fingerprint=fingerprint(rule.analysis),
    )


def _notes(density: Density, columns: Columns, source: ImageReader, limit: int | None, stops: bool) -> Iterator[str]:
    """What a reader of the result should know."""
    read = density.images + density.skipped
    if density.skipped:
        yield f"{density.skipped} images were left out: they {SKIPPED}"
    if density.images < FEWEST:
        yield few(density.images)
    dense = {j for j, members in enumerate(columns.members) if not members}
    silent = sum(j in dense for j in density.index.values())
    if silent:
        yield (
            f"{silent} of {len(density.index)} convolutions reach only activations without exact zeros: p = 1 "
            "there, and density carries no information"
        )
    if source.resampled and read != density.population:
        yield "the loader does not shuffle: its dataset was sampled at random instead"
    if not source.random:
        if limit is not None and density.population is None:
            yield f"the first {limit} images were taken as they came; a sample only if their order is random"
        elif stops:
            yield "read whole: an iterable may stop early only with shuffled=True, if its order is random"
    undecided = [i for i in density.intervals if not i.settled]
    if undecided:
        yield (
            f"{len(undecided)} of {len(density.intervals)} scaling factors are not settled after "
            f"{density.images} images: {'; '.join(map(str, undecided))}"
        )


def _sizes(meter: Meter) -> Iterator[str]:
    """Sizes of images that the graph was not analyzed for."""
    planned = meter.analysis.input_size
    others = [size_text(size) for size in sorted(meter.sizes - {planned})]
    if others:
        yield (
            f"there were images of {', '.join(others)}: their densities count, and widths are planned for "
            f"{size_text(planned)}, what the graph was analyzed for"
        )
