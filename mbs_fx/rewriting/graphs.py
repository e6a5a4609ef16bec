"""A graph at its planned widths.

- The graph is copied, its layers are copied at their new widths, and constants that count channels are
  recounted.
- The result runs once on fake tensors before it is returned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule

from mbs_fx.channels.kept_outputs import kept_values
from mbs_fx.channels.labels import Factor
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import Facts, facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.graph_constants import apply_edits, counted_constants
from mbs_fx.rewriting.resizing import Resizer
from mbs_fx.rewriting.selection import Criterion, Keep, restore, select
from mbs_fx.runtime.garbage_collection import collector_paused
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.shapes.graph_inputs import arguments_of
from mbs_fx.shapes.shapes import infer, typed

_ADVICE = (
    "Something in the graph counts channels in a way that was not understood: keep the widths that enter it "
    "(keep= of mbs_fx.plan), or register a rule for it (docs/rules.md)"
)
_STALE = ("tensor_meta", "val", "example_value", "type")


def decide(found: Facts, plan: Plan, criterion: Criterion) -> Keep:
    """Which channels of a graph stay under a plan."""
    check_fits(found.analysis, plan)
    counts = from_widths(found.analysis, plan.widths)
    if plan.channels:
        return restore(found, counts, plan.channels)
    return select(found, counts, criterion)


def check_fits(analysis: Analysis, plan: Plan) -> None:
    """Raise `MBSError` naming the first difference between a plan and a network."""
    present = {conv.target: conv.width for conv in analysis.convs}
    for path, width in plan.before.items():
        if path not in present:
            whole = next((leaf for leaf in analysis.leaves if path.startswith(f"{leaf}.")), None)
            where = "this network does not have" if whole is None else f"this trace kept inside of the one node {whole}"
            raise MBSError(f"the plan does not fit: it names the convolution {path}, which {where}")
        if present[path] != width:
            raise MBSError(f"the plan does not fit: {path} has width {present[path]}, the plan was made for {width}")
    for path, width in plan.widths.items():
        if not isinstance(width, int) or not 1 <= width <= plan.before.get(path, 0):
            raise MBSError(f"{path}: a width of {width} is not between 1 and {plan.before.get(path, 0)}")
    missing = next((path for path in present if path not in plan.before or path not in plan.widths), None)
    if missing is not None:
        raise MBSError(f"the plan does not fit: it has no width for the convolution {missing}")


@collector_paused()
def rewrite_graph(gm: GraphModule, plan: Plan, criterion: Criterion) -> tuple[GraphModule, Keep, Resizer]:
    """The graph at the planned widths, which channels stayed, and what was done to its layers."""
    found = facts(gm, plan.input_shapes, plan.opaque, plan.input_types, plan.input_names, plan.outputs)
    keep = decide(found, plan, criterion)
    resizer = Resizer(keep)
    return build(gm, keep, resizer), keep, resizer


def build(gm: GraphModule, keep: Keep, resizer: Resizer) -> GraphModule:
    """A graph module with copied, resized layers and constants counted anew."""
    flow = keep.facts.flow
    graph = copy.deepcopy(gm.graph)
    root: dict[str, Any] = {}
    for node in graph.nodes:
        for key in _STALE:
            node.meta.pop(key, None)
        if node.op == "call_module" and node.target not in root:
            root[node.target] = resizer.module(node.target, flow.modules[node.target], flow.layers.get(node.target))
        elif node.op == "get_attr" and node.target not in root:
            held = attribute(gm, node.target)
            axes = flow.parameters.get(node.target)
            root[node.target] = _own(resizer, held, axes)
    for path, value in counted_constants(gm, keep).items():
        owner, _, name = path.rpartition(".")
        if path in root:
            root[path] = value
        else:
            setattr(root[owner], name, value)
    apply_edits({node.name: node for node in graph.nodes}, keep)
    small = GraphModule(root, graph, type(gm).__name__)
    _leave_unsaved(gm, small, root)
    for path, module in small.named_modules():
        if path not in root:
            module.training = gm.training
    return small


def _leave_unsaved(gm: GraphModule, small: GraphModule, targets: Iterable[str]) -> None:
    """Buffers that the original does not save are not saved."""
    for target in targets:
        owner, _, name = target.rpartition(".")
        if name in gm.get_submodule(owner)._non_persistent_buffers_set:
            small.get_submodule(owner)._non_persistent_buffers_set.add(name)


def _own(resizer: Resizer, held: Any, axes: tuple[Factor | None, ...] | None) -> Any:
    """What a graph reads, as the copy's own."""
    if isinstance(held, torch.Tensor):
        return resizer.tensor(held, axes or (None,) * held.dim())
    return copy.deepcopy(held)


@collector_paused()
def check_runs(found: Facts, small: GraphModule) -> None:
    """Run the new graph on fake tensors: it must give outputs of the original's shapes."""
    seen = found.analysis
    try:
        entering = arguments_of(seen.input_names, typed(seen.input_shapes, seen.input_types))
        after = infer(small, entering, _ADVICE)
    except MBSError as error:
        raise MBSError(f"the reduced graph does not run: {error}") from error
    name = next(node.name for node in small.graph.nodes if node.op == "output")
    before, now = (kept_values(shapes, seen.outputs) for shapes in (found.flow.shapes[name], after[name]))
    if before != now:
        raise MBSError(f"the reduced graph gives outputs of shape {now}, the original {before}. {_ADVICE}.")
