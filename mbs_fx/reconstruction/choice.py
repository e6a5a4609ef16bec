"""Which channels stay, from images: those that the readers of a width group can least do without.

Semantics
- The error that a removal leaves in what reads the channels is found in closed form (`readers`), every layer's
  relative to the energy of its outputs.  Channels go one by one, each time the one whose removal adds least.
- Outputs count by the scale of the BatchNorm that alone reads them.  A second round counts only outputs that stayed in
  the first.
- A layer behind which there is none, the network's last, counts as `LAST` others: no later one makes up for its error.
- Depthwise convolutions are no readers: their outputs are their inputs' channels.  Opaque segments have no choice.
- Other criteria that need images are in `channel_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule, Node

from mbs_fx.density.batches import check_graph
from mbs_fx.density.fast_copy import fast_copy
from mbs_fx.density.images import Request
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import Facts, facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.reconstruction.channel_scores import scores_on_images
from mbs_fx.reconstruction.frontier import Chunk
from mbs_fx.reconstruction.images import read_chunks
from mbs_fx.reconstruction.input_moments import moments, weight_matrix, weight_of
from mbs_fx.reconstruction.labelled import Loss
from mbs_fx.reconstruction.linear_forms import LinearForm, form_of
from mbs_fx.reconstruction.memory_order import channels_last
from mbs_fx.reconstruction.networks import graph_of
from mbs_fx.reconstruction.readers import Reader, reader
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.carried_plan import plan_in
from mbs_fx.rewriting.graphs import check_fits
from mbs_fx.rewriting.repeated import relative
from mbs_fx.rewriting.selection import BY_IMAGES, Keep, select
from mbs_fx.runtime.devices import usable
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.runtime.ranks import Ranks
from mbs_fx.tracing.example import place_and_dtype

ROUNDS = 2
LAST = 4.0


def choose_channels(
    original: nn.Module,
    plan: Plan,
    images: Any,
    *,
    criterion: str = "readers",
    loss: Loss | None = None,
    max_images: int = 512,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Plan:
    """The plan with ``channels`` filled in: those without which the original's layers lose most, on images.

    Args:
        original: the network that the plan was made for, a graph or a module; not changed.
        plan: what `mbs_fx.plan` made; channels that it records already are chosen anew.
        images: as for `mbs_fx.measure`; of the size that the plan was made for.
        criterion: "readers", what the layers that read a channel lose; "activation", its mean absolute value;
            "taylor", how much a loss changes without it, to first order, on batches (images, targets).
        loss: for "taylor", a function of outputs and targets; cross entropy of a classifier where it is left out.
        max_images: read no more than this.
        batch_size: for images that do not come in batches.
        workers: processes that load images from a dataset.
        seed: of the order in which a set of images is drawn, and of the positions.
        device: where to run; where the original's parameters are, if not given.

    Returns:
        A plan for `mbs_fx.rewrite`, which keeps these channels.

    """
    if criterion not in BY_IMAGES:
        raise MBSError(f"criterion {criterion!r}: choose_channels takes {', '.join(BY_IMAGES)}; rewrite takes others")
    if loss is not None and criterion != "taylor":
        raise MBSError(f'loss= is for criterion="taylor", not {criterion!r}: leave it out')
    plan = relative(plan_in(original), plan)
    graph = graph_of(original, plan)
    check_graph(graph)
    found = facts(graph, plan.input_shapes, plan.opaque, plan.input_types, plan.input_names, plan.outputs)
    check_fits(found.analysis, plan)
    counts = from_widths(found.analysis, plan.widths)
    place, dtype = place_and_dtype(graph)
    place = place if device is None else usable(device)
    private = fast_copy(graph, place, dtype, fold=False)
    with random_state_kept(), torch.no_grad():
        request = Request(batch_size, max_images, seed=seed, workers=workers)
        if criterion == "readers":
            chunks = channels_last([private], read_chunks(private, images, found.analysis, request, place))
            keep = _chosen(found, private, counts, chunks, seed)
        else:
            keep = select(found, counts, scores_on_images(found, private, images, request, place, criterion, loss))
    return replace(plan, channels=keep.channels())


def _chosen(found: Facts, private: GraphModule, counts: Sequence[int], chunks: Sequence[Chunk], seed: int) -> Keep:
    shrinking = {cell.index for cell in found.analysis.cells if counts[cell.index] < cell.size}
    forms = _forms(found, shrinking)
    means = moments(private, forms, chunks, sum(map(len, chunks)), seed, Ranks())
    nodes = {node.name: node for node in private.graph.nodes}
    weights = {name: weight_matrix(private, nodes[name], form) for name, form in forms.items()}
    last = _last(found)
    keep = Keep(found, np.ones(len(found.choices.choice), bool), tuple(counts))
    for _ in range(ROUNDS):
        readers: list[Reader] = []
        for name, form in forms.items():
            flow = found.flow.mixers[name]
            stays = torch.from_numpy(keep.stays[flow.out]).to(weights[name].device)
            rows = weights[name] * stays.reshape(weights[name].shape[0], -1, 1)
            held = reader(form, rows, means[name], found.choices.choice[flow.inp])
            if held is not None:
                held.energy /= LAST if name in last else 1.0
                readers.append(held)
        keep = _without(found, counts, readers)
    return keep


def _forms(found: Facts, shrinking: set[int]) -> dict[str, LinearForm]:
    """The readers of channels of which some go, by node."""
    forms: dict[str, LinearForm] = {}
    for node in found.flow.gm.graph.nodes:
        mixer = found.flow.mixers.get(node.name)
        if mixer is None or mixer.depthwise or not shrinking & set(found.choices.cell[mixer.inp].tolist()):
            continue
        form = form_of(found.flow.gm, node, found.flow.shapes)
        if form is not None and weight_of(found.flow.gm, node) is not None:
            forms[node.name] = form
    return forms


def _last(found: Facts) -> set[str]:
    """Layers behind which there is no other."""
    before: set[Node] = set()
    last: set[str] = set()
    for node in reversed(found.flow.gm.graph.nodes):
        layer = node.name in found.flow.mixers
        if layer and node not in before:
            last.add(node.name)
        if layer or node in before:
            before.update(node.all_input_nodes)
    return last


def _without(found: Facts, counts: Sequence[int], readers: Sequence[Reader]) -> Keep:
    """Remove channels cell by cell until ``counts`` are left."""
    choices = found.choices
    stays = np.ones(len(choices.choice), bool)
    roots = np.flatnonzero(choices.choice == np.arange(len(choices.choice)))
    for cell, count in enumerate(counts):
        members = roots[choices.cell[roots] == cell]
        if count < len(members) and not choices.opaque[members].any():
            stays[_removed(members, len(members) - count, readers)] = False
    return Keep(found, stays[choices.choice], tuple(counts))


def _removed(members: NDArray[np.int64], count: int, readers: Sequence[Reader]) -> NDArray[np.int64]:
    """The members that go, in greedy order; ``members`` are sorted."""
    inside = [(held, *np.intersect1d(members, held.choices, return_indices=True)[1:]) for held in readers]
    inside = [(held, at, own) for held, at, own in inside if len(at)]
    left = np.ones(len(members), bool)
    gone: list[int] = []
    for _ in range(count):
        total = np.zeros(len(members))
        for held, at, own in inside:
            total[at] += held.costs()[own]
        worst = int(np.argmin(np.where(left, total, np.inf)))
        left[worst] = False
        gone.append(worst)
        for held, at, own in inside:
            for position in own[at == worst]:
                held.remove(int(position))
    return members[gone]
