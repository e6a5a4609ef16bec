"""Scores of channels by what runs through them: how large they are, and how much a loss depends on them.

Semantics
- A channel is read where it leaves its layer: behind the normalisation, activation and dropout that alone read it.
- "activation": the mean of the absolute value over images and positions.
- "taylor": the mean over images of |Σ a · ∂L/∂a|, summed over positions: how much an image's loss changes, to first
  order, when the channel is set to zero (Molchanov et al. 2017).  It is the gradient of a factor 1 on the channel.
- A layer that is called more than once has one score for all calls.  A layer without scores has no preference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from mbs_fx.density.batches import Signature
from mbs_fx.density.images import Request
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.activations import activation_kind
from mbs_fx.macroblocks.analyze import Facts
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.resolve import operation_of
from mbs_fx.reconstruction.images import read_chunks
from mbs_fx.reconstruction.labelled import Loss, labelled_batches, per_image
from mbs_fx.reconstruction.linear_forms import form_of
from mbs_fx.rewriting.selection import Criterion

Read = Callable[[str, int, Tensor], Tensor]


def scores_on_images(
    found: Facts,
    private: GraphModule,
    images: Any,
    request: Request,
    device: torch.device,
    criterion: str,
    loss: Loss | None,
) -> Criterion:
    """A criterion of `mbs_fx.rewriting.selection` from images; ``private`` is a copy of the analyzed graph."""
    ends = chain_ends(found)
    if criterion == "activation":
        means = _Means()
        for chunk in read_chunks(private, images, found.analysis, request, device):
            _Run(private, ends, means.read).run(*chunk.copies(), enable_io_processing=False)
        scores = means.scores()
    else:
        scores = _taylor(found, private, ends, images, request, device, loss)
    return lambda path, weight: scores.get(path, torch.ones(len(weight)))


def chain_ends(found: Facts) -> dict[str, tuple[str, int]]:
    """Where the channels of every layer are read: node to (path of the layer, axis of the channels)."""
    ends: dict[str, tuple[str, int]] = {}
    flow = found.flow
    for node in flow.gm.graph.nodes:
        mixer = flow.mixers.get(node.name)
        form = None if mixer is None else form_of(flow.gm, node, flow.shapes)
        if mixer is not None and form is not None:
            ends[_end(found, node).name] = mixer.path, form.channel_axis
    return ends


def _end(found: Facts, node: Node) -> Node:
    """The last of the nodes that keep channels as they are and alone read one another, from a layer on."""
    flow = found.flow
    while len(node.users) == 1:
        user = next(iter(node.users))
        only = [each for each in user.all_input_nodes if each.op != "get_attr"] == [node]
        if not only or user.op == "output" or flow.shape(user) != flow.shape(node) or not _passes(found, user):
            break
        node = user
    return node


def _passes(found: Facts, node: Node) -> bool:
    known = operation_of(found.flow.gm, node) in (v.BATCH_NORM, v.DROPOUT)
    return known or activation_kind(found.flow, node) is not None


class _Run(fx.Interpreter):
    """Runs a graph and puts what ``read`` makes of them in the place of the channels of layers."""

    def __init__(self, gm: GraphModule, ends: Mapping[str, tuple[str, int]], read: Read) -> None:
        super().__init__(gm)
        self.ends, self.read = ends, read

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        return self.read(*self.ends[n.name], value) if n.name in self.ends else value


@dataclass
class _Means:
    """Means of absolute values, by layer."""

    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def read(self, path: str, axis: int, value: Tensor) -> Tensor:
        rows = value.movedim(axis, -1).flatten(0, -2)
        self.sums[path] = self.sums.get(path, 0.0) + rows.abs().sum(0, dtype=torch.float64)
        self.counts[path] = self.counts.get(path, 0) + len(rows)
        return value

    def scores(self) -> dict[str, Tensor]:
        return {path: held / self.counts[path] for path, held in self.sums.items()}


@dataclass
class _Factors:
    """Factors of 1 on the channels of every row of a batch, by layer; their gradients are what is wanted."""

    held: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])

    def read(self, path: str, axis: int, value: Tensor) -> Tensor:
        factor = torch.ones(len(value), value.shape[axis], dtype=value.dtype, device=value.device, requires_grad=True)
        self.held.setdefault(path, []).append(factor)
        shape = [len(value), *[1] * (value.dim() - 1)]
        shape[axis] = value.shape[axis]
        return value * factor.reshape(shape)

    def gradients(self, total: Tensor, images: int) -> dict[str, Tensor]:
        """|dL/d factor| by layer and channel, summed over images."""
        flat = [factor for factors in self.held.values() for factor in factors]
        found = iter(torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True))
        result: dict[str, Tensor] = {}
        for path, factors in self.held.items():
            rows = torch.stack([_by_image(next(found).double(), images) for _ in factors]).sum(0)
            result[path] = rows.abs().sum(0)
        return result


def _by_image(rows: Tensor, images: int) -> Tensor:
    """Rows of a batch summed by image; what several images share is divided among all."""
    whole = len(rows) % images == 0
    return rows.unflatten(0, (images, -1)).sum(1) if whole else (rows.sum(0) / images).expand(images, -1)


def _taylor(
    found: Facts,
    private: GraphModule,
    ends: Mapping[str, tuple[str, int]],
    images: Any,
    request: Request,
    device: torch.device,
    loss: Loss | None,
) -> dict[str, Tensor]:
    scores: dict[str, Tensor] = {}
    signature = Signature.of(private, found.analysis)
    names = found.analysis.input_names
    for number, (arguments, target) in enumerate(labelled_batches(private, images, signature, names, request, device)):
        factors = _Factors()
        with torch.enable_grad():
            output = _Run(private, ends, factors.read).run(*arguments, enable_io_processing=False)
            losses = per_image(loss, output, target, arguments, f"batch {number}")
            total = losses.sum()
        if not total.requires_grad:
            raise MBSError(f"batch {number}: the loss does not depend on the layers of the network: give another loss=")
        for path, value in factors.gradients(total, len(losses)).items():
            scores[path] = scores.get(path, 0.0) + value
    return scores
