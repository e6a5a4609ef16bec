"""Weights that a hook computes before every call: ``torch.nn.utils.weight_norm`` and ``spectral_norm``.

Semantics
- The parameters are ``weight_g`` and ``weight_v``, or ``weight_orig`` with the singular vectors ``weight_u`` and
  ``weight_v``; ``weight`` is an ordinary attribute, the one of the last call.
- The newer ones of ``torch.nn.utils.parametrizations`` need no hook.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

WEIGHT_HOOKS = (SpectralNorm, WeightNorm)


def weight_hooks(module: nn.Module) -> list[SpectralNorm | WeightNorm]:
    """The hooks of a module that compute weights."""
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, WEIGHT_HOOKS)]


def computed_weight(module: nn.Module, hook: SpectralNorm | WeightNorm) -> Tensor:
    """What a hook makes of the parameters as they are, without a power step."""
    with torch.no_grad():
        if isinstance(hook, SpectralNorm):
            return hook.compute_weight(module, do_power_iteration=False)
        return hook.compute_weight(module)


def compute_weights(module: nn.Module) -> None:
    """Let the attributes that hooks fill be those of the parameters as they are."""
    for hook in weight_hooks(module):
        setattr(module, hook.name, computed_weight(module, hook))


def remove_weight_hooks(module: nn.Module) -> None:
    """Make parameters of the weights that hooks compute."""
    for hook in weight_hooks(module):
        remove = nn.utils.remove_spectral_norm if isinstance(hook, SpectralNorm) else nn.utils.remove_weight_norm
        remove(module, hook.name)
