"""The original and the small network as two graphs of the same nodes, and the result as a network of its kind.

Semantics
- The small graph is made anew from the original by the plan that the small network carries, and takes its tensors.
- A small network holds the original's weights at the kept channels, or those of an earlier reconstruction.  Anything
  else was not made of this original, or one of the two was trained since, and is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from mbs_fx.density.batches import check_graph
from mbs_fx.density.fast_copy import fast_copy
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.results.plan import Plan
from mbs_fx.results.reconstruction import Reconstruction
from mbs_fx.rewriting.carried_plan import CarriedMeta, plan_in
from mbs_fx.rewriting.graphs import build, check_fits
from mbs_fx.rewriting.inputs import example_inputs
from mbs_fx.rewriting.repeated import relative
from mbs_fx.rewriting.resizing import Resizer
from mbs_fx.rewriting.selection import Keep, restore
from mbs_fx.tracing.check import copied
from mbs_fx.tracing.example import place_and_dtype
from mbs_fx.tracing.trace import trace

MADE = "mbs_reconstruction"
"""The key in ``meta`` where a network carries the report of its reconstruction."""


@dataclass(frozen=True)
class Pair:
    """Private graphs of the original and of the small network, and which channels stayed.

    ``fresh``: layers of the small network that could inherit nothing, in opaque segments.
    """

    original: GraphModule
    small: GraphModule
    keep: Keep
    plan: Plan
    fresh: tuple[str, ...]


def pair(small: nn.Module, original: nn.Module, device: torch.device | None) -> Pair:
    """Both networks on one device, in private copies."""
    plan = plan_in(small)
    if plan is None:
        raise MBSError(
            "the small network carries no plan: give what mbs_fx.rewrite or mbs_fx.reduce returned, with its meta"
        )
    plan = relative(plan_in(original), plan)
    graph = graph_of(original, plan)
    check_graph(graph)
    found = facts(graph, plan.input_shapes, plan.opaque, plan.input_types, plan.input_names, plan.outputs)
    check_fits(found.analysis, plan)
    keep = restore(found, from_widths(found.analysis, plan.widths), plan.channels)
    resizer = Resizer(keep)
    with torch.random.fork_rng(devices=[]):
        work = build(graph, keep, resizer)
    _take_tensors(work, small, set(resizer.fresh))
    place, dtype = place_and_dtype(graph)
    place = place if device is None else device
    return Pair(fast_copy(graph, place, dtype, fold=False), work.to(place), keep, plan, tuple(resizer.fresh))


def graph_of(model: nn.Module, plan: Plan) -> GraphModule:
    """A model as a graph: itself, or the trace of a copy in eval mode."""
    if isinstance(model, GraphModule):
        return model
    copy = copied(model).eval()
    shapes = tuple((max(2, shape[0]), *shape[1:]) for shape in plan.input_shapes)
    return trace(copy, example_inputs(copy, plan) if shapes else None, leaves=plan.leaves)


def _take_tensors(work: GraphModule, small: nn.Module, fresh: set[str]) -> None:
    """Give a graph the tensors of the small network, by name; they must be what it inherited."""
    own, given = work.state_dict(), small.state_dict()
    reconstructed = isinstance(getattr(small, "meta", {}).get(MADE), Reconstruction)
    for name, tensor in own.items():
        value = given.get(name)
        if value is None:
            continue
        if value.shape != tensor.shape:
            raise MBSError(
                f"{name} has shape {tuple(value.shape)} in the small network, its plan makes {tuple(tensor.shape)} of "
                "this original: it was not made of it, or was changed since"
            )
        inherited = reconstructed or name.rpartition(".")[0] in fresh or _same(value, tensor)
        if not inherited:
            raise MBSError(
                f"{name} of the small network is not what it inherits from this original: one of them was trained or "
                "changed since, or the small one has fresh weights; reconstruct first, and retrain then"
            )
        tensor.copy_(value)


def _same(value: Tensor, tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    precision = max(torch.finfo(value.dtype).eps, torch.finfo(tensor.dtype).eps)
    wide = tensor.double().cpu()
    return bool((value.double().cpu() - wide).abs().max() <= 4 * precision * wide.abs().max()) if wide.numel() else True


def result(small: nn.Module, work: GraphModule, report: Reconstruction) -> Any:
    """A copy of the small network with the tensors of a graph."""
    made: Any = copied(small)
    held = made.state_dict()
    for name, tensor in work.state_dict().items():
        if name in held:
            held[name].copy_(tensor)
    made.meta = CarriedMeta({**getattr(small, "meta", {}), MADE: report})
    return made
