"""The runs that a graph and its model are compared on.

Semantics
- A *trial* is one run: an example, a mode, perhaps changed parameters, perhaps a backward pass.  Model and graph run
  on copies, from the same seed; nothing that is given changes.
- Gradients are those of a fixed weighted sum of all outputs, with respect to every parameter and floating point input.
  They are compared at a sample of their elements.
- The graph runs its own code on a copy of the model, whose leaves have the mode that ``train`` would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import fx, nn

from mbs_fx.runtime.autocast import autocast_restored
from mbs_fx.runtime.torch_private import tree_leaves, tree_map_only
from mbs_fx.tracing.check import RunError, disagreement, seeded
from mbs_fx.tracing.copies import Copies, Twin
from mbs_fx.tracing.example import Example, place_and_dtype

SAMPLE = 1024
GRADIENT_TOLERANCE = 1e-3
NEGLIGIBLE_GRADIENT = 1e-5


@dataclass(frozen=True)
class Trial:
    """One run: ``training`` None keeps the modes of the model."""

    example: Example
    training: bool | None = None
    changed: bool = False
    gradients: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run returned, a sample of the gradients (None where it made none), and why it made none."""

    outputs: Any
    gradients: Mapping[str, torch.Tensor | None] | None = None
    reason: str = ""


def run_model(copies: Copies, trial: Trial) -> tuple[Outcome, Twin]:
    """A trial of a copy of the model, and the copy."""
    with copies.taken(trial.changed) as twin:
        if trial.training is not None:
            twin.module.train(trial.training)
        outcome = _run(twin.module, twin.module, trial)
    return outcome, twin


def run_graph(
    gm: fx.GraphModule, copies: Copies, trial: Trial, expected: Outcome, as_model: bool = False
) -> tuple[str, str]:
    """How outputs and how gradients of a graph differ from the model's, in words; both empty where they agree.

    The backward pass is run only where the outputs agree.  ``as_model`` sets modes by the model's own ``train``.
    """
    with copies.taken(trial.changed) as copy:
        twin = copy.module
        leaves = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
        tensors = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "get_attr")
        for name in (*leaves, *tensors):
            if "." not in name and not hasattr(twin, name):
                setattr(twin, name, getattr(gm, name))
        if trial.training is not None:
            for module in [twin] if as_model else map(twin.get_submodule, leaves):
                module.train(trial.training)
        return _compare(type(gm).forward, twin, trial, expected)


def _compare(forward: Callable[..., Any], twin: nn.Module, trial: Trial, expected: Outcome) -> tuple[str, str]:
    differs = ""

    def agrees(outputs: Any) -> bool:
        nonlocal differs
        with torch.no_grad():
            differs = disagreement(expected.outputs, outputs)
        return not differs and expected.gradients is not None

    actual = _run(lambda *args, **kwargs: forward(twin, *args, **kwargs), twin, trial, agrees)
    if differs or expected.gradients is None:
        return differs, ""
    if actual.gradients is None:
        return "", f"its backward pass fails: {actual.reason}"
    return "", _gradients_differ(expected.gradients, actual.gradients)


def _run(
    call: Callable[..., Any], twin: nn.Module, trial: Trial, goes_on: Callable[[Any], bool] = lambda outputs: True
) -> Outcome:
    """Run a copy forward and, where the trial asks for gradients and ``goes_on`` with its outputs, backward."""
    inputs = trial.example.clone()
    entering: list[torch.Tensor] = []

    def enter(tensor: torch.Tensor) -> torch.Tensor:
        if not (trial.gradients and tensor.is_floating_point()):
            return tensor
        entering.append(tensor.requires_grad_())
        return tensor.clone()

    device = place_and_dtype(twin)[0]
    with seeded(device), autocast_restored(device), torch.set_grad_enabled(trial.gradients):
        try:
            given = inputs.map(enter)
            outputs = call(*given.args, **given.kwargs)
        except Exception as error:
            raise RunError(f"{type(error).__name__}: {error}") from error
        if not goes_on(outputs) or not trial.gradients:
            return Outcome(_detached(outputs))
        try:
            _weighted_sum(outputs).backward()
        except Exception as error:  # noqa: BLE001 whatever a backward pass raises
            return Outcome(_detached(outputs), None, f"{type(error).__name__}: {error}")
    tensors = [(f"the parameter {name}", p) for name, p in twin.named_parameters()]
    tensors += [(f"the input {number}", tensor) for number, tensor in enumerate(entering)]
    return Outcome(_detached(outputs), {name: _sample(tensor) for name, tensor in tensors})


def _detached(outputs: Any) -> Any:
    return tree_map_only(torch.Tensor, torch.Tensor.detach, outputs)


def _weighted_sum(outputs: Any) -> torch.Tensor:
    total = torch.zeros((), requires_grad=True)
    for tensor in _tensors(outputs):
        if tensor.requires_grad:
            weights = torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device).cos()
            total = total + (tensor.flatten() * weights.to(tensor.dtype)).sum().real.float().to(total.device)
    return total


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, (type, Mapping)):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif not isinstance(value, (str, int, float, bool, type(None))):
        for leaf in tree_leaves(value):
            if leaf is not value:
                yield from _tensors(leaf)


def _sample(tensor: torch.Tensor) -> torch.Tensor | None:
    gradient, tensor.grad = tensor.grad, None
    if gradient is None:
        return None
    flat = gradient.to_dense().reshape(-1)
    return flat[:: -(-flat.numel() // SAMPLE)].clone() if flat.numel() > SAMPLE else flat


def _gradients_differ(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    differing = {name: mine for name, mine in expected.items() if not _same(mine, actual[name])}
    largest = _largest(expected.values()) if differing else 0.0
    for name, mine in differing.items():
        other = actual[name]
        # No gradient and one of zeros are the same.
        wide = [torch.zeros(1) if g is None else g.nan_to_num().double() for g in (mine, other)]
        error, own = float((wide[0] - wide[1]).abs().max()), float(wide[0].abs().max())
        precision = max(torch.finfo(g.dtype).eps for g in (mine, other) if g is not None)
        tolerance = max(GRADIENT_TOLERANCE, 1e2 * precision)
        if error > tolerance * own and error > NEGLIGIBLE_GRADIENT * largest:
            return f"the gradient of {name} differs by {error:.3g} where the model's reaches {own:.3g}"
    return ""


def _same(mine: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return mine is other if mine is None or other is None else torch.equal(mine, other)


def _largest(gradients: Iterable[torch.Tensor | None]) -> float:
    return max((float(g.nan_to_num().abs().max()) for g in gradients if g is not None and g.numel()), default=0.0)
