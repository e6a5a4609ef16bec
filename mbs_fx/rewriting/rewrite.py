"""The rewrite pass: a new network with the planned widths, trainable, the original untouched.

Semantics
- Widths change, topology does not.  The same plan fits a traced graph and the original module.
- `mbs_fx.rewriting.graphs` rebuilds a graph, `mbs_fx.rewriting.modules` a copy of the original module.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import nn
from torch.fx import GraphModule

from mbs_fx.errors import MBSError
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.carried_plan import carry_plan, plan_in
from mbs_fx.rewriting.graphs import check_runs, rewrite_graph
from mbs_fx.rewriting.modules import rewrite_module
from mbs_fx.rewriting.repeated import compose, recounted, relative
from mbs_fx.rewriting.resizing import Init, initialise
from mbs_fx.rewriting.selection import BY_IMAGES, BY_WEIGHTS, Criterion
from mbs_fx.tracing.given_forward import whole

Model = TypeVar("Model", bound=nn.Module)


def rewrite(
    model: Model,
    plan: Plan,
    *,
    init: Init = "inherit",
    criterion: Criterion = "l1",
) -> Model:
    """A new model of the same kind, a `GraphModule` or an ``nn.Module``, with the planned widths.

    Args:
        model: the traced graph or the original module; not changed.
        plan: for this network.  Where it records kept channels (``plan.channels``), those are kept.  A network that
            was reduced before takes a plan made on it, or one of its original.
        init: "inherit" slices the weights, "fresh" initialises every layer anew, a callable is applied to
            every module of the small network.
        criterion: which channels stay; see `mbs_fx.rewriting.selection.select`.

    Returns:
        The small network, of the model's own class; ``meta["mbs"]`` holds the plan with the kept channels filled in,
        always as a plan of the original (`mbs_fx.rewriting.repeated`).

    Raises:
        MBSError: the plan does not fit the model (the first difference is named), or the result would not run.

    """
    return whole(rewrite_traced(model, None, plan, init, criterion))


def rewrite_traced(model: Model, traced: GraphModule | None, plan: Plan, init: Init, criterion: Criterion) -> Model:
    """As `rewrite`; ``traced`` is the graph of a module that the plan was made for, where it is at hand."""
    check_words(init, criterion)
    if criterion in BY_IMAGES:
        raise MBSError(
            f"criterion {criterion!r} needs images: mbs_fx.choose_channels(model, plan, images, criterion="
            f"{criterion!r}) gives a plan that keeps those channels"
        )
    if not isinstance(plan, Plan):
        raise MBSError(f"the plan is a {type(plan).__name__}: mbs_fx.plan makes one, mbs_fx.Plan.from_json reads one")
    if not isinstance(model, nn.Module):
        raise MBSError(f"the model is a {type(model).__name__}: give a traced graph, or the original nn.Module")
    earlier = plan_in(model)
    plan = relative(earlier, plan)
    notes: tuple[str, ...] = ()
    if isinstance(model, GraphModule):
        small, keep, resizer = rewrite_graph(model, plan, criterion)
        check_runs(keep.facts, small)
    else:
        small, keep, resizer, notes = rewrite_module(model, plan, criterion, traced)
    initialise(small, init)
    analysis = keep.facts.analysis
    made = recounted(analysis, plan, keep.counts)
    notes = (*resizer.notes, *notes)
    if resizer.fresh and init == "inherit":
        notes = (f"initialised fresh inside opaque segments: {', '.join(resizer.fresh)}", *notes)
    made = replace(made, channels=keep.channels(), notes=tuple(dict.fromkeys((*made.notes, *notes))), accuracy={})
    carry_plan(small, model, compose(earlier, made, analysis))
    return small  # type: ignore[return-value]


def check_words(init: Init, criterion: Criterion) -> None:
    """Raise `MBSError` for an unknown ``init`` or ``criterion``, before anything is measured."""
    if init not in ("inherit", "fresh") and not callable(init):
        raise MBSError(f"init {init!r}: choose 'inherit' or 'fresh', or pass a callable on modules")
    words = (*BY_WEIGHTS, *BY_IMAGES)
    if criterion not in words and not callable(criterion):
        raise MBSError(f"criterion {criterion!r}: choose {', '.join(words)}, or pass a callable")
