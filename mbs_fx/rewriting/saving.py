"""A small network on disk: the plan as JSON, the weights as safetensors, nothing pickled.

The original code, the plan and the weights give the network again in another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.fx import GraphModule

from mbs_fx.errors import MBSError
from mbs_fx.results.files import write_atomically
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.carried_plan import carry_accuracy, carry_plan, plan_of
from mbs_fx.rewriting.modes import planned_graph
from mbs_fx.rewriting.rewrite import rewrite_traced
from mbs_fx.rewriting.weights import fill, read_weights, state_of, unwrapped
from mbs_fx.tracing.given_forward import whole

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS, REFITTED = "mbs_weights", "reconstructed"
"""What a file of weights says of them, and the word for reconstructed ones."""


def save(small: nn.Module, plan: str | Path, weights: str | Path) -> None:
    """Write the plan (JSON) and the weights (safetensors) of a reduced network, each as a whole or not at all.

    A wrapper around the network (torch.compile, DataParallel, AveragedModel) is no part of what is written.  Weights
    that were reconstructed say so in the file's metadata.
    """
    from safetensors.torch import save_file

    network = unwrapped(small)
    text = plan_of(network).to_json()
    state = _distinct(state_of(network.state_dict()))
    said = {WEIGHTS: REFITTED} if "mbs_reconstruction" in _meta_of(network) else None
    write_atomically(weights, lambda path: save_file(state, path, said))
    write_atomically(plan, lambda path: path.write_text(text))


def _meta_of(network: nn.Module) -> Mapping[str, Any]:
    held = getattr(network, "meta", {})
    return held if isinstance(held, Mapping) else {}


def is_refitted(weights: str | Path) -> bool:
    """Whether a file of weights says that they were reconstructed."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            return (file.metadata() or {}).get(WEIGHTS) == REFITTED
    except (SafetensorError, OSError):
        return False


def _distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory under several names are written once each."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def load(model: Model, plan: Plan | str | Path, weights: str | Path | Mapping[str, Any] | None = None) -> Model:
    """The small network again: from the original code, its plan and its weights.

    A module is traced in eval mode, whatever its own mode is, as it was when its densities were measured; in its own
    mode only where the plan has convolutions that it uses nowhere else (auxiliary heads).

    Args:
        model: the original network as its code builds it (its weights do not matter), or its graph.
        plan: a `Plan`, its JSON, or the file that `save` wrote.
        weights: a safetensors file, a ``torch.save`` of a state dict or of a checkpoint that holds one (read with
            ``weights_only``), or a state dict; None leaves the weights sliced from ``model``.

    Returns:
        The reduced network, of the model's own class and in its mode.

    Raises:
        MBSError: the plan does not fit the model, or the weights do not fit the plan.

    """
    held = plan if isinstance(plan, Plan) else Plan.from_json(plan)
    gm = None if isinstance(model, GraphModule) else planned_graph(model, held)
    small = rewrite_traced(model, gm, held, "inherit", "l1")
    if weights is not None:
        state = state_of(weights) if isinstance(weights, Mapping) else read_weights(weights)
        _fill(small, gm, state)
        carry_accuracy(small, held.accuracy)
    return whole(small)


def _fill(small: nn.Module, gm: GraphModule | None, state: Mapping[str, Tensor]) -> None:
    """Put weights into a network; those of a graph may lack what only the other mode of the module uses."""
    own = small.state_dict()
    for name, tensor in own.items():
        if name in state and state[name].shape != tensor.shape:
            raise MBSError(
                f"{name}: the file has shape {tuple(state[name].shape)}, the plan gives {tuple(tensor.shape)}"
            )
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    used = own if gm is None else gm.state_dict()
    needed = [name for name in missing if name in used]
    if needed:
        raise MBSError(
            f"the weights have no tensor {needed[0]}" + (f" and {len(needed) - 1} more" if needed[1:] else "")
        )
    fill(small, state)
    if missing:
        made = plan_of(small)
        note = f"the weights had no {missing[0]} and {len(missing) - 1} more, which only the other mode uses"
        carry_plan(small, small, replace(made, notes=(*made.notes, note)))
