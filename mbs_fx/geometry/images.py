"""The input of a graph that is the image: the one over which its convolutions slide, and its spatial axes.

Semantics
- Every tensor that enters is tried by itself: all of its dimensions are tracked until convolutions slide over some of
  them.  The axes are those of its first convolution, and those that it moved into the batch.
- The image is the input over which the most convolutions slide, of equals the largest, then the first.  A vector, a
  mask or a text that the graph reads before is none.
- A convolution by groups that keep the images of a batch apart (a blur of ``x.view(1, n * c, h, w)``) may have the
  batch among its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.geometry.axes import Atom
from mbs_fx.geometry.call import GeometryCall
from mbs_fx.shapes.convolutions import ConvSpec, any_conv
from mbs_fx.shapes.shapes import tensors_in

Starts = Mapping[str, tuple[tuple[int, ...], ...]]
"""The spatial axes of every tensor in an input, by the name of its placeholder."""

Walk = Callable[[Starts], Iterable[tuple[GeometryCall, Any]]]
"""Every node of a graph with its track, for inputs with the given axes."""


@dataclass(frozen=True, slots=True)
class Image:
    """Which of the tensors that enter is the image, and its spatial axes; ``starts`` has the axes of all of them.

    ``batch`` is the number of images in it.
    """

    index: int
    batch: int
    axes: tuple[int, ...]
    size: tuple[int, ...]
    starts: Starts


@dataclass(frozen=True, slots=True)
class _Input:
    """A tensor that enters: the ``place``-th of the placeholder ``name``."""

    name: str
    place: int
    shape: tuple[int, ...]

    @property
    def plain(self) -> tuple[int, ...]:
        """The axes of (batch, channels, *map)."""
        return tuple(range(2, len(self.shape)))


def find_image(gm: GraphModule, shapes: Mapping[str, Any], walk: Walk) -> Image:
    """The image among the inputs of a graph."""
    inputs = list(_inputs(gm, shapes))
    # One input alone is the image, and its first convolution says all.
    most = 1 if len(inputs) == 1 else None
    found = {each: list(islice(_slid(gm, shapes, walk, inputs, each), most)) for each in inputs}
    main = max(inputs, key=lambda each: (len(found[each]), prod(each.shape)), default=None)
    axes = {each: _axes(each, found[each], refuse=each is main) for each in inputs}
    starts = {each.name: tuple(axes[other] for other in inputs if other.name == each.name) for each in inputs}
    if main is None:
        return Image(0, 1, (), (), starts)
    size = tuple(main.shape[axis] for axis in axes[main])
    return Image(inputs.index(main), main.shape[0] if main.shape else 1, axes[main], size, starts)


def _inputs(gm: GraphModule, shapes: Mapping[str, Any]) -> Iterator[_Input]:
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            for place, tensor in enumerate(tensors_in(shapes[node.name])):
                yield _Input(node.name, place, tensor.shape)


def _slid(
    gm: GraphModule, shapes: Mapping[str, Any], walk: Walk, inputs: list[_Input], own: _Input
) -> Iterator[tuple[Node, ConvSpec, list[set[int]]]]:
    """The convolutions that slide over one input; of each dimension of what they read, the input's in it."""
    none: dict[str, tuple[tuple[int, ...], ...]] = {
        each.name: tuple(() for other in inputs if other.name == each.name) for each in inputs
    }
    tried = list(none[own.name])
    tried[own.place] = tuple(range(len(own.shape)))
    for call, _ in walk({**none, own.name: tuple(tried)}):
        spec = any_conv(gm, call.node, shapes)
        if spec is None:
            continue
        read = [_own_axes(own, row) for row in call.operand(call.first).dims]
        if any(read[-spec.dims :]):
            yield call.node, spec, read


def _own_axes(own: _Input, row: Iterable[Atom]) -> set[int]:
    """Which dimensions of an input a dimension is made of."""
    return {atom.axis for atom in row} & set(range(len(own.shape)))


def _axes(own: _Input, slid: list[tuple[Node, ConvSpec, list[set[int]]]], refuse: bool) -> tuple[int, ...]:
    """The spatial axes of an input, by the first convolution over it."""
    if not slid:
        return own.plain
    node, spec, held = slid[0]
    map_axes = set[int]().union(*held[-spec.dims :])
    mixed = any(len(each) != 1 for each in held[-spec.dims :])
    given = any(isinstance(a, Node) and a.op == "placeholder" for a in node.args[1:2])  # the weight
    if given or mixed or len(held) < spec.dims + 2 or len(map_axes) < spec.dims:
        return own.plain
    if 0 in map_axes or (0 in held[1] and not _keeps_images_apart(own, spec)):
        if not refuse:
            return own.plain
        raise MBSError(
            f"{node.name}: the first axis of the input {own.shape} is no batch here, so that the graph takes one "
            "image at a time: let the model take batches, without an unsqueeze of its own"
        )
    return tuple(sorted(map_axes | (held[0] - {0})))


def _keeps_images_apart(own: _Input, spec: ConvSpec) -> bool:
    """Whether the groups of a convolution are those of single images.

    One image without a batch axis, unsqueezed, has one axis less, and as many groups as its channels at the most.
    """
    batch = own.shape[0]
    return spec.groups % batch == 0 and (batch > 1 or len(own.shape) >= spec.dims + 2)
