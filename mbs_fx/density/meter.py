"""Running batches through the counting graph, and reading the counts.

- On a GPU nothing is read until `Meter.collect`: one transfer for all batches since the last.
- A batch that does not fit in memory is halved, and so are those after it.
- There are several ways to run the counting graph, fastest first.  Where one cannot run the network (a ``view`` may
  insist on a memory order) the next is taken, and a note says so.
- An image whose inputs or outputs are not finite is run again node by node on the original graph: the
  error names image and node, or the image is skipped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from mbs_fx.density import counting
from mbs_fx.density.batches import Batch
from mbs_fx.density.columns import Columns
from mbs_fx.density.execution import Execution
from mbs_fx.density.failures import is_death
from mbs_fx.density.nonfinite import locate
from mbs_fx.density.statistics import Block
from mbs_fx.errors import MBSError
from mbs_fx.results.analysis import Analysis
from mbs_fx.runtime.autocast import autocast_restored

OnNonfinite = Literal["raise", "skip"]

ALLOCATION_FAILED = ("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
"""Messages of other errors that mean that memory ran out."""


@dataclass
class Pending:
    """Counts of one batch, still on the device; the last column says whether an image is finite."""

    number: int
    batch: Batch
    counts: Tensor
    elements: list[int]


@dataclass
class Meter:
    """Counts for batches: ``run`` any number of them, then ``collect``."""

    gm: fx.GraphModule
    executions: list[Execution]
    columns: Columns
    analysis: Analysis
    on_nonfinite: OnNonfinite = "raise"
    notes: list[str] = field(default_factory=list[str])
    sizes: set[tuple[int, ...]] = field(default_factory=set[tuple[int, ...]])
    _pending: list[Pending] = field(default_factory=list[Pending])
    _blocks: list[Block] = field(default_factory=list[Block])
    _counter: Callable[..., Any] | None = None
    _fitting: int | None = None
    _full: int = 0

    def run(self, number: int, groups: Sequence[Batch]) -> None:
        """Queue one batch; several groups where its images differ in size.  After Ctrl-C nothing of it is left."""
        try:
            for group in groups:
                if group.inputs:
                    self._run(number, group)
                else:
                    self._blocks.append(self._missing(number, len(group)))
        except KeyboardInterrupt:
            self._pending = [p for p in self._pending if p.number != number]
            self._blocks = [b for b in self._blocks if b.number != number]
            raise

    def collect(self) -> list[Block]:
        """The counts of all batches since the last time, in order; one synchronisation."""
        self._read()
        blocks, self._blocks = self._blocks, []
        return blocks

    def _missing(self, number: int, images: int) -> Block:
        """Images that could not be read."""
        columns = len(self.columns.columns)
        return Block(number, np.zeros((0, columns), np.int64), np.zeros(columns, np.int64), images)

    def _run(self, number: int, batch: Batch) -> None:
        start = 0
        while start < len(batch):
            part = batch.part(start, start + self._at_once(len(batch)))
            result = self._counted(number, part)
            if result is None:
                self._halve(part)
            else:
                self._queue(number, part, *result)
                start += len(part)

    def _at_once(self, images: int) -> int:
        """How many images of a batch to run at a time, so that the parts are about equal."""
        limits = [n for n in (self._fitting, self.executions[0].images) if n is not None]
        return math.ceil(images / math.ceil(images / min([*limits, images])))

    def _counted(self, number: int, batch: Batch) -> tuple[Any, Any, Tensor] | None:
        """Counts, shapes and finiteness from the first execution that can run the batch; None where memory ran out."""
        while True:
            execution = self.executions[0]
            try:
                self._counter = self._counter or execution.build()
                with torch.inference_mode(not execution.compiled), autocast_restored(execution.device):
                    inputs = [execution.prepared(t) for t in batch.inputs]
                    return self._counter(*(self._filled(t) if execution.filled else t for t in inputs))
            except Exception as error:
                if is_death(error):
                    raise
                if _is_memory(error):
                    return None
                if len(self.executions) == 1:
                    raise self._refused(number, batch, error) from error
                reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                self.notes.append(f"the network does not run as a fast copy ({execution}): {reason}")
                self.executions, self._counter = self.executions[1:], None

    def _filled(self, tensor: Tensor) -> Tensor:
        """Filled up with copies of the last image to the largest batch so far."""
        self._full = max(self._full, len(tensor))
        missing = self._full - len(tensor)
        return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor

    def _halve(self, batch: Batch) -> None:
        if len(batch) == 1:
            shape = tuple(batch.inputs[self.analysis.image].shape[1:])
            raise MBSError(f"one image of shape {shape} does not fit in memory: use smaller images")
        self._fitting, self._full, self._counter = len(batch) // 2, 0, None
        self.notes.append(f"a batch of {len(batch)} images did not fit in memory; halved to {self._fitting}")
        if self.executions[0].device.type == "cuda":
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
        image = batch.inputs[self.analysis.image]
        self.sizes.add(tuple(image.shape[axis] for axis in self.analysis.image_axes))
        elements: list[int] = []
        for (name, columns), shape in zip(self.columns.by_activation().items(), shapes, strict=True):
            if shape[0] % images:
                raise MBSError(
                    f"activation {name} has shape {tuple(shape)} for a batch of {images} images: its first "
                    "axis does not run over images, so there are no densities per image"
                )
            elements += counting.elements(shape, self.analysis.activations[name], columns, images)
        gathered = counting.gather([*counts, finite.unsqueeze(1)], images)[: len(batch)]
        self._pending.append(Pending(number, batch, gathered, elements))
        if finite.device.type == "cpu":
            self._read()

    def _read(self) -> None:
        """Reads the pending counts from the device and drops the images."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        everything = torch.cat([p.counts for p in pending]).cpu().numpy()
        ends = np.cumsum([len(p.batch) for p in pending])[:-1]
        for p, rows in zip(pending, np.split(everything, ends), strict=True):
            keep = self._examined(p, rows[:, -1].astype(bool))
            skipped = int(len(keep) - keep.sum())
            self._blocks.append(Block(p.number, rows[keep, :-1], np.array(p.elements, np.int64), skipped))

    def _examined(self, p: Pending, finite: Any) -> Any:
        """Which images to keep; for one that is not finite, find the node where that begins."""
        for row in np.flatnonzero(~finite):
            image = f"image {p.batch.indices[row]} (batch {p.number})"
            found = locate(self.gm, [t[row : row + 1] for t in p.batch.inputs], self.analysis.input_names)
            if found is None:
                raise MBSError(
                    f"{image}: values overflow in the copy for measuring ({self.executions[0]}), not in the graph "
                    "itself: use another dtype, or fast=False"
                )
            if self.on_nonfinite == "raise":
                raise MBSError(
                    f"{image}: {found}. Check the image and the weights, or leave such images out with "
                    'on_nonfinite="skip"'
                )
        return finite

    def _refused(self, number: int, batch: Batch, error: Exception) -> MBSError:
        shapes = ", ".join(str(tuple(t.shape)) for t in batch.inputs)
        expected = ", ".join(map(str, self.analysis.input_shapes))
        return MBSError(
            f"the graph cannot run on batch {number} of shape {shapes} (it was analyzed for {expected}): "
            f"{type(error).__name__}: {error}"
        )


def _is_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in ALLOCATION_FAILED)
