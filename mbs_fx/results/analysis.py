"""The result of `analyze`: plain values, no tensors, no nodes, no torch.

Semantics
- A *cell* is a set of interchangeable channel choices.  Choosing one of them in a cell keeps the same number of
  channels wherever the cell appears.  Planning a network means choosing how many of each cell to keep.
- A *width* is the size of one channel axis, written as a fixed part plus a sum over cells, so that every tensor
  of the network has a size for every plan.
- A *width group* is a set of cells that meet in some tensor and can only be planned together.
- Sizes, strides and receptive fields are tuples, one entry per spatial axis, in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from mbs_fx import algorithm
from mbs_fx.algorithm import Floats
from mbs_fx.results.tables import lines_html, place_text, remarks, span_text, table, table_html, widths_text

HEADERS = ("m", "size", "convs", "counted", "RF", "widths", "MFLOP")


Number = TypeVar("Number", int, float)


def plain(values: Iterable[Number]) -> tuple[Number, ...]:
    """Python's own numbers: layers may be configured with NumPy's, which neither JSON nor ``is True`` takes."""
    found: tuple[Any, ...] = tuple(values)
    return tuple(value.item() if isinstance(value, np.generic) else value for value in found)


@dataclass(frozen=True, slots=True)
class Width:
    """Size of a channel axis: ``fixed + sum(share * kept[cell])``."""

    fixed: int
    terms: tuple[tuple[int, Fraction], ...] = ()

    def size(self, kept: Sequence[int]) -> Fraction:
        """The size when ``kept[i]`` choices of cell i are kept; a whole number for every feasible plan."""
        return self.fixed + sum((share * kept[cell] for cell, share in self.terms), Fraction(0))

    @property
    def cells(self) -> tuple[int, ...]:
        return tuple(cell for cell, _ in self.terms)


@dataclass(frozen=True, slots=True)
class Cell:
    """``size`` interchangeable choices; ``frozen`` says why none may be dropped, empty where some may."""

    index: int
    size: int
    step: int = 1
    frozen: str = ""
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size of a node's output in its own pixels, stride and receptive field in pixels of the input."""

    spatial_size: tuple[int, ...]
    stride: tuple[float, ...]
    receptive_field: tuple[float, ...]
    upsampled: bool = False

    def plain(self) -> Geometry:
        """The same in Python's own numbers."""
        size, stride, field = plain(self.spatial_size), plain(self.stride), plain(self.receptive_field)
        return Geometry(size, stride, field, bool(self.upsampled))


@dataclass(frozen=True, slots=True)
class Conv:
    """One application of a learned convolution, in topological order.

    ``flops`` are multiply-adds for one image: kernel volume x C_in / groups x C_out x output pixels.
    ``activations`` maps the activation nodes that the channels reach to the positions they take there
    (``None``: all of them); empty where they reach none, and then the conv is not counted.
    """

    name: str
    target: str
    spatial_size: tuple[int, ...]
    stride: tuple[float, ...]
    receptive_field: tuple[float, ...]
    flops: int
    width: int
    in_width: int
    groups: int
    macroblock: int
    out: Width
    inp: Width
    activations: Mapping[str, tuple[int, ...] | None]

    @property
    def counted(self) -> bool:
        """Whether the convolution has a ReLU output v_j, and so a share in the effective flops."""
        return bool(self.activations)

    @property
    def depthwise(self) -> bool:
        """Whether the outputs are the inputs' channels."""
        return 1 < self.groups == self.in_width


