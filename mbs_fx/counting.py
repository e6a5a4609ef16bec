"""Exact counts of non-zero activations, as part of the graph.

Semantics
- Counting happens at the node, at once: a later in-place operation cannot change what was counted, and a
  module that is called twice is two nodes.
- `instrument` gives a graph that returns counts in place of the network's outputs: one integer per image
  and column, the shapes of the counted activations, and for each image whether inputs and outputs were
  finite.
- Counts are exact for every shape: floating-point partial sums are whole numbers up to 2**24.
- NaN counts as non-zero; the check on the outputs finds it, as it spreads through every layer after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from mbs_fx.analysis import Activation
from mbs_fx.columns import Column, Columns
from mbs_fx.fast import fetch

CACHED = 1 << 20
EXACT = 1 << 24

NEVER_NEGATIVE = {"relu", "relu6", "clamp", "clamp_min", "clip", "hardtanh"}


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
        copies[node] = copy = graph.node_copy(node, lambda n: copies[n])
        if node.op in ("call_module", "get_attr"):
            attributes[node.target] = fetch(gm, node.target)
        if node.name in wanted:
            shapes.append(graph.call_function(getattr, (copy, "shape")))
            selection = _selection(graph, attributes, wanted[node.name])
            activation = activations[node.name]
            signed = activation.kind.lower() not in NEVER_NEGATIVE
            counts.append(graph.call_function(tally, (copy, activation.channel_axis, signed, *selection)))
    inputs = tuple(copies[n] for n in gm.graph.nodes if n.op == "placeholder")
    outputs = fx.node.map_arg(gm.graph.output_node().args[0], lambda n: copies[n])
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


def tally(
    x: Tensor,
    channel_axis: int,
    signed: bool,
    whole: bool = True,
    index: Tensor | None = None,
    ends: Tensor | None = None,
) -> Tensor:
    """Non-zero values of ``x`` per image and column: (N, columns), int64.

    Without ``index`` the only column is the whole activation.  Otherwise each column is a run of ``index``,
    up to and including ``ends``, preceded by the whole activation if ``whole``.
    """
    if index is None or ends is None:
        return nonzeros(x, tuple(range(1, x.ndim)), signed).unsqueeze(1)
    axis = channel_axis % x.ndim
    channels = nonzeros(x, tuple(d for d in range(1, x.ndim) if d != axis), signed)
    running = channels.index_select(1, index).cumsum(1).index_select(1, ends)
    columns = torch.diff(running, dim=1, prepend=torch.zeros_like(running[:, :1]))
    return torch.cat([channels.sum(1, keepdim=True), columns], 1) if whole else columns


def nonzeros(x: Tensor, dims: tuple[int, ...], signed: bool) -> Tensor:
    """Exact count of non-zero values over ``dims`` (not the first), int64.

    On a CPU the sum of signs is several times cheaper than a sum of booleans, if a few images are taken at a
    time so that the signs never leave the cache.
    """
    if not dims:
        return x.ne(0).long()
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x[:1].numel() > EXACT:
        return x.ne(0).sum(dims)
    step = max(1, CACHED // max(1, x[:1].numel()))
    parts = [_signs(part, signed).sum(dims, dtype=torch.float32) for part in x.split(step)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).long()


def _signs(x: Tensor, signed: bool) -> Tensor:
    return x.sign().abs_() if signed else x.sign()


def finite(*values: Any) -> Tensor:
    """For every image (first axis) whether all floating-point tensors in ``values`` are finite."""
    tensors = [t for t in floating_tensors(values) if t.ndim > 1]
    sums = [t.flatten(1).sum(1, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    return torch.stack([s for s in sums if len(s) == len(sums[0])]).isfinite().all(0)


def floating_tensors(values: Any) -> list[Tensor]:
    """Every floating-point tensor in nested tuples, lists and dicts."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    if isinstance(values, Mapping):
        values = tuple(values.values())
    if isinstance(values, tuple | list):
        return [tensor for value in values for tensor in floating_tensors(value)]
    return []


def elements(shape: torch.Size, activation: Activation, columns: Sequence[Column], images: int) -> list[int]:
    """Values per image in each column of an activation of this shape."""
    total = shape.numel() // images
    channels = shape[activation.channel_axis]
    return [total if c.positions is None else total // channels * len(c.positions) for c in columns]


def gather(counts: Sequence[Tensor], images: int, device: torch.device) -> Tensor:
    """All columns side by side: (images, K).  Activations with several rows per image (video) are summed."""
    if not counts:
        return torch.zeros(images, 0, dtype=torch.int64, device=device)
    rows = [c if len(c) == images else c.view(images, -1, c.shape[1]).sum(1) for c in counts]
    return torch.cat(rows, 1)
