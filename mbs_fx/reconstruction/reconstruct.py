"""Accuracy back without labels: every layer of a reduced network refitted to the original's outputs.

Semantics
- Layer by layer, in the order of the graph:  W = argmin E|Y - W U - b|^2 + lambda |W - W_inherited|^2, where Y is the
  original's output at the kept channels, and U are the patches that enter the layer in the small network as refitted
  so far (He et al. 2017).  Where the output enters an addition whose other operand is known by then, Y is what the
  original's sum leaves to the layer (`additions`).
- In linear bottlenecks Y is what the kept dimensions of a subspace hold (`subspaces`); layers behind an average are
  fitted in front of it first (`pooled`).
- Lambda is chosen per layer on images that are held back; the inherited weights stay where nothing is better there.
- Nothing that is given is changed, and nothing is given back before all is done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mbs_fx.density.images import Request
from mbs_fx.errors import MBSError
from mbs_fx.reconstruction.frontier import FOLD, Chunk, Frontier, tensors_in
from mbs_fx.reconstruction.images import placed, read_chunks
from mbs_fx.reconstruction.layers import Layer, find_layers
from mbs_fx.reconstruction.memory_order import channels_last
from mbs_fx.reconstruction.networks import Pair, pair, result
from mbs_fx.reconstruction.pooled import maps_before
from mbs_fx.reconstruction.refit import Refitter
from mbs_fx.reconstruction.rows import Gatherer
from mbs_fx.reconstruction.solve import REGULARISATIONS
from mbs_fx.reconstruction.subspaces import change_basis
from mbs_fx.results.reconstruction import Reconstruction
from mbs_fx.runtime.devices import usable
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.runtime.ranks import Ranks, join
from mbs_fx.tracing.example import place_and_dtype

Model = TypeVar("Model", bound=nn.Module)

BUDGET = {"cpu": 1 << 29}
"""Bytes of feature maps that are held at a time, of all processes together."""

BUDGET_ELSEWHERE = 8 << 30


def reconstruct(
    small: Model,
    original: nn.Module,
    images: Any,
    *,
    max_images: int = 512,
    regularisation: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    timeout: float = 600.0,
) -> Model:
    """Refit the weights that a small network inherited, on images without labels.

    Args:
        small: what `mbs_fx.rewrite` or `mbs_fx.reduce` made, a graph or a module, with its plan in ``meta["mbs"]``
            and the weights that it inherited; not changed.
        original: the network that it was made of, a graph or a module; not changed.
        images: as for `mbs_fx.measure`; of the size that the plan was made for.
        max_images: read no more than this.
        regularisation: lambda of every layer as a multiple of the mean diagonal of its normal equations; None chooses
            it per layer on images held back.
        batch_size: for images that do not come in batches.
        workers: processes that load images from a dataset.
        seed: of the order in which a set of images is drawn, and of the positions.
        device: where to run; where the original's parameters are, if not given.
        progress: show a bar; None shows it on a terminal only.
        timeout: seconds after which a process that does not answer is given up, under torchrun.

    Returns:
        A network of the kind of ``small``; ``meta["mbs_reconstruction"]`` is its `Reconstruction`: errors of every
        layer, and what was left alone.

    Raises:
        MBSError: no plan, an original that ``small`` was not made of or that has changed since, images of another
            size, of too small a number, or with values that are not finite.

    """
    _check(small, original, max_images, regularisation, batch_size, workers)
    place = None if device is None else usable(device)
    with random_state_kept(), torch.no_grad(), join(timeout) as ranks:
        both = pair(small, original, place)
        request = Request(batch_size, max_images, False, seed, workers, ranks.rank, ranks.world)
        run_on = place_and_dtype(both.original)[0]
        read = ranks.together(lambda: read_chunks(both.original, images, both.keep.facts.analysis, request, run_on))
        chunks, count = placed(read[ranks.rank], ranks)
        chunks = channels_last([both.original, both.small], chunks)
        multiples = REGULARISATIONS if regularisation is None else (regularisation,)
        report = _refitted(both, chunks, count, multiples, seed, ranks, progress if ranks.rank == 0 else False)
        return result(small, both.small, report)


def _check(
    small: object, original: object, max_images: int, regularisation: float | None, batch_size: int, workers: int
) -> None:
    for name, value in (("small", small), ("original", original)):
        if not isinstance(value, nn.Module):
            raise MBSError(f"{name} is a {type(value).__name__}; give a network: reconstruct(small, original, images)")
    rules = (
        ("max_images", max_images, max_images >= FOLD, f"at least {FOLD}"),
        ("regularisation", regularisation, regularisation is None or regularisation > 0, "positive, or None"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
        ("workers", workers, workers >= 0, "0 or more"),
    )
    for name, value, fine, wanted in rules:
        if not fine:
            raise MBSError(f"{name} is {value!r}; it must be {wanted}")


def _refitted(
    both: Pair,
    chunks: list[Chunk],
    images: int,
    multiples: tuple[float, ...],
    seed: int,
    ranks: Ranks,
    progress: bool | None,
) -> Reconstruction:
    """Refit ``both.small`` in place; what there is to say about it."""
    layers, reasons = find_layers(both.keep, both.small)
    device = place_and_dtype(both.original)[0]
    budget = BUDGET.get(device.type, BUDGET_ELSEWHERE) // ranks.world
    before = _outputs_before(both.small, chunks)
    mixed = change_basis(both, layers, chunks, images, seed, ranks)
    maps = maps_before(both.original, layers, both.keep.facts.flow.shapes)
    frontier = Frontier(both.original, both.small, chunks, budget, maps)
    refitter = Refitter(both, frontier, multiples, Gatherer(frontier, images, seed, mixed), maps, ranks)
    with _bar(layers, progress) as passed:
        refitter.run(layers, both.fresh, passed)
    total = [sum(part) for part in zip(*ranks.exchange(_output_errors(frontier, before)), strict=True)]
    output = ((total[0] / total[2]) ** 0.5, (total[1] / total[2]) ** 0.5) if total[2] else None
    return Reconstruction(
        layers=tuple(refitter.errors),
        left={**reasons, **refitter.left},
        images=images,
        held_back=images // FOLD,
        output=output,
        recalibrated=tuple(refitter.recalibrated),
        notes=tuple(_notes(refitter)),
    )


def _notes(refitter: Refitter) -> Generator[str]:
    few = [layer for layer in refitter.errors if layer.images < layer.unknowns]
    scarce = [layer for layer in few if layer.positions < layer.unknowns]
    if scarce:
        yield (
            f"{', '.join(layer.path for layer in scarce[:3])}{f' and {len(scarce) - 3} more' * (len(scarce) > 3)}: "
            "fewer positions than unknowns, so that the inherited weights decide a part; more images help"
        )


def _outputs_before(small: nn.Module, chunks: list[Chunk]) -> dict[int, list[Tensor]]:
    """What a network gives for the images held back, by the number of their chunk."""
    return {chunk.number: tensors_in(small(*chunk.only_held_back())) for chunk in chunks if chunk.fitted < len(chunk)}


def _output_errors(frontier: Frontier, before: Mapping[int, list[Tensor]]) -> tuple[float, float, float]:
    """Squares of errors before and after, and of the original's values, summed over the images held back."""
    frontier.advance(len(frontier.nodes))
    sums = [0.0, 0.0, 0.0]
    for held in frontier.held:
        if held.chunk.number not in before:
            continue
        given = (tensors_in(list(env.values())[-1]) for env in (held.original, held.small))
        for wanted, found, earlier in zip(*given, before[held.chunk.number], strict=True):
            if wanted.is_floating_point():
                own = wanted[held.chunk.fitted :].double()
                for place, other in enumerate((earlier, found[held.chunk.fitted :], torch.zeros(()))):
                    sums[place] += float((own - other.double().to(own.device)).square().sum())
    return sums[0], sums[1], sums[2]


@contextmanager
def _bar(layers: list[Layer], show: bool | None) -> Generator[Callable[[str], None]]:
    """A bar with the layer's name and the time that is left."""
    from tqdm import tqdm

    hidden = None if show is None else not show
    bar: Any = tqdm(total=len(layers), desc="reconstruct", unit="layer", disable=hidden, leave=False)

    def passed(path: str) -> None:
        bar.set_postfix_str(path, refresh=False)
        bar.update()

    try:
        yield passed
    finally:
        bar.close()
