"""What training keeps beside the weights, sliced by the same plan: optimiser state, averaged copies.

An averaged (EMA) copy of the network is a network: ``rewrite(copy, small.meta["mbs"])`` keeps the same channels,
since the plan of a reduced network records them.  An optimiser's state follows its parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.optim import Optimizer

from mbs_fx.channels.labels import Factor
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.repeated import plan_in, relative
from mbs_fx.rewriting.selection import Keep, restore


def carry_optimizer(optimizer: Optimizer, gm: GraphModule, small: GraphModule) -> Optimizer:
    """The optimiser of a graph, made over to the network that it was reduced to.

    Args:
        optimizer: over parameters of ``gm``, in any groups.
        gm: the traced graph that was rewritten (a trace shares its parameters with the model).
        small: what `rewrite` made of it.

    Returns:
        A new optimiser of the same class, groups and options.  State that has a parameter's shape (momentum,
        second moments) is sliced like the parameter, everything else is copied; where an opaque segment started
        fresh there is none.

    Raises:
        MBSError: a parameter that is not in the graph, or ``small`` was not made by `rewrite`.

    """
    plan: Any = small.meta.get("mbs")
    if not isinstance(plan, Plan):
        raise MBSError("carry_optimizer: the small network carries no plan; it was not made by mbs_fx.rewrite")
    plan = relative(plan_in(gm), plan)
    found = facts(gm, plan.input_shapes, plan.opaque, plan.input_types, plan.input_names)
    keep = restore(found, from_widths(found.analysis, plan.widths), plan.channels)
    axes = {f"{p}.{n}": a for p, layer in found.flow.layers.items() for n, a in layer.tensors.items()}
    axes |= found.flow.parameters
    names = {id(p): name for name, p in gm.named_parameters()}
    groups = [
        {**group, "params": [_partner(p, names, small) for p in group["params"]]} for group in optimizer.param_groups
    ]
    new = type(optimizer)(groups)  # type: ignore[call-arg]
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            partner = small.get_parameter(name)
            state = optimizer.state.get(parameter, {})
            sliced = {key: _sliced(v, parameter, axes.get(name), keep) for key, v in state.items()}
            if all(v is not None for v in sliced.values()):
                new.state[partner] = sliced
    return new


def _partner(parameter: Tensor, names: dict[int, str], small: GraphModule) -> Tensor:
    name = names.get(id(parameter))
    if name is None:
        raise MBSError(
            f"the optimiser holds a parameter of shape {tuple(parameter.shape)} that the graph does not use; "
            "make it over the parameters of the traced graph"
        )
    return small.get_parameter(name)


def _sliced(value: Any, parameter: Tensor, axes: tuple[Factor | None, ...] | None, keep: Keep) -> Any:
    """One entry of a parameter's state at its new size; None where there is no slice to take."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape or axes is None:
        return value.clone()
    for axis, labels in enumerate(axes):
        if labels is not None:
            indices = keep.indices(labels)
            if indices is None:
                return None
            value = value.index_select(axis, torch.from_numpy(indices).to(value.device))
    return value.clone()
