"""Exact counts of non-zero activations, as part of the graph.

Semantics
- Counting happens at the node, at once: a later in-place operation cannot change what was counted, and a
  module that is called twice is two nodes.
- `instrument` gives a graph that returns counts in place of the network's outputs: one integer per image
  and column, the shapes of the counted activations, and for each image whether inputs and outputs were
  finite.
- On a CPU the bits are read as whole numbers, which are positive where a value is and 0 where it is +0: the same
  number of bytes, and a fraction of the time that floating-point numbers of two bytes take.
- Images with NaN or infinities are told by the outputs, to which they spread; what is counted for them is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from mbs_fx.density.columns import Column, Columns
from mbs_fx.operations.resolve import named
from mbs_fx.results.analysis import Activation
from mbs_fx.shapes.fake_interpreter import fields_of
from mbs_fx.shapes.graph_attributes import attribute

CACHED = 1 << 18
"""Values of a piece that stays in the cache together with its signs."""

EXACT = 1 << 24
"""Up to here float32 holds every whole number."""

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers as long as a floating-point number, by its bytes."""

Change = Callable[[Tensor], object] | None


def instrument(gm: fx.GraphModule, columns: Columns, activations: Mapping[str, Activation]) -> fx.GraphModule:
    """A graph on the same modules that returns (counts, shapes, finite) for a batch."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, Any] = {}
    counts: list[fx.Node] = []
    shapes: list[fx.Node] = []
    wanted = columns.by_activation()
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        asked = wanted.get(node.name, ())
        selection = _selection(graph, attributes, asked)
        copies[node] = copy = graph.node_copy(node, lambda n: copies[n])
        if node.op in ("call_module", "get_attr"):
            attributes[node.target] = attribute(gm, node.target)
        if asked:
            shapes.append(graph.call_function(getattr, (copy, "shape")))
            activation = activations[node.name]
            kind = named(activation.kind)
            signed = kind is None or not kind.nonnegative
            counts.append(graph.call_function(tally, (copy, activation.channel_axis, signed, *selection)))
    inputs = tuple(copies[n] for n in gm.graph.nodes if n.op == "placeholder")
    outputs = map_arg(gm.graph.output_node().args[0], lambda n: copies[n])
    graph.output((tuple(counts), tuple(shapes), graph.call_function(finite, (inputs, outputs))))
    return fx.GraphModule(attributes, graph, "Counting")


def _selection(graph: fx.Graph, attributes: dict[str, Any], columns: Sequence[Column]) -> tuple[Any, ...]:
    """Arguments of `tally` that say which channels each column takes; buffers, to be on the device."""
    chosen = [c.positions for c in columns if c.positions is not None]
    if not chosen:
        return ()
    whole = len(chosen) < len(columns)
    index = torch.tensor([position for positions in chosen for position in positions])
    ends = torch.tensor([len(positions) for positions in chosen]).cumsum(0) - 1
    names = f"mbs_index_{len(attributes)}", f"mbs_ends_{len(attributes)}"
    attributes |= dict(zip(names, (index, ends), strict=True))
    return (whole, *(graph.get_attr(name) for name in names))


def tally(x: Tensor, *arguments: Any) -> Tensor:
    """Non-zero values of ``x`` per image and column: (N, columns), int64.  Arguments as for `columns_of`."""
    return columns_of(x, None, *arguments)


def columns_of(
    x: Tensor,
    change: Change,
    channel_axis: int,
    signed: bool,
    whole: bool = True,
    index: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """Counts per image and column, after ``change`` was applied to ``x`` in place.

    Without ``index`` the only column is the whole activation.  Otherwise each column is a run of ``index``,
    up to and including ``ends``, preceded by the whole activation if ``whole``.
    """
    if index is None or ends is None:
        return nonzeros(x, tuple(range(1, x.ndim)), signed, change).unsqueeze(1)
    axis = channel_axis % x.ndim
    channels = nonzeros(x, tuple(d for d in range(1, x.ndim) if d != axis), signed, change)
    running = channels.index_select(1, index).cumsum(1).index_select(1, ends)
    columns = torch.diff(running, dim=1, prepend=torch.zeros_like(running[:, :1]))
    return torch.cat([channels.sum(1, keepdim=True), columns], 1) if whole else columns


def nonzeros(x: Tensor, dims: tuple[int, ...], signed: bool, change: Change = None) -> Tensor:
    """Exact count of non-zero values over ``dims`` (not the first), int64; the cheapest there is on the device."""
    terms = math.prod(x.shape[d] for d in dims)
    plain = x.is_floating_point() and x.element_size() in BITS and not torch.compiler.is_compiling()
    if x.device.type == "cpu" and plain and dims and x.numel():
        flat = _in_memory_order(x) if len(dims) == x.ndim - 1 else None
        if flat is None:
            return _sums(x, dims, signed, change)
        pieces = _pieces_per_image(flat.shape[1], _row(x))
        cut = flat.view(len(flat) * pieces, -1)
        return _sums(cut, (1,), signed, change).view(len(flat), pieces).sum(1)
    if change is not None:
        change(x)
    if x.device.type == "cuda" and dims and terms <= EXACT and not torch.compiler.is_compiling():
        return _norms(x, dims)
    return x.ne(0).sum(dims) if dims else x.ne(0).long()


def _norms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The "norm" of order 0 is this count, read in one kernel without a temporary tensor."""
    return torch.linalg.vector_norm(x, 0, dims, dtype=torch.promote_types(x.dtype, torch.float32)).long()