@dataclass(frozen=True, slots=True)
class Activation:
    """A node after which zeros are counted; ``sparse`` is False where the function has no exact zeros."""

    name: str
    kind: str
    sparse: bool
    channel_axis: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the graph whose channels cannot be followed index by index: scaled by one factor as a whole."""

    index: int
    name: str
    reason: str
    nodes: tuple[str, ...]
    convs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Macroblock:
    """m_i of Eq. 2: the convolutions (by node name) that share an output size, in the sense of docs/semantics.md."""

    index: int
    spatial_size: tuple[int, ...]
    convs: tuple[str, ...]
    segments: tuple[Segment, ...] = ()
    upsampled: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """A tensor of designed width: one distinct width among the outputs of the convolutions.

    ``base`` and ``ratio``: this width is ``ratio`` times that of the stream with index ``base`` by design.
    ``added``: an addition binds it; ``concatenated``: it enters a concatenation; ``step``: feasible widths are
    multiples of it.
    """

    index: int
    width: int
    out: Width
    macroblock: int
    convs: tuple[str, ...]
    base: int | None = None
    ratio: int = 1
    concatenated: bool = False
    added: bool = False
    step: int = 1


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Memory that is reused by several feature maps: ``fixed`` bytes for every channel of ``widths``.

    It is held while the graph runs from its node number ``first`` to ``last``.
    """

    first: int
    last: int
    fixed: int
    widths: tuple[Width, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One node of the graph: what it does, the modules that it stands in, and the nodes that it reads.

    ``kind`` is the class of a module or the name of a function, ``path`` the module's path (empty for a function),
    ``shape`` that of the (first) output, ``kernel`` and ``step`` the window of a convolution or a pooling layer.
    """

    name: str
    op: str
    kind: str
    path: str
    scope: tuple[str, ...]
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    step: tuple[int, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """Everything that `plan` needs to know about a graph; ``print`` shows its macroblocks and what keeps its width.

    ``input_types`` names the type of every input of whole numbers, empty for those of the parameters' type; () where
    all are.  ``input_names`` are their names in the graph: that of the input, and the way to the tensor in an input
    that is a list or dict.  ``leaves`` are the modules, layers of torch.nn aside, that the graph calls without looking
    inside.  ``image`` is the number of the input over which the convolutions slide, and ``image_axes`` its spatial
    dimensions, whose sizes are ``input_size`` (L).  ``name`` is that of the network's class.  ``outputs`` are the ways
    to those that keep their channels, None where all do.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    input_size: tuple[int, ...]
    geometry: Mapping[str, Geometry]
    convs: tuple[Conv, ...]
    activations: Mapping[str, Activation]
    macroblocks: tuple[Macroblock, ...]
    cells: tuple[Cell, ...]
    streams: tuple[Stream, ...]
    tensors: Mapping[str, tuple[Width, ...]]
    kept: Mapping[str, str]
    notes: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()
    fingerprint: str = ""
    buffers: Mapping[str, tuple[Width, ...]] = field(default_factory=dict[str, tuple[Width, ...]])
    element_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    input_types: tuple[str, ...] = ()
    maps: tuple[FeatureMap, ...] = ()
    leaves: tuple[str, ...] = ()
    operations: tuple[Operation, ...] = ()
    input_names: tuple[tuple[str | int, ...], ...] = ()
    image: int = 0
    image_axes: tuple[int, ...] = ()
    name: str = ""
    outputs: tuple[tuple[str | int, ...], ...] | None = None

    def __str__(self) -> str:
        return "\n".join([table(self._rows(), HEADERS), *self._remarks()])

    def _repr_html_(self) -> str:
        return table_html(self._rows(), HEADERS) + lines_html(self._remarks())

    def _rows(self) -> list[tuple[str, ...]]:
        return [self._row(macroblock) for macroblock in self.macroblocks]

    def _row(self, m: Macroblock) -> tuple[str, ...]:
        convs = [self.by_name[name] for name in m.convs]
        widths = dict.fromkeys((s.width, s.width) for s in self.streams if s.macroblock == m.index)
        return (
            f"{m.index}{'*' if m.segments else ''}",
            place_text(m.spatial_size, m.upsampled),
            str(len(convs)),
            str(sum(conv.counted for conv in convs)),
            span_text(field for conv in convs for field in conv.receptive_field),
            widths_text(tuple(widths)),
            f"{sum(conv.flops for conv in convs) / 1e6:.1f}",
        )

    def _remarks(self) -> list[str]:
        segments = (segment.name for m in self.macroblocks for segment in m.segments)
        return remarks(segments, self.kept, self.notes)

    @cached_property
    def by_name(self) -> Mapping[str, Conv]:
        """Convolutions by node name."""
        return {conv.name: conv for conv in self.convs}

    @cached_property
    def fields(self) -> Floats:
        """Receptive fields of all convolutions on the axes of the input, (convolutions, axes)."""
        return algorithm.on_axes([conv.receptive_field for conv in self.convs], len(self.input_size))

    def thresholds(self, zs: Sequence[float]) -> Floats:
        """Thresholds in pixels, (thresholds, axes), from multiples of the input size."""
        return np.outer(np.asarray(zs, float), np.array(self.input_size, float))

    def boundaries(self, zs: Sequence[float]) -> Floats:
        """The boundaries between base and enhancement layers (Eq. 3), (thresholds, axes)."""
        return algorithm.boundaries(self.fields, self.thresholds(zs))
