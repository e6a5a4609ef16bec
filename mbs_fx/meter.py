"""Running batches through the counting graph, and reading the counts.

- Nothing is read from the device until `Meter.collect`: one transfer for all batches since the last.
- A batch that does not fit in memory is halved, and so are those after it.
- The counting graph comes in several makes, fastest first; the next is taken where one cannot run the
  network (a ``view`` may insist on a memory order).
- An image whose inputs or outputs are not finite is looked into node by node on the original graph: it is
  an error that names image and node, or the image is skipped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from mbs_fx import counting
from mbs_fx.analysis import Analysis
from mbs_fx.columns import Columns
from mbs_fx.errors import MBSError
from mbs_fx.images import Batch
from mbs_fx.makes import Make
from mbs_fx.moments import Block
from mbs_fx.nonfinite import locate

OnNonfinite = Literal["raise", "skip"]


@dataclass
class Pending:
    """Counts of one batch that are still on the device."""

    number: int
    batch: Batch
    counts: Tensor
    finite: Tensor
    elements: list[int]


@dataclass
class Meter:
    """Counts for batches: ``run`` any number of them, then ``collect``."""

    gm: fx.GraphModule
    makes: list[Make]
    columns: Columns
    analysis: Analysis
    on_nonfinite: OnNonfinite = "raise"
    notes: list[str] = field(default_factory=list[str])
    pending: list[Pending] = field(default_factory=list[Pending])
    _counter: Callable[..., Any] | None = None
    _largest: int | None = None
    _full: int = 0

    def run(self, number: int, groups: Sequence[Batch]) -> None:
        """Queue one batch; several groups where its images differ in size."""
        try:
            for group in groups:
                self._run(number, group)
        except KeyboardInterrupt:
            self.pending = [p for p in self.pending if p.number != number]
            raise

    def _run(self, number: int, batch: Batch) -> None:
        if self._largest is not None and len(batch) > self._largest:
            for part in _split(batch, self._largest):
                self._run(number, part)
            return
        try:
            result = self._count(batch)
        except torch.OutOfMemoryError:
            result = None
        except MBSError:
            raise
        except Exception as error:
            raise self._refused(number, batch, error) from error
        if result is None:
            self._halve(batch)
            self._run(number, batch)
        else:
            self._queue(number, batch, *result)

    def _count(self, batch: Batch) -> tuple[Any, Any, Tensor]:
        """Counts, shapes and finiteness from the first make that can run the batch."""
        while True:
            make = self.makes[0]
            try:
                if self._counter is None:
                    self._counter = make.build()
                with torch.inference_mode(not make.compiled):
                    inputs = [make.prepared(t) for t in batch.inputs]
                    return self._counter(*(self._padded(t) if make.compiled else t for t in inputs))
            except torch.OutOfMemoryError:
                raise
            except Exception:
                if len(self.makes) == 1:
                    raise
                self.makes.pop(0)
                self._counter = None

    def _padded(self, tensor: Tensor) -> Tensor:
        """Filled up with copies of the last image to the largest batch so far."""
        self._full = max(self._full, len(tensor))
        missing = self._full - len(tensor)
        return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor

    def _halve(self, batch: Batch) -> None:
        if len(batch) == 1:
            shape = tuple(batch.inputs[0].shape[1:])
            raise MBSError(f"one image of shape {shape} does not fit in memory: use smaller images")
        self._largest, self._full = len(batch) // 2, 0
        self.notes.append(f"a batch of {len(batch)} images did not fit in memory; halved to {self._largest}")
        if self.makes[0].device.type == "cuda":
            torch.cuda.empty_cache()

    def _queue(
        self,
        number: int,
        batch: Batch,
        counts: Sequence[Tensor],
        shapes: Sequence[torch.Size],
        finite: Tensor,
    ) -> None:
        images = len(finite)
        elements: list[int] = []
        for (name, columns), shape in zip(self.columns.by_activation().items(), shapes, strict=True):
            if shape[0] % images:
                raise MBSError(
                    f"activation {name} has shape {tuple(shape)} for a batch of {images} images: its first "
                    "axis does not run over images, so densities per image cannot be told apart"
                )
            elements += counting.elements(shape, self.analysis.activations[name], columns, images)
        gathered = counting.gather(counts, images, finite.device)[: len(batch)]
        self.pending.append(Pending(number, batch, gathered, finite[: len(batch)].clone(), elements))

    def collect(self) -> list[Block]:
        """The counts of all queued batches, in order; one synchronisation."""
        pending, self.pending = self.pending, []
        if not pending:
            return []
        counts = torch.cat([p.counts for p in pending]).cpu().numpy()
        finite = torch.cat([p.finite for p in pending]).cpu().numpy()
        blocks: list[Block] = []
        start = 0
        for p in pending:
            rows = slice(start, start + len(p.batch))
            start += len(p.batch)
            keep = finite[rows] if finite[rows].all() else self._examined(p, finite[rows])
            skipped = int(len(keep) - keep.sum())
            blocks.append(Block(p.number, counts[rows][keep], np.array(p.elements, np.int64), skipped))
        return blocks

    def _examined(self, p: Pending, finite: Any) -> Any:
        """Find the node behind a value that is not finite; which images to keep."""
        keep = finite.copy()
        for row in np.flatnonzero(~finite):
            found = locate(self.gm, [t[row : row + 1] for t in p.batch.inputs])
            if found is None:
                keep[row] = True
            elif self.on_nonfinite == "raise":
                raise MBSError(
                    f"image {p.batch.indices[row]} (batch {p.number}): {found}. Check the image and the "
                    'weights, or leave such images out with on_nonfinite="skip"'
                )
        return keep

    def _refused(self, number: int, batch: Batch, error: Exception) -> MBSError:
        shapes = ", ".join(str(tuple(t.shape)) for t in batch.inputs)
        expected = ", ".join(map(str, self.analysis.input_shapes))
        return MBSError(
            f"the graph cannot run on batch {number} of shape {shapes} (it was analyzed for {expected}): "
            f"{type(error).__name__}: {error}"
        )


def _split(batch: Batch, size: int) -> list[Batch]:
    starts = range(0, len(batch), size)
    return [Batch(tuple(t[i : i + size] for t in batch.inputs), batch.indices[i : i + size]) for i in starts]