def _sums(x: Tensor, dims: tuple[int, ...], signed: bool, change: Change) -> Tensor:
    """Sums of 1 for every non-zero value, as many rows at a time as stay in the cache; one buffer, as fresh memory is
    slow.  int64.
    """
    whole = BITS[x.element_size()]
    fits = math.prod(x.shape[d] for d in dims) <= torch.iinfo(whole).max
    parts = x.split(max(1, CACHED // x[:1].numel()))
    buffer = torch.empty_like(parts[0], dtype=whole)
    sums: list[Tensor] = []
    for part in parts:
        if change is not None:
            change(part)
        bits, ones = part.view(whole), buffer[: len(part)]
        if signed:
            torch.bitwise_and(bits, torch.iinfo(whole).max, out=ones).clamp_max_(1)
        else:
            torch.clamp(bits, 0, 1, out=ones)
        sums.append(ones.sum(dims, dtype=whole if fits else torch.int64).long())
    return torch.cat(sums)


def _row(x: Tensor) -> int:
    """Values whose count the whole numbers of `BITS` hold, at most a piece that stays in the cache."""
    return min(CACHED, torch.iinfo(BITS[x.element_size()]).max)


def _in_memory_order(x: Tensor) -> Tensor | None:
    """The values of each image in a row, without moving them; None where they do not lie in one piece."""
    if x.is_contiguous():
        return x.view(len(x), -1)
    turned = x.movedim(1, -1)
    return turned.view(len(x), -1) if turned.is_contiguous() else None


def _pieces_per_image(size: int, most: int) -> int:
    """In how many equal pieces of at most ``most`` values an image is cut; 1 where it does not divide."""
    least = -(-size // most)
    return next((k for k in range(least, 4 * least) if size % k == 0), 1)


def finite(*values: Any) -> Tensor:
    """For every image (first axis) whether all floating-point tensors in ``values`` are finite."""
    tensors = [t for t in floating_tensors(values) if t.ndim and t.numel()]
    sums = [t.reshape(len(t), -1).sum(1, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.stack([s for s in sums if len(s) == len(sums[0])]).isfinite().all(0)


def floating_tensors(values: Any) -> list[Tensor]:
    """Every floating-point tensor in nested tuples, lists, dicts and dataclass objects."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    if isinstance(values, Mapping):
        values = tuple(values.values())
    elif is_dataclass(values) and not isinstance(values, type):
        values = tuple(fields_of(values).values())
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in floating_tensors(value)]
    return []


def elements(shape: torch.Size, activation: Activation, columns: Sequence[Column], images: int) -> list[int]:
    """Values per image in each column of an activation of this shape."""
    total = shape.numel() // images
    channels = shape[activation.channel_axis]
    return [total if c.positions is None else total // channels * len(c.positions) for c in columns]


def gather(counts: Sequence[Tensor], images: int) -> Tensor:
    """All columns side by side: (images, K).  Activations with several rows per image (video) are summed."""
    rows = [c if len(c) == images else c.view(images, -1, c.shape[1]).sum(1) for c in counts]
    return torch.cat([r.long() for r in rows], 1)
