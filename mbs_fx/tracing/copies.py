"""Copies of a model to run, so that the model itself is never changed.

Semantics
- Every run starts from what the model is: its parameters or changed ones, its buffers, attributes and modes.
- A copy that a run has left as it was (but for its buffers, which get their old values) serves the next run.
- Changed parameters differ from the model's by up to a quarter, vectors by a little more, so that no zero stays one.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from mbs_fx.tracing.caches import Caches, attributes, rebound, restore
from mbs_fx.tracing.check import copied, is_plain_layer


class Twin:
    """A copy of a model, and what it was before a run."""

    def __init__(self, model: nn.Module, caches: Caches) -> None:
        self.module = copied(model)
        restore(self.module, caches)
        self.changed = False
        self.left: Caches = ()
        modules = list(self.module.named_modules())
        self.modes = [(module, module.training) for _, module in modules]
        self.own = [(path, module) for path, module in modules if not is_plain_layer(module)]
        self.keeps_state = not all(map(_is_simple, attributes(self.own).values()))
        self.parameters = list({id(p): (m, n, p) for _, m in modules for n, p in m._parameters.items()}.values())
        self.buffers = list({id(b): (m, n, b) for _, m in modules for n, b in m._buffers.items()}.values())

    @contextmanager
    def running(self) -> Generator[nn.Module]:
        """The copy in the model's own modes; afterwards ``left`` has the attributes that a run gave it."""
        for module, mode in self.modes:
            module.training = mode
        self.values = [None if b is None else b.clone() for _, _, b in self.buffers]
        self.versions = [0 if p is None else p._version for _, _, p in self.parameters]
        before = attributes(self.own)
        yield self.module
        self.left = rebound(before, attributes(self.own))

    def is_as_before(self) -> bool:
        """Whether a run left the copy as it was; its buffers are then given their old values."""
        if self.keeps_state or self.left or not all(m._buffers.get(n) is b for m, n, b in self.buffers):
            return False
        for (module, name, parameter), version in zip(self.parameters, self.versions, strict=True):
            same = module._parameters.get(name) is parameter
            if not same or (parameter is not None and parameter._version != version):
                return False
        with torch.no_grad():
            for (_, _, buffer), value in zip(self.buffers, self.values, strict=True):
                if buffer is not None and value is not None:
                    buffer.copy_(value)
        return True


class Copies:
    """Copies of a model to run; one that a run has left as it was serves the next run, too."""

    def __init__(self, model: nn.Module, caches: Caches = ()) -> None:
        self.model = model
        self.caches = caches
        self.free: Twin | None = None

    @contextmanager
    def taken(self, changed: bool) -> Generator[Twin]:
        """A copy with the model's or with changed parameters, in the model's own modes."""
        twin, self.free = self.free, None
        if twin is None or (twin.changed and not changed):
            twin = Twin(self.model, self.caches)
        if changed and not twin.changed:
            change_parameters(twin.module)
            twin.changed = True
        with twin.running():
            yield twin
        if twin.is_as_before():
            self.free = twin


def _is_simple(value: Any) -> bool:
    """Whether an attribute cannot change without being assigned to."""
    if isinstance(value, tuple):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, (bool, int, float, str, type, FunctionType, torch.dtype, torch.device))


def change_parameters(model: nn.Module) -> None:
    """Change every floating point parameter of a copy, each by a fixed pattern along its first axis."""
    known: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                key = parameter.shape, parameter.dtype, parameter.device
                factor, term = known.setdefault(key, known.get(key) or _change(parameter))
                parameter.mul_(factor).add_(term)


def _change(parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    length = parameter.shape[0] if parameter.dim() else 1
    pattern = torch.arange(1, length + 1, device=parameter.device).cos().to(parameter.dtype)
    pattern = pattern.reshape(length, *[1] * (parameter.dim() - 1)) if parameter.dim() else pattern[0]
    is_vector = parameter.numel() == max(parameter.shape, default=1)
    return 1 + pattern / 4, pattern / (16 if is_vector else 16 * parameter.numel() / length)
