"""The input tensors of a batch: which the graph takes, and whether they fit.

- Placeholders without a default are the inputs.  In a dict they are found by name, in a tuple by position;
  a dict with a single floating-point tensor needs no names.
- Images are floating point, with the channels of the first convolution that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from mbs_fx.errors import MBSError
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.resolve import of_target
from mbs_fx.shapes.graph_inputs import noted_on, require_graph

TRAINING = (v.DROPOUT, v.BATCH_NORM)
"""Operations that behave differently in training, which a function is told by an argument."""


@dataclass(frozen=True)
class Batch:
    """Input tensors of one size, and the number of each image in its set (or in the order of reading)."""

    inputs: tuple[Tensor, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> Batch:
        """The images from ``start`` up to ``stop``."""
        return Batch(tuple(t[start:stop] for t in self.inputs), self.indices[start:stop])


@dataclass(frozen=True)
class Signature:
    """Inputs of a graph: the names of its placeholders, and how many axes a batch of images has."""

    names: tuple[str, ...]
    batch_axes: int
    channels: int | None = None

    @staticmethod
    def of(gm: fx.GraphModule, batch: Sequence[int] = ()) -> Signature:
        """Read off the placeholders and the first convolution, the number of axes off a batch's shape if given."""
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
        names = tuple(str(n.target) for n in placeholders if not n.args)
        noted = (noted_on(n) for n in placeholders[:1])
        axes = len(batch) or next((len(value.shape) for value in noted if value is not None), 0)
        for node in gm.graph.nodes:
            module = gm.get_submodule(node.target) if node.op == "call_module" else None
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                direct = node.args and isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"
                dims = len(module.kernel_size) + 2
                return Signature(names, axes or dims, module.in_channels if direct else None)
            operation = of_target(node)
            if operation is not None and operation in v.CONV:
                return Signature(names, axes or (operation.dims or 2) + 2)
        return Signature(names, axes or 4)

    def is_single(self, item: Any) -> bool:
        """Whether an item is one image (one axis less than a batch)."""
        tensors = self._pick(item)
        return bool(tensors) and isinstance(tensors[0], Tensor) and tensors[0].ndim == self.batch_axes - 1

    def inputs(self, item: Any, place: str) -> tuple[Tensor, ...]:
        """The input tensors of a batch, checked."""
        picked = self._pick(item)
        if not picked:
            raise MBSError(f"{place} is {_describe(item)}; the graph takes {', '.join(self.names)}: " + self._wanted())
        for name, value in zip(self.names, picked, strict=True):
            if not isinstance(value, Tensor):
                raise MBSError(f"{place}: input {name} is {_describe(value)}, not a tensor: " + self._wanted())
        self._check(picked[0], place)
        return picked

    def stack(self, items: Sequence[Any], indices: Sequence[int]) -> list[Batch]:
        """Single images as batches, one for each size among them."""
        sizes: dict[tuple[torch.Size, ...], list[int]] = {}
        picked = [self._single(item, index) for item, index in zip(items, indices, strict=True)]
        for place, tensors in enumerate(picked):
            sizes.setdefault(tuple(t.shape for t in tensors), []).append(place)
        return [
            Batch(
                tuple(torch.stack([picked[i][k] for i in places]) for k in range(len(self.names))),
                tuple(indices[i] for i in places),
            )
            for places in sizes.values()
        ]

    def _single(self, item: Any, index: int) -> tuple[Tensor, ...]:
        picked = self._pick(item)
        if not picked or not all(isinstance(value, Tensor) for value in picked):
            raise MBSError(f"image {index} is {_describe(item)}: " + self._wanted())
        self._check(picked[0][None], f"image {index}")
        return picked

    def _pick(self, item: Any) -> tuple[Any, ...]:
        if isinstance(item, Mapping):
            if all(name in item for name in self.names):
                return tuple(item[name] for name in self.names)
            floats = [v for v in item.values() if isinstance(v, Tensor) and v.is_floating_point()]
            return (floats[0],) if len(floats) == len(self.names) == 1 else ()
        if isinstance(item, tuple | list):
            return tuple(item[: len(self.names)]) if len(item) >= len(self.names) else ()
        return (item,) if len(self.names) == 1 else ()

    def _check(self, images: Tensor, place: str) -> None:
        shape = tuple(images.shape)
        if not images.is_floating_point():
            raise MBSError(
                f"{place} has dtype {images.dtype}: convert to floating point and normalise as in training, "
                "for instance (images.float() / 255 - mean) / std"
            )
        if images.ndim != self.batch_axes:
            raise MBSError(f"{place} has shape {shape}; the graph takes batches with {self.batch_axes} axes")
        if self.channels is not None and shape[1] != self.channels:
            hint = "; its last axis fits: permute to channels first" if shape[-1] == self.channels else ""
            raise MBSError(f"{place} has shape {shape}; the graph takes {self.channels} channels, not {shape[1]}{hint}")
        if not images.numel():
            raise MBSError(f"{place} has shape {shape}: it holds no values")

    def _wanted(self) -> str:
        if len(self.names) == 1:
            return "give tensors, (image, label) pairs, or dicts with one floating-point tensor"
        return f"give tuples of {len(self.names)} tensors, or dicts with these names"


def check_graph(gm: Any) -> None:
    """Refuse what is not a traced graph, and a graph whose layers behave as in training."""
    require_graph(gm)
    targets = [str(n.target) for n in gm.graph.nodes if n.op == "call_module"]
    training = [t for t in targets if any(m.training for m in gm.get_submodule(t).modules())]
    if training or (gm.training and not targets):
        raise MBSError(
            f"the model is in training mode ({', '.join(training[:3]) or 'the graph'}): batch statistics and "
            "dropout would change the densities. Call .eval() first"
        )
    for node in gm.graph.nodes:
        if node.op == "call_function" and _is_training(node):
            raise MBSError(
                f"the graph was traced in training mode (node {node.name} has training=True): call .eval() on "
                "the model, then trace it again"
            )


def _is_training(node: fx.Node) -> bool:
    operation = of_target(node)
    place = operation.position("training") if operation is not None and operation in TRAINING else None
    positional = place is not None and len(node.args) > place and node.args[place] is True
    return positional or node.kwargs.get("training") is True


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict with keys {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(v).__name__ for v in value[:4])})"
    return f"a {type(value).__name__}"
