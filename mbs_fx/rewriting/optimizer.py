"""What training keeps beside the weights, sliced by the same plan: optimiser state, averaged copies.

An averaged (EMA) copy of the network is a network: ``rewrite(copy, mbs_fx.plan_of(small))`` keeps the same channels,
since the plan of a reduced network records them.  An optimiser's state follows its parameters.

Semantics
- An entry of a parameter's shape (momentum, second moments) is sliced like the parameter.
- An entry that has one element on some axes and the parameter's size on the others (Adafactor's row and column
  statistics of `torch.optim`) is sliced on the others.
- Numbers and single elements are copied.  Where an opaque segment started fresh, or an entry has another shape, there
  is no slice to take: the parameter starts without state, and a warning names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from mbs_fx.channels.labels import Factor
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.rewriting.carried_plan import plan_in, plan_of
from mbs_fx.rewriting.modes import planned_graph
from mbs_fx.rewriting.repeated import relative
from mbs_fx.rewriting.selection import Keep, restore
from mbs_fx.shapes.graph_inputs import inputs_of


def carry_optimizer(optimizer: Optimizer, original: nn.Module, small: nn.Module) -> Optimizer:
    """The optimiser of a network, made over to the network that it was reduced to.

    Args:
        optimizer: over parameters of ``original``, in any groups.
        original: the module or the traced graph that was rewritten (a trace shares its parameters with the model).
        small: what `rewrite` made of it.

    Returns:
        A new optimiser of the same class, groups and options, with the state of every parameter at its new size.

    Warns:
        UserWarning: names the parameters that start without state.

    Raises:
        MBSError: a parameter that is not in the network, or ``small`` was not made by `rewrite`.

    """
    plan = relative(plan_in(original), plan_of(small))
    traced = isinstance(original, GraphModule)
    gm = original if traced else planned_graph(original, plan)
    shapes = plan.input_shapes if traced else inputs_of(gm, None).shapes
    found = facts(gm, shapes, plan.opaque, plan.input_types, plan.input_names, plan.outputs)
    keep = restore(found, from_widths(found.analysis, plan.widths), plan.channels)
    axes = {f"{p}.{n}": a for p, layer in found.flow.layers.items() for n, a in layer.tensors.items()}
    axes |= found.flow.parameters
    names = {id(p): name for name, p in original.named_parameters()}
    groups = [
        {**group, "params": [_partner(p, names, small) for p in group["params"]]} for group in optimizer.param_groups
    ]
    new = type(optimizer)(groups)  # type: ignore[call-arg]
    dropped: list[str] = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        name = names[id(parameter)]
        sliced = _state(optimizer.state.get(parameter, {}), parameter, axes.get(name), keep)
        if sliced is None:
            dropped.append(name)
        elif sliced:
            new.state[small.get_parameter(name)] = sliced
    if dropped:
        more = f" and {len(dropped) - 3} more" if dropped[3:] else ""
        warnings.warn(f"these start without optimiser state: {', '.join(dropped[:3])}{more}", stacklevel=2)
    return new


def _partner(parameter: Tensor, names: Mapping[int, str], small: nn.Module) -> Tensor:
    name = names.get(id(parameter))
    if name is None:
        raise MBSError(
            f"the optimiser holds a parameter of shape {tuple(parameter.shape)} that the network does not use; "
            "make it over the parameters of the network that was reduced"
        )
    return small.get_parameter(name)


def _state(
    state: Mapping[str, Any], parameter: Tensor, axes: tuple[Factor | None, ...] | None, keep: Keep
) -> dict[str, Any] | None:
    """A parameter's state at its new size; None where an entry has no slice to take."""
    result: dict[str, Any] = {}
    for key, value in state.items():
        result[key] = _sliced(value, parameter, axes, keep) if isinstance(value, Tensor) else value
        if result[key] is None and value is not None:
            return None
    return result


def _sliced(value: Tensor, parameter: Tensor, axes: tuple[Factor | None, ...] | None, keep: Keep) -> Tensor | None:
    """One entry of a parameter's state at its new size."""
    changed = [
        (axis, labels)
        for axis, labels in enumerate(axes or ())
        if labels is not None and keep.extent(labels) != parameter.shape[axis]
    ]
    if value.numel() == 1 or not changed:
        return value.clone()
    if value.dim() != parameter.dim() or any(
        s not in (1, p) for s, p in zip(value.shape, parameter.shape, strict=True)
    ):
        return None
    for axis, labels in changed:
        if value.shape[axis] > 1:
            indices = keep.indices(labels)
            if indices is None:
                return None
            value = value.index_select(axis, torch.from_numpy(indices).to(value.device))
    return value.clone()
