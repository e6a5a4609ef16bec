"""A small network on disk: the plan as JSON, the weights as safetensors, nothing pickled.

The original code, the plan and the weights give the network again in another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from mbs_fx.errors import MBSError
from mbs_fx.results.files import write_atomically
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.modules import example_inputs
from mbs_fx.rewriting.rewrite import rewrite
from mbs_fx.tracing.trace import trace

Model = TypeVar("Model", bound=nn.Module)


def plan_of(small: nn.Module) -> Plan:
    """The plan that a reduced network was made by."""
    held: Any = getattr(small, "meta", {}).get("mbs")
    if not isinstance(held, Plan):
        raise MBSError(f"{type(small).__name__} carries no plan: it was not made by mbs_fx.rewrite or mbs_fx.reduce")
    return held


def save(small: nn.Module, plan: str | Path, weights: str | Path) -> None:
    """Write the plan (JSON) and the weights (safetensors) of a reduced network, each as a whole or not at all."""
    from safetensors.torch import save_file

    text = plan_of(small).to_json()
    state = _distinct(small.state_dict())
    write_atomically(weights, lambda path: save_file(state, path))
    write_atomically(plan, lambda path: path.write_text(text))


def _distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory under several names are written once each."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def load(model: nn.Module, plan: Plan | str | Path, weights: str | Path | Mapping[str, Tensor] | None = None) -> Any:
    """The small network again: from the original code, its plan and its weights.

    A module is traced in eval mode, whatever its own mode is, as it was when its densities were measured; in its own
    mode only where the plan has convolutions that it uses nowhere else (auxiliary heads).

    Args:
        model: the original network as its code builds it (its weights do not matter), or its graph.
        plan: a `Plan`, its JSON, or the file that `save` wrote.
        weights: a safetensors file, a ``torch.save`` of a state dict (read with ``weights_only``), or a state
            dict; None leaves the weights sliced from ``model``.

    Returns:
        The reduced `GraphModule`, in the mode of ``model``.

    Raises:
        MBSError: the plan does not fit the model, or the weights do not fit the plan.

    """
    held = plan if isinstance(plan, Plan) else Plan.from_json(plan)
    gm = model if isinstance(model, GraphModule) else _traced(model, held)
    small = rewrite(gm, held)
    if weights is not None:
        state = weights if isinstance(weights, Mapping) else _read(Path(weights))
        _fill(small, state)
    return small


def _traced(model: nn.Module, plan: Plan) -> GraphModule:
    """The graph that a plan was made for; the modes of the model's modules stay as they are."""
    example = example_inputs(model, plan)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        gm = trace(model, example, leaves=plan.leaves)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if model.training and not set(plan.before) <= _used(gm):
        return trace(model, example, leaves=plan.leaves)
    gm.training = model.training
    return gm


def _used(gm: GraphModule) -> set[str]:
    """Paths of the modules that a graph calls, and of those whose tensors it reads."""
    targets = [(node.op, str(node.target)) for node in gm.graph.nodes]
    return {target.rpartition(".")[0] if op == "get_attr" else target for op, target in targets}


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise a dozen kinds for a file that is not theirs
        raise MBSError(f"{path}: cannot read the weights: {error}") from error
    if not isinstance(state, Mapping):
        raise MBSError(f"{path}: not a state dict but a {type(state).__name__}")
    return state


def _fill(small: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = small.state_dict()
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            raise MBSError(
                f"{name}: the file has shape {tuple(state[name].shape)}, the plan gives {tuple(tensor.shape)}"
            )
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise MBSError(
            f"the weights have no tensor {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )
    small.load_state_dict(state, strict=False)
