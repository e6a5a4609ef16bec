"""Layers whose weight is computed from other tensors: which of them can be cut, and along which axes.

Semantics
- Parametrizations of `torch.nn.utils.parametrize` are followed where cutting the tensors behind a weight cuts the
  weight: weight normalisation, spectral normalisation, and what works on single elements.  The last is found out by
  trying: a part of the result is the result of the part.  So are the two normalisations where a hook does them.
- Weight normalisation (w = g v / |v|): g and v are cut along their axes.  Where the rest of v is zero, |v| is the same.
- Spectral normalisation: the weight and both of its singular vectors are cut.  The norm is that of what is left.
- Everything else (orthogonal weights, other hooks, weights inside children) keeps the widths around the layer, and
  says why.
- The weight itself is never read: spectral normalisation takes a power step when it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from mbs_fx.channels.labels import Factor
from mbs_fx.runtime.weight_hooks import SpectralNorm, weight_hooks

Axes = tuple[Factor | None, ...]
SPECTRAL = "divides its weight by its spectral norm, which changes with its channels"


def why_kept(module: nn.Module) -> str:
    """Why a layer's weight cannot be cut, empty where it can."""
    if is_parametrized(module):
        lists: Any = module.parametrizations
        return next((why for held in lists.values() if (why := _why_not_cut(held))), "")
    if any(True for child in module.children() for _ in child.parameters()):
        return "its weight is held by modules inside of it"
    if "weight" in module._parameters:
        return ""
    if "weight_mask" in module._buffers:
        return "its weight is masked by torch.nn.utils.prune: prune.remove makes the mask permanent"
    if _hooked(module):
        return ""
    hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
    if hooks:
        return f"its weight is computed by a hook ({', '.join(hooks)}): use torch.nn.utils.parametrizations"
    return "its weight is no parameter of its own"


def tensors_behind(module: nn.Module, axes: Mapping[str, Axes]) -> tuple[dict[str, Axes], tuple[str, ...]]:
    """Axes of the tensors behind computed ones, by path in the module, and what a person should know.

    ``axes`` are those of the module's tensors (``weight``, ``bias``) by name.
    """
    found: dict[str, Axes] = {}
    notes: list[str] = []
    lists: Any = module.parametrizations if is_parametrized(module) else {}
    for name, held in lists.items():
        kind, own = type(held[0]).__name__, axes[name]
        place = f"parametrizations.{name}"
        if kind == "_WeightNorm":
            found[f"{place}.original1"] = own
            sizes = held.original0.shape
            found[f"{place}.original0"] = tuple(a if s > 1 else None for a, s in zip(own, sizes, strict=False))
            continue
        found[f"{place}.original"] = own
        if kind == "_SpectralNorm":
            pair = _singular(held[0].dim, held.original.shape, own)
            found |= {f"{place}.0.{vector}": (labels,) for vector, labels in pair.items()}
            notes.append(SPECTRAL)
        elif not _keeps_zeros(held):
            notes.append("takes a weight that is computed")
    return found | _tensors_behind_hooks(module, axes, notes), tuple(notes)


def _hooked(module: nn.Module) -> bool:
    """Whether the hook of `torch.nn.utils` for the weight is the only one, and its tensors can be cut."""
    hooks, held = weight_hooks(module), module._parameters.get("weight_orig")
    alone = len(hooks) == len(module._forward_pre_hooks) == 1 and hooks[0].name == "weight"
    return alone and (held is None or held.dim() > 1)


def _tensors_behind_hooks(module: nn.Module, axes: Mapping[str, Axes], notes: list[str]) -> dict[str, Axes]:
    found: dict[str, Axes] = {}
    for hook in weight_hooks(module):
        own, name = axes[hook.name], hook.name
        if isinstance(hook, SpectralNorm):
            found[f"{name}_orig"] = own
            pair = _singular(hook.dim, getattr(module, f"{name}_orig").shape, own)
            found |= {f"{name}{vector}": (labels,) for vector, labels in pair.items()}
            notes.append(SPECTRAL)
        else:
            sizes = getattr(module, f"{name}_g").shape
            found[f"{name}_v"] = own
            found[f"{name}_g"] = tuple(a if s > 1 else None for a, s in zip(own, sizes, strict=False))
    return found


def _why_not_cut(held: ParametrizationList) -> str:
    kinds = [type(each).__name__ for each in held]
    if len(kinds) == 1 and kinds[0] == "_WeightNorm":
        return ""
    if len(kinds) == 1 and kinds[0] == "_SpectralNorm":
        return "" if held.original.dim() > 1 else "its spectral norm is that of a vector"
    why = f"its weight is computed by the parametrization {', '.join(kinds)}"
    own = any(True for each in held for _ in (*each.parameters(), *each.buffers()))
    return why if own or held.is_tensor is False or not _is_elementwise(held) else ""


def _is_elementwise(held: ParametrizationList) -> bool:
    """Whether a part of the result is the result of the part, on numbers of its own."""
    shape = held.original.shape
    given = torch.linspace(-1, 1, prod(shape)).reshape(shape)
    part = tuple(slice(None, None, 2) for _ in shape)
    try:
        whole, cut = _applied(held, given), _applied(held, given[part])
    except Exception:  # noqa: BLE001 whatever the user's code raises on tensors that are not its own
        return False
    return whole.shape == shape and whole[part].shape == cut.shape and torch.allclose(whole[part], cut)


def _keeps_zeros(held: ParametrizationList) -> bool:
    return not _applied(held, torch.zeros(held.original.shape)).any()


def _applied(held: ParametrizationList, given: Tensor) -> Tensor:
    """The parametrizations, copied and in eval mode, on other numbers."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for each in held:
            given = copy.deepcopy(each).eval()(given)
    return given


def _singular(dim: int, shape: torch.Size, axes: Axes) -> dict[str, Factor | None]:
    """Labels of the singular vectors: u runs along one axis of the weight, v along all others."""
    first, rest = axes[dim], [(axes[a], shape[a]) for a in range(len(shape)) if a != dim]
    labelled = next((place for place, (axis, _) in enumerate(rest) if axis is not None), None)
    if labelled is None:
        return {"_u": first, "_v": None}
    vector: Any = rest[labelled][0]
    sizes = [size for _, size in rest]
    groups = vector.shape[:-1]
    along = [1] * len(groups) + [size if place == labelled else 1 for place, size in enumerate(sizes)]
    along[: len(groups)] = groups
    return {"_u": first, "_v": np.broadcast_to(vector.reshape(along), (*groups, *sizes)).reshape(*groups, -1)}
