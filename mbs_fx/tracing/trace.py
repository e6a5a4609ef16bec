"""`mbs_fx.trace`: from a module to a torch.fx graph that computes the same.

Semantics
- Two strategies, in this order: *symbolic* (torch.fx's own, shapes unknown) and, where an example is given,
  *concrete* (``forward`` runs on shapes without numbers, so everything that shapes decide is decided). The
  first graph that is the model in every trial is returned (`mbs_fx.tracing.verify`): outputs on the example, with
  another batch, at another size, after all parameters were changed; gradients; the other mode.
- Gradient modes, autocast regions and custom autograd functions are in the graph (`mbs_fx.tracing.regions`,
  `mbs_fx.tracing.autograd`).  What a model keeps for its next call is computed in the graph
  (`mbs_fx.tracing.caches`), a type that follows the parameters follows them there (`mbs_fx.tracing.dtypes`).
- A size that the graph does not follow is noted, and the graph refuses others.
- What decides by values or is not Python becomes a leaf automatically when nothing else works; so does what gives
  tensors of which only values tell the size, where it is a module (`mbs_fx.tracing.value_sizes`).
- The graph holds for the mode that the model is in; where the other mode differs, a note says so.
- Modules, parameters and buffers are shared with the model by reference, as torch.fx does it.  The model
  itself (modes, statistics, attributes) is not changed, nor is the random state.  Hooks of the model fire
  on copies of it.
- A GraphModule is returned as it is.
- Traced with an example, the graph knows the shapes of its inputs, and later calls need none.

``gm.meta`` then holds
- ``"mbs_tracing"``: the strategy that worked;
- ``"mbs_leaves"``: path of every automatic leaf, with the reason;
- ``"mbs_notes"``: what the graph does not show (another result in the other mode, a fixed batch size, ...); they
  stand in `Analysis.notes` and `Plan.notes`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from mbs_fx.errors import MBSError
from mbs_fx.runtime.garbage_collection import collector_paused
from mbs_fx.shapes.graph_inputs import carry_inputs
from mbs_fx.tracing.caches import Caches
from mbs_fx.tracing.concrete import FIXED_BATCH, trace_concretely
from mbs_fx.tracing.dtypes import follow_types
from mbs_fx.tracing.example import Argument, Example, arguments, example_of
from mbs_fx.tracing.given_forward import not_run
from mbs_fx.tracing.guards import refuse_others
from mbs_fx.tracing.leaves import Failure, Leaves, UntraceableError, leaves_of
from mbs_fx.tracing.symbolic import trace_symbolically
from mbs_fx.tracing.value_sizes import sized_by_values
from mbs_fx.tracing.verify import Verdict, Verifier

WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}

Found = tuple[fx.GraphModule, Verdict, Callable[..., fx.GraphModule]]
"""A graph, what its trials showed, and the function that traced it."""

RESERVED = frozenset(name for name in vars(fx.GraphModule) if not name.startswith("__")) | {"meta", "training", "_code"}


@collector_paused()
def trace(
    model: nn.Module, example: Any = None, *, leaves: Iterable[str | type[nn.Module]] = (), verify: bool = True
) -> fx.GraphModule:
    """Trace ``model`` into a GraphModule that shares its parameters.

    Args:
        model: a module in the mode that the graph is for; a GraphModule is returned as it is.
        example: an input tensor, its shape (a tuple of ints), a tuple of tensors for several inputs, or a dict of
            keyword inputs.  With it the trace is verified against the model and may use concrete shapes.
        leaves: module paths or classes to keep as single nodes.
        verify: False leaves out all comparisons, for models that are known to trace.

    Raises:
        MBSError: the model fails on the example, or no graph is the model; the message says how each differs.

    """
    if isinstance(model, fx.GraphModule) and not calls_graphs(model):
        return model
    _require_traceable(model)
    chosen = leaves_of(model, leaves)
    inputs = example_of(model, example)
    given = arguments(model, inputs)
    wrong: dict[str, str] = {}
    with torch.inference_mode(False):
        verifier = Verifier(model, inputs) if verify and inputs is not None else None
        best: Found | None = None
        for name, strategy in _strategies(inputs):
            found = _attempt(partial(strategy, leaves=chosen), model, inputs, verifier, name, wrong)
            if found is None:
                continue
            found[0].meta["mbs_tracing"] = name
            if inputs is None or not sized_by_values(found[0], [argument.value for argument in given]):
                best = found
                break
            best = best or found
        if best is not None:
            return _noted(best, model, inputs, given, verifier)
    raise MBSError(_untraceable(model, wrong, inputs))


def _noted(
    found: Found, model: nn.Module, inputs: Example | None, given: Sequence[Argument], verifier: Verifier | None
) -> fx.GraphModule:
    """A graph with what it does not show in its notes, and the shapes of its inputs."""
    gm, verdict, retrace = found
    if verifier is not None and verifier.has_varied_batch:
        gm.meta["mbs_notes"] = tuple(n for n in gm.meta["mbs_notes"] if not n.startswith(FIXED_BATCH))
    gm.meta["mbs_notes"] += follow_types(gm, model, inputs, retrace)
    if inputs is not None:
        fixed = [argument for argument in given if argument.is_constant]
        gm.meta["mbs_notes"] += tuple(f"the input {a.name} is fixed to {a.value!r}" for a in fixed)
        carry_inputs(gm, [argument.value for argument in given])
        refuse_others(gm, verdict.fixed)
    left_out = not_run(model, {str(node.target) for node in gm.graph.nodes})
    gm.meta["mbs_notes"] = tuple(dict.fromkeys((*gm.meta["mbs_notes"], *verdict.notes, *left_out)))
    return gm


def _attempt(
    strategy: Callable[..., fx.GraphModule],
    model: nn.Module,
    inputs: Example | None,
    verifier: Verifier | None,
    name: str,
    wrong: dict[str, str],
) -> Found | None:
    """The graph of one strategy, with custom autograd functions kept or caches of another size where that helps."""
    functions, caches = verifier is None, () if verifier is None else verifier.caches
    held: Found | None = None
    while True:
        retrace = partial(strategy, functions=functions, caches=caches)
        try:
            gm = retrace(model, inputs)
        except UntraceableError as stop:
            if stop.followed and not functions:
                functions = True
                continue
            wrong.setdefault(_where(model, stop.failure), name)
            return held
        verdict = Verdict() if verifier is None else verifier.verdict(gm, retrace)
        if verdict.wrong and verdict.in_gradients and gm.meta["mbs_followed"] and not functions:
            functions = True
            continue
        if verdict.wrong:
            wrong.setdefault(verdict.wrong, name)
            return held
        if held is not None or not verdict.left_behind:
            return held if held is not None and verdict.fixed else (gm, verdict, retrace)
        held, caches = (gm, verdict, retrace), verdict.left_behind


def calls_graphs(gm: fx.GraphModule) -> bool:
    """Whether a graph calls other graphs, as after ``split_module``."""
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    return any(isinstance(gm.get_submodule(target), fx.GraphModule) for target in called)


def _require_traceable(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise MBSError(f"trace takes a torch.nn.Module, not a {type(model).__name__}")
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise MBSError(f"{name} is a TorchScript module, which cannot be traced; pass the Python module behind it")
    if name in WRAPPERS:
        raise MBSError(f"the model is wrapped in {name}; pass the model inside, model.{WRAPPERS[name]}")
    taken = next((child for child in model._modules if child in RESERVED), None)
    if taken is not None:
        raise MBSError(
            f"{name} has a submodule {taken!r}, a name that torch needs for itself: rename the submodule, or trace "
            f"the parts of {name} one by one"
        )
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise MBSError(f"{name} has lazy layers, whose shapes are not known yet; run it once on an input first")


def _strategies(inputs: Example | None) -> Iterator[tuple[str, Callable[..., fx.GraphModule]]]:
    yield "symbolic", _symbolic
    if inputs is not None:
        yield "concrete", _concrete
    yield "symbolic with automatic leaves", _symbolic_with_leaves


def _symbolic(
    model: nn.Module, inputs: Example | None, leaves: Leaves, functions: bool, caches: Caches, any_batch: bool = True
) -> fx.GraphModule:
    return trace_symbolically(model, arguments(model, inputs), replace(leaves, functions=functions), caches=caches)


def _concrete(
    model: nn.Module, inputs: Example, leaves: Leaves, functions: bool, caches: Caches, any_batch: bool = True
) -> fx.GraphModule:
    attempt = partial(trace_concretely, model, inputs, caches=caches, any_batch=any_batch)
    return _with_automatic_leaves(attempt, model, replace(leaves, functions=functions))


def _symbolic_with_leaves(
    model: nn.Module, inputs: Example | None, leaves: Leaves, functions: bool, caches: Caches, any_batch: bool = True
) -> fx.GraphModule:
    attempt = partial(trace_symbolically, model, arguments(model, inputs), registries=True, caches=caches)
    return _with_automatic_leaves(attempt, model, replace(leaves, functions=functions))


def _with_automatic_leaves(
    attempt: Callable[[Leaves], fx.GraphModule], model: nn.Module, leaves: Leaves
) -> fx.GraphModule:
    """Trace again and again, each time with the module that failed as one more leaf."""
    while True:
        try:
            return attempt(leaves)
        except UntraceableError as stop:
            if stop.failure.path in ("", *leaves.automatic):
                raise
            leaves = leaves.after(stop.failure, model)


def _where(model: nn.Module, failure: Failure) -> str:
    kind = type(model.get_submodule(failure.path)).__name__
    place = f"module {failure.path!r} ({kind})" if failure.path else f"the forward of {kind}"
    return f"{place}: {failure.reason}"


def _untraceable(model: nn.Module, wrong: dict[str, str], inputs: Example | None) -> str:
    advice = [
        'keep the module in question whole with leaves=["its.path"]',
        "run what is convolutional by a function of the model (mbs_fx.with_forward)",
        "or move what decides by values out of the model's own forward into a submodule",
    ]
    if inputs is None:
        advice.insert(0, "pass an example input, so that shapes are known while tracing")
    reasons = "\n".join(f"- {name}: {reason}" for reason, name in wrong.items())
    return f"{type(model).__name__} cannot be traced.\n{reasons}\nWhat to do: {', '.join(advice)}."
