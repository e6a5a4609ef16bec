"""Checkpoints of a measurement: running totals in a safetensors file.

- The file is written as a whole or not at all, at batch boundaries, so that a resumed measurement merges
  the same batches in the same order as one that was never interrupted.
- It records what it depends on (graph, weights, images, batch size, seed, precision); a checkpoint of anything else is
  refused.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from mbs_fx.density.statistics import Moments
from mbs_fx.errors import MBSError
from mbs_fx.results.files import write_atomically

FORMAT = "mbs_fx.measurement 1"
ARRAYS = ("mean", "scatter", "nonzero", "elements")


@dataclass(frozen=True)
class State:
    """Totals, what they depend on, and the file they were read from."""

    moments: Moments
    identity: Mapping[str, Any]
    path: Path

    @property
    def inputs(self) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
        """Shapes and types that the graph was analyzed for."""
        return tuple(tuple(shape) for shape in self.identity["input_shapes"]), tuple(self.identity["input_types"])


def save(path: Path, moments: Moments, identity: Mapping[str, Any]) -> None:
    """Write the state of a measurement."""
    arrays = {name: np.ascontiguousarray(getattr(moments, name)) for name in ARRAYS}
    counts = {"images": moments.images, "batches": moments.batches, "skipped": moments.skipped}
    metadata = {"format": FORMAT, "counts": json.dumps(counts), "identity": json.dumps(identity)}
    write_atomically(path, lambda temporary: save_file(arrays, temporary, metadata))


def load(path: Path) -> State | None:
    """The state to resume from; None where there is no file yet."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise MBSError(f"{path}: cannot read the checkpoint ({error}); remove it to start over") from error
    if metadata.get("format") != FORMAT or set(arrays) != set(ARRAYS):
        raise MBSError(f"{path}: not the checkpoint of a measurement; name another file")
    return State(Moments(**json.loads(metadata["counts"]), **arrays), json.loads(metadata["identity"]), path)


def resumed(state: State, identity: Mapping[str, Any]) -> Moments:
    """The totals to resume from.  Refuses those of another measurement."""
    for key, value in identity.items():
        held = state.identity.get(key)
        if held != value:
            raise MBSError(
                f"{state.path}: the checkpoint is of another measurement ({key} was {held}, now it is {value}); "
                "remove it to start over"
            )
    return state.moments


def digest(model: nn.Module) -> str:
    """A checksum of all parameters and buffers."""
    total = 0
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"
