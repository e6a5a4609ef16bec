"""`mbs_fx.trace`: from a module to a torch.fx graph that computes the same.

Semantics
- Two strategies, in this order: *symbolic* (torch.fx's own, shapes unknown) and, where an example is given,
  *concrete* (``forward`` runs on shapes without numbers, so everything that shapes decide is decided). The
  first graph that agrees with the model on the example is returned.
- What decides by values or is not Python becomes a leaf automatically when nothing else works.
- The graph holds for the mode that the model is in.
- Modules, parameters and buffers are shared with the model by reference, as torch.fx does it.  The model
  itself (modes, statistics, attributes) is not changed, nor is the random state.  Hooks of the model fire
  on copies of it.
- A GraphModule is returned as it is.
- Traced with an example, the graph knows the shapes of its inputs, and later calls need none.

``gm.meta`` then holds
- ``"mbs_tracing"``: the strategy that worked;
- ``"mbs_leaves"``: path of every automatic leaf, with the reason;
- ``"mbs_notes"``: what the graph does not show (another result in the other mode, a fixed batch size, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from mbs_fx.errors import MBSError
from mbs_fx.shapes.graph_inputs import carry_inputs
from mbs_fx.tracing.check import RunError, copied, disagreement, outputs
from mbs_fx.tracing.concrete import trace_concretely
from mbs_fx.tracing.example import Example, arguments, example_of
from mbs_fx.tracing.leaves import Failure, Leaves, UntraceableError, leaves_of
from mbs_fx.tracing.symbolic import trace_symbolically

Strategy = Callable[[nn.Module], fx.GraphModule]
WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def trace(model: nn.Module, example: Any = None, *, leaves: Iterable[str | type[nn.Module]] = ()) -> fx.GraphModule:
    """Trace ``model`` into a GraphModule that shares its parameters.

    ``example`` is an input tensor, its shape (a tuple of ints), a tuple of tensors for several inputs, or a
    dict of keyword inputs; with it the trace is checked numerically against the model and may use concrete
    shapes.
    ``leaves`` are module paths or classes to keep as single nodes.
    """
    if isinstance(model, fx.GraphModule) and not calls_graphs(model):
        return model
    _require_traceable(model)
    chosen = leaves_of(model, leaves)
    inputs = example_of(model, example)
    expected = None if inputs is None else _expected(model, inputs)
    wrong: dict[str, str] = {}
    for name, strategy in _strategies(model, inputs, chosen):
        try:
            gm = strategy(model)
        except UntraceableError as stop:
            wrong.setdefault(_where(model, stop.failure), name)
            continue
        difference = "" if inputs is None else _difference(expected, gm, inputs)
        if difference:
            wrong[f"the graph does not compute what the model computes, {difference}"] = name
            continue
        gm.meta["mbs_tracing"] = name
        if inputs is not None:
            gm.meta["mbs_notes"] += _notes(model, gm, inputs, strategy)
            carry_inputs(gm, [argument.value for argument in arguments(model, inputs)])
        return gm
    raise MBSError(_untraceable(model, wrong, inputs))


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
    if any(nn.parameter.is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise MBSError(f"{name} has lazy layers, whose shapes are not known yet; run it once on an input first")


def _expected(model: nn.Module, inputs: Example) -> Any:
    arguments(model, inputs)
    try:
        return outputs(model, inputs)
    except RunError as error:
        raise MBSError(
            f"{type(model).__name__} itself fails on the example: {error}; check the example's shape, dtype and device"
        ) from error


def _strategies(model: nn.Module, inputs: Example | None, leaves: Leaves) -> Iterator[tuple[str, Strategy]]:
    given = arguments(model, inputs)

    def symbolic(model: nn.Module) -> fx.GraphModule:
        return trace_symbolically(model, given, leaves)

    def whole(model: nn.Module) -> fx.GraphModule:
        attempt = partial(trace_symbolically, model, given, registries=True)
        return _with_automatic_leaves(attempt, model, leaves)

    yield "symbolic", symbolic
    if inputs is not None:
        yield "concrete", partial(_concrete, inputs, leaves)
    yield "symbolic with automatic leaves", whole


def _concrete(inputs: Example, leaves: Leaves, model: nn.Module) -> fx.GraphModule:
    return _with_automatic_leaves(partial(trace_concretely, model, inputs), model, leaves)


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


def _difference(expected: Any, gm: fx.GraphModule, inputs: Example, training: bool | None = None) -> str:
    try:
        return disagreement(expected, outputs(gm, inputs, training))
    except RunError as error:
        return f"it fails: {error}"


def _notes(model: nn.Module, gm: fx.GraphModule, inputs: Example, strategy: Strategy) -> tuple[str, ...]:
    fixed = [argument for argument in arguments(model, inputs) if argument.is_constant]
    notes = tuple(f"the input {argument.name} is fixed to {argument.value!r}" for argument in fixed)
    return notes + _notes_on_mode(model, gm, inputs, strategy)


def _notes_on_mode(model: nn.Module, gm: fx.GraphModule, inputs: Example, strategy: Strategy) -> tuple[str, ...]:
    """Whether the graph computes what the model computes in the mode that was not traced, and if not, why."""
    training = not model.training
    mode = "training" if training else "evaluation"
    try:
        expected = outputs(model, inputs, training)
    except RunError as error:
        return (f"{mode} mode could not be checked, the model itself fails in it on the example: {error}",)
    difference = _difference(expected, gm, inputs, training)
    if not difference:
        return ()
    try:
        cause = _difference(expected, strategy(copied(model).train(training)), inputs, training)
    except UntraceableError as stop:
        cause = _where(model, stop.failure)
    note = f"the graph is not the model in {mode} mode: {difference}"
    if cause:
        return (f"{note}; a graph traced in {mode} mode is not either: {cause}",)
    return (f"{note}; tracing fixed the mode, and a graph traced in {mode} mode agrees",)


def _where(model: nn.Module, failure: Failure) -> str:
    kind = type(model.get_submodule(failure.path)).__name__
    place = f"module {failure.path!r} ({kind})" if failure.path else f"the forward of {kind}"
    return f"{place}: {failure.reason}"


def _untraceable(model: nn.Module, wrong: dict[str, str], inputs: Example | None) -> str:
    advice = [
        'keep the module in question whole with leaves=["its.path"]',
        "trace the part of the model before it",
        "or move what decides by values out of the model's own forward into a submodule",
    ]
    if inputs is None:
        advice.insert(0, "pass an example input, so that shapes are known while tracing")
    reasons = "\n".join(f"- {name}: {reason}" for reason, name in wrong.items())
    return f"{type(model).__name__} cannot be traced.\n{reasons}\nWhat to do: {', '.join(advice)}."
