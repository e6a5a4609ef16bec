"""Down to a budget in steps, with training after each: how one gets below β = 0.5.

Semantics
- Every step is `mbs_fx.reduce` on what the training before it gave; the plan stays one of the original.
- Step k of n may cost c · (b / c)^(k / n), with c the cost of the network given and b its budget: every step asks for
  the same share, so that the first fails where the others would.
- Without a budget every step is a reduction of its own, by ``z`` or by what else is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

from mbs_fx.density.pixels import first_item, prepared
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import analyze
from mbs_fx.planning.budgets import Amount, Budgets
from mbs_fx.planning.plan import plan
from mbs_fx.reducing import peek, reduce, takes_whole_numbers, traced
from mbs_fx.results.steps import Step, Steps
from mbs_fx.rewriting.carried_plan import plan_of
from mbs_fx.rewriting.latency import latency_of
from mbs_fx.rewriting.weights import fill, unwrapped

Model = TypeVar("Model", bound=nn.Module)

STEPS = "mbs_steps"
"""The key in ``meta`` where a network carries the report of its steps."""

OF_ONE_NETWORK = {"density": "every step measures anew", "betas": "they would multiply; give a budget, or widths"}
"""Arguments of `reduce` that cannot be the same in every step, and what to do."""


def reduce_in_steps(
    model: Model,
    images: Any = None,
    train: Callable[[Any], object] | None = None,
    *,
    steps: int = 3,
    max_params: Amount = None,
    max_flops: Amount = None,
    max_bytes: Amount = None,
    max_latency_ms: Amount = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    **reducing: Any,
) -> Model:
    """Reduce and train in turns until a budget is met.

    Args:
        model: as for `reduce`; not changed.
        images: as for `reduce`, and such as can be read once a step.
        train: called with the small network after every step; trains it in place, or returns a trained network with
            the same layers (an averaged copy, one wrapped by DDP).  It is also the place to save it.
        steps: how many.
        max_params: what the last step may cost, as for `reduce`; shares are of ``model``.
        max_flops: see ``max_params``.
        max_bytes: see ``max_params``.
        max_latency_ms: see ``max_params``.
        evaluate: called on the model and on the networks of every step.
        reducing: further arguments of `reduce`, the same in every step.

    Returns:
        The last network, trained and in eval mode; ``meta["mbs_steps"]`` is the report of all steps, a `Steps`.

    Raises:
        MBSError: as `reduce`, with the number of the step; a ``train`` that gives back something else.

    """
    _check(images, train, steps, reducing)
    budgets = Budgets(max_params, max_flops, max_bytes, max_latency_ms)
    limits = _limits(model, images, budgets, steps, reducing) if budgets.given else [{}] * steps
    made: list[Step] = []
    small: Any = model
    start = None
    for number, limit in enumerate(limits, 1):
        try:
            small = reduce(small, images, evaluate=evaluate, **limit, **reducing)
        except MBSError as error:
            raise MBSError(f"step {number} of {steps}: {error}") from error
        accuracy = dict(plan_of(small).accuracy)
        before = accuracy.pop(next(iter(accuracy))) if accuracy else None
        if made and before is not None:
            made[-1] = Step(made[-1].plan, {**made[-1].accuracy, "trained": before})
        start = before if number == 1 else start
        made.append(Step(plan_of(small), accuracy))
        _train(train, small, number)
    if evaluate is not None:
        made[-1] = Step(made[-1].plan, {**made[-1].accuracy, "trained": float(evaluate(small))})
    small.meta[STEPS] = Steps(tuple(made), start)
    return small


def _check(images: Any, train: object, steps: int, reducing: dict[str, Any]) -> None:
    if not callable(train):
        raise MBSError(
            "reduce_in_steps: train is called with the small network after every step: give a function, for "
            "example lambda small: mbs_fx.retrain(small, data)"
        )
    if not isinstance(steps, int) or steps < 1:
        raise MBSError(f"reduce_in_steps: steps = {steps!r}: give a whole number, 1 or more")
    if isinstance(images, Iterator):
        raise MBSError(
            "reduce_in_steps: the images can be read only once, and every step reads them: give a data set, a "
            "loader, or a list of batches"
        )
    for name, why in OF_ONE_NETWORK.items():
        if reducing.get(name) is not None:
            raise MBSError(f"reduce_in_steps: leave out {name}: {why}")


def _limits(
    model: nn.Module, images: Any, budgets: Budgets, steps: int, reducing: dict[str, Any]
) -> list[dict[str, float]]:
    """What every step may cost, as arguments of `reduce`."""
    example = reducing.get("example")
    if images is not None and example is None:
        pixels = prepared(images, reducing.get("preparation"), first_item(images), takes_whole_numbers(model))
        _, example = peek(pixels, model)
    gm = traced(model, example)
    analysis = analyze(gm, example, opaque=reducing.get("opaque", ()), outputs=reducing.get("outputs"))
    whole = plan(analysis, betas={})
    before: dict[str, float] = {"params": whole.params[0], "flops": whole.flops[0], "bytes": whole.model_bytes[0]}
    asked = {"params": budgets.params, "flops": budgets.flops, "bytes": budgets.model_bytes}
    if budgets.latency_ms is not None:
        before["latency_ms"] = latency_of(gm, device=reducing.get("device"))(whole)
        asked["latency_ms"] = budgets.latency_ms
    limits: list[dict[str, float]] = [{} for _ in range(steps)]
    for cost, amount in asked.items():
        if amount is None:
            continue
        last = budgets.limit("model_bytes" if cost == "bytes" else cost, before[cost])
        for number, limit in enumerate(limits, 1):
            limit[f"max_{cost}"] = before[cost] * (last / before[cost]) ** (number / steps)
    return limits


def _train(train: Any, small: nn.Module, number: int) -> None:
    """Train a network; it takes the tensors of the one that ``train`` gives back, if any, and ends in eval mode."""
    given = train(small)
    if isinstance(given, nn.Module):
        state = unwrapped(given).state_dict()
        wanted = small.state_dict()
        other = [name for name, tensor in wanted.items() if name not in state or state[name].shape != tensor.shape]
        if other:
            raise MBSError(
                f"step {number}: {other[0]} of the network that train gave back is missing or has another shape: give "
                "back the trained network with the layers that it had, or nothing"
            )
        fill(small, state)
    small.eval()
