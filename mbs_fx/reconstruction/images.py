"""Images for a reconstruction, read as `measure` reads them, and held."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule

from mbs_fx.density.batches import Signature
from mbs_fx.density.failures import workers_watched
from mbs_fx.density.images import Request, open_images
from mbs_fx.density.nonfinite import locate
from mbs_fx.errors import MBSError
from mbs_fx.reconstruction.frontier import FOLD, Chunk
from mbs_fx.results.analysis import Analysis
from mbs_fx.runtime.ranks import Ranks
from mbs_fx.shapes.graph_inputs import arguments_of


@workers_watched
def read_chunks(
    gm: GraphModule, images: Any, analysis: Analysis, request: Request, device: torch.device
) -> list[Chunk]:
    """Batches of this process on a device; every image has the size that the plan was made for."""
    wanted = tuple(shape[1:] for shape in analysis.input_shapes)
    source = open_images(images, Signature.of(gm, analysis), request)
    like = next((tensor for tensor in (*gm.parameters(), *gm.buffers()) if tensor.is_floating_point()), torch.empty(0))
    chunks: list[Chunk] = []
    for number, groups in source.read(0):
        for batch in groups:
            found = tuple(tuple(tensor.shape[1:]) for tensor in batch.inputs)
            if found != wanted[: len(found)]:
                raise MBSError(
                    f"batch {number} has images of shape {_text(found)}, and the small network was planned for "
                    f"{_text(wanted)}: give images of that size, or plan for theirs"
                )
            inputs = tuple(t.to(device, like.dtype if t.is_floating_point() else t.dtype) for t in batch.inputs)
            if not all(bool(torch.isfinite(t).all()) for t in inputs):
                where = locate(gm, batch.inputs, analysis.input_names) or "a value that is not finite"
                raise MBSError(f"batch {number}: {where}")
            chunks.append(Chunk(number, arguments_of(analysis.input_names, inputs)))
    return chunks


def placed(chunks: list[Chunk], ranks: Ranks) -> tuple[list[Chunk], int]:
    """The chunks with their places among those of all processes, and how many images there are."""
    everyone = ranks.exchange([(chunk.number, len(chunk)) for chunk in chunks])
    sizes = sorted(pair for own in everyone for pair in own)
    total = sum(size for _, size in sizes)
    if total < FOLD:
        raise MBSError(f"{total} images are too few: one of {FOLD} is held back from the fit; give some hundred")
    if not all(everyone):
        raise MBSError(f"{len(sizes)} batches are too few for {len(everyone)} processes: give smaller ones")
    first = {number: sum(size for other, size in sizes if other < number) for number, _ in sizes}
    return [chunk.placed(first[chunk.number]) for chunk in chunks], total


def _text(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(" x ".join(map(str, shape)) for shape in shapes)
