"""The input tensors of a batch: which the graph takes, and whether they fit.

- Placeholders without a default are the inputs.  In a dict they are found by name, in a tuple by position;
  a dict with a single floating-point tensor needs no names.  An input that is a list or dict of tensors is looked up
  in the same way, and where it is the only one a batch may be that list or dict.
- Images are floating point, or whole numbers where the graph was traced or analyzed with such, and have the channels
  of the first convolution that reads them.
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
from mbs_fx.results.analysis import Analysis
from mbs_fx.shapes.graph_inputs import Inputs, Name, noted_inputs, packed, require_graph

TRAINING = (v.DROPOUT, v.BATCH_NORM)
"""Operations that behave differently in training, which a function is told by an argument."""


@dataclass(frozen=True)
class Batch:
    """Input tensors of one size, and the number of each image in its set (or in the order of reading).

    Without inputs: images that could not be read.
    """

    inputs: tuple[Tensor, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> Batch:
        """The images from ``start`` up to ``stop``."""
        return Batch(tuple(t[start:stop] for t in self.inputs), self.indices[start:stop])


@dataclass(frozen=True)
class Signature:
    """Inputs of a graph: the names of their tensors, which of them holds the images, and how many axes a batch has.

    ``channels`` are those of the convolution that reads the images, where it is known; ``whole`` says that the graph
    takes whole numbers as images, as a network does that normalises them itself.
    """

    names: tuple[Name, ...]
    batch_axes: int
    image: int = 0
    channels: int | None = None
    whole: bool = False

    @staticmethod
    def of(gm: fx.GraphModule, analysis: Analysis | None = None) -> Signature:
        """Read off the placeholders and the first convolution, and off the analysis where there is one."""
        placeholders = [n for n in gm.graph.nodes if n.op == "placeholder" and not n.args]
        known = noted_inputs(placeholders) if analysis is None else _analyzed(analysis)
        names = known.names if known is not None and known.names else tuple((str(n.target),) for n in placeholders)
        read, dims, channels = _first_convolution(gm)
        image = names.index((read,)) if (read,) in names else 0
        if analysis is not None and analysis.image != image:
            image, channels = analysis.image, None
        shape = known.shapes[image] if known is not None else ()
        whole = known is not None and bool(known.types) and bool(known.types[image])
        return Signature(names, len(shape) or dims + 2, image, channels, whole)

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(dict.fromkeys(str(name[0]) for name in self.names))

    @property
    def several(self) -> bool:
        """Whether more than one tensor enters."""
        return len(self.names) > 1

    def example(self, item: Any) -> dict[str, Any]:
        """The inputs that a batch or a single image gives, by name."""
        tensors = self.inputs(item, "batch 0") if not self.is_single(item) else self.stack([item], [0])[0].inputs
        return packed(self.names, [tensor[:2] for tensor in tensors])

    def is_single(self, item: Any) -> bool:
        """Whether an item is one image (one axis less than a batch)."""
        tensors = self._pick(item)
        held = tensors[self.image] if tensors else None
        return isinstance(held, Tensor) and held.ndim == self.batch_axes - 1

    def inputs(self, item: Any, place: str) -> tuple[Tensor, ...]:
        """The input tensors of a batch, checked."""
        picked = self._pick(item)
        if not picked:
            raise MBSError(f"{place} is {_describe(item)}; the graph takes {', '.join(self.heads)}: " + self._wanted())
        for name, value in zip(self.names, picked, strict=True):
            if not isinstance(value, Tensor):
                way = "".join(f"[{part!r}]" for part in name[1:])
                raise MBSError(f"{place}: input {name[0]}{way} is {_describe(value)}, not a tensor: " + self._wanted())
        self._check(picked[self.image], place)
        return picked

    def stack(self, items: Sequence[Any], indices: Sequence[int]) -> list[Batch]:
        """Single images as batches, one for each size among them, and one for the items that are None."""
        missing = tuple(index for item, index in zip(items, indices, strict=True) if item is None)
        there = [(item, index) for item, index in zip(items, indices, strict=True) if item is not None]
        sizes: dict[tuple[torch.Size, ...], list[int]] = {}
        picked = [self._single(item, index) for item, index in there]
        for place, tensors in enumerate(picked):
            sizes.setdefault(tuple(t.shape for t in tensors), []).append(place)
        stacked = [
            Batch(
                tuple(torch.stack([picked[i][k] for i in places]) for k in range(len(self.names))),
                tuple(there[i][1] for i in places),
            )
            for places in sizes.values()
        ]
        return [*stacked, Batch((), missing)] if missing else stacked

    def _single(self, item: Any, index: int) -> tuple[Tensor, ...]:
        picked = self._pick(item)
        if not picked or not all(isinstance(value, Tensor) for value in picked):
            raise MBSError(f"image {index} is {_describe(item)}: " + self._wanted())
        self._check(picked[self.image][None], f"image {index}")
        return picked

    def _pick(self, item: Any) -> tuple[Any, ...]:
        """What the graph takes of an item, one value per name; () where it is not there."""
        heads = self.heads
        nested = len(heads) == 1 and len(self.names[0]) > 1
        if isinstance(item, Mapping):
            if not all(head in item for head in heads):
                return self._floats(item) or (self._parts({heads[0]: item}) if nested else ())
            return self._parts(item)
        if isinstance(item, tuple | list):
            given = dict(zip(heads, item, strict=False)) if len(item) >= len(heads) else {}
            return self._parts(given) or (self._parts({heads[0]: item}) if nested else ())
        return self._parts({heads[0]: item}) if len(heads) == 1 else ()

    def _parts(self, given: Mapping[str, Any]) -> tuple[Any, ...]:
        try:
            return tuple(_found(given, name) for name in self.names)
        except (LookupError, TypeError):
            return ()

    def _floats(self, item: Mapping[str, Any]) -> tuple[Any, ...]:
        """The only floating-point tensor in a dict needs no name."""
        floats = [v for v in item.values() if isinstance(v, Tensor) and v.is_floating_point()]
        return (floats[0],) if len(floats) == len(self.names) == 1 else ()

    def _check(self, images: Tensor, place: str) -> None:
        shape = tuple(images.shape)
        if not images.is_floating_point() and not self.whole:
            raise MBSError(
                f"{place} has dtype {images.dtype}: convert to floating point and normalise as in training, "
                "for instance (images.float() / 255 - mean) / std; for a network that normalises them itself, trace it "
                "with such an example"
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
        if len(self.heads) == 1:
            return f"give batches of {len(self.names)} tensors, as the model takes them"
        return f"give tuples of {len(self.heads)} tensors, or dicts with these names"


def _found(item: Any, name: Name) -> Any:
    """What lies at the end of a way into nested containers."""
    for part in name:
        item = item[part]
    return item


def _analyzed(analysis: Analysis) -> Inputs:
    return Inputs(analysis.input_shapes, analysis.input_types, analysis.input_names)


def _first_convolution(gm: fx.GraphModule) -> tuple[str, int, int | None]:
    """(the input that it reads directly, its dimensions, its channels) of the first convolution."""
    for node in gm.graph.nodes:
        module = gm.get_submodule(node.target) if node.op == "call_module" else None
        source: Any = node.args[0] if node.args else None
        read = str(source.target) if isinstance(source, fx.Node) and source.op == "placeholder" else ""
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return read, len(module.kernel_size), module.in_channels if read else None
        operation = of_target(node)
        if operation is not None and operation in v.CONV:
            return read, operation.dims or 2, None
    return "", 2, None


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
