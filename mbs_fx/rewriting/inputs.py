"""Random inputs of the shapes and types that a plan was made for."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from mbs_fx.results.plan import Plan
from mbs_fx.shapes.graph_inputs import packed
from mbs_fx.shapes.shapes import random_inputs
from mbs_fx.tracing.example import place_and_dtype


def example_inputs(model: nn.Module, plan: Plan) -> tuple[Any, ...] | dict[str, Any]:
    """Random inputs that a plan was made for; by name where ``forward`` cannot take all of them by position."""
    device, dtype = place_and_dtype(model)
    values = [value.to(device) for value in random_inputs(planned_shapes(plan), plan.input_types, dtype)]
    parameters = inspect.signature(model.forward).parameters.values()
    if plan.input_names:
        given = packed(plan.input_names, values)
        by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        first = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        in_order = list(given) == first[: len(given)] or not by_name.issuperset(given)
        return tuple(given.values()) if in_order else given
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not named:
        return tuple(values)
    first = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return dict(zip([*first[: len(values) - len(named)], *named], values, strict=True))


def planned_shapes(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """The inputs that a plan was made for, at least two images each."""
    return tuple((max(2, shape[0]), *shape[1:]) for shape in plan.input_shapes)
