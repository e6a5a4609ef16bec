"""Does the graph compute what the model computes?

Semantics
- Both run on the example without gradients, on copies, from the same seed; the caller's random state,
  statistics and modes are untouched.
- Outputs agree when they have the same structure and no tensor differs by more than a few hundred rounding
  errors of its dtype, relative to its largest absolute value.
- NaN and infinities must stand in the same places.
"""

from __future__ import annotations

import copy
import copyreg
import random
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from mbs_fx.errors import MBSError
from mbs_fx.runtime.weight_hooks import weight_hooks
from mbs_fx.tracing.example import Example, place_and_dtype

ROUNDING_ERRORS = {"cpu": 1e2}
ROUNDING_ERRORS_ELSEWHERE = 1e4
LARGEST_TOLERANCE = 5e-2
TENSOR_FIELDS = frozenset({"_parameters", "_buffers"})
COPYING = frozenset({"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__"})
PLAIN = frozenset({int, float, bool, str, type(None), torch.Size})


class RunError(Exception):
    """The model itself raised something when it ran."""


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy to run or to trace, so that the caller's model stays as it is.

    Tensors that an earlier call computed and left in an attribute are copied without their history.
    """
    known: dict[int, Any] = {} if memo is None else memo
    with torch.no_grad():
        return _deep_copy(model, known)


def _deep_copy(model: nn.Module, known: dict[int, Any]) -> nn.Module:
    try:
        return _copied_module(model, known)
    except Exception as error:
        raise MBSError(_why_not_copied(model, error)) from error


def _copied_module(module: nn.Module, memo: dict[int, Any]) -> Any:
    """A module again, as copy.deepcopy copies it, in a fraction of the time."""
    if id(module) in memo:
        return memo[id(module)]
    if not _is_copied_by_parts(type(module)):
        return _copied_as_a_whole(module, memo)
    clone = memo[id(module)] = object.__new__(type(module))
    held = vars(clone)
    for name, value in vars(module).items():
        if name == "_compiled_call_impl":
            continue
        if name in TENSOR_FIELDS:
            held[name] = {key: _copied_tensor(tensor, memo) for key, tensor in value.items()}
        elif name == "_modules":
            held[name] = {key: None if child is None else _copied_module(child, memo) for key, child in value.items()}
        elif type(value) in PLAIN:
            held[name] = value
        elif type(value) in (dict, OrderedDict, list, set) and not value:
            held[name] = type(value)()
        else:
            _copy_results(module, value, memo)
            held[name] = copy.deepcopy(value, memo)
    return clone


def _copied_as_a_whole(module: nn.Module, memo: dict[int, Any]) -> Any:
    for child in module.children():
        _copied_module(child, memo)
    for value in vars(module).values():
        _copy_results(module, value, memo)
    return copy.deepcopy(module, memo)


@cache
def _is_copied_by_parts(kind: type[nn.Module]) -> bool:
    """Whether a class leaves it to copy.deepcopy to copy the attributes of its objects one by one."""
    if kind in copyreg.dispatch_table:
        return False
    own = [base for base in kind.__mro__ if base not in (object, nn.Module)]
    others = [base for base in own if not base.__module__.startswith("torch.nn.modules.")]
    return not any(COPYING & vars(base).keys() for base in own) and not any("__setstate__" in vars(b) for b in others)


def _copy_results(module: nn.Module, value: Any, memo: dict[int, Any]) -> None:
    """Copy what a call computed and left in an attribute, without its history; a hook unknown here is left to fail."""
    if len(module._forward_pre_hooks) == len(weight_hooks(module)):
        memo.update({id(tensor): tensor.detach().clone() for tensor in _tensors_in(value) if not tensor.is_leaf})


def _tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, (Mapping, list, tuple)):
        parts = value.values() if isinstance(value, Mapping) else value
        return [part for part in parts if isinstance(part, torch.Tensor)]
    return [value] if isinstance(value, torch.Tensor) else []


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of torch.nn with nothing but tensors and plain values in it."""
    if not type(module).__module__.startswith("torch.nn.modules."):
        return False
    return all(
        type(value) in PLAIN
        or name in TENSOR_FIELDS
        or (type(value) is tuple and _is_plain(value))
        or not (isinstance(value, torch.Tensor) or value)
        for name, value in vars(module).items()
    )


def _is_plain(value: tuple[Any, ...]) -> bool:
    return all(type(item) in PLAIN for item in value)


def _copied_tensor(tensor: torch.Tensor | None, memo: dict[int, Any]) -> torch.Tensor | None:
    if tensor is None or id(tensor) in memo:
        return None if tensor is None else memo[id(tensor)]
    if type(tensor) is nn.Parameter and not vars(tensor):
        memo[id(tensor)] = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
    elif type(tensor) is torch.Tensor and not (tensor.requires_grad or tensor._is_view() or vars(tensor)):
        memo[id(tensor)] = tensor.clone()
    else:
        return copy.deepcopy(tensor, memo)
    return memo[id(tensor)]


def _why_not_copied(model: nn.Module, error: Exception) -> str:
    computed = [
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        for name, held in vars(module).items()
        if isinstance(held, torch.Tensor) and not held.is_leaf
    ]
    if not computed:
        said = ": ".join((type(error).__name__, *str(error).splitlines()[:1]))
        return (
            f"{type(model).__name__} cannot be copied ({said}), and it must not be changed; take out what "
            "copy.deepcopy refuses"
        )
    return f"{type(model).__name__} cannot be copied: {_why_computed(model, computed[0])}"


def _why_computed(model: nn.Module, place: str) -> str:
    """Where a tensor comes from that is no parameter and has a gradient, and what to do."""
    path, _, name = place.rpartition(".")
    owner = model.get_submodule(path)
    if f"{name}_mask" in owner._buffers:
        return (
            f"{place} is masked by torch.nn.utils.prune; make the mask permanent first, "
            f'torch.nn.utils.prune.remove(module, "{name}")'
        )
    if owner._forward_pre_hooks:
        hooks = ", ".join(type(hook).__name__ for hook in owner._forward_pre_hooks.values())
        return f"{place} is computed by a hook ({hooks}); use a parametrization (torch.nn.utils.parametrize)"
    return f"{place} is a tensor that an earlier call left there; delete it, or let forward keep a detached one"


@contextmanager
def seeded(device: torch.device) -> Generator[None]:
    """Fixed random numbers inside, the caller's random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            random.seed(0)
            yield
    finally:
        random.setstate(state)


def run(model: nn.Module, example: Example) -> Any:
    """Run a model, which may change it, on clones of the example."""
    inputs = example.clone()
    with seeded(place_and_dtype(model)[0]), torch.no_grad():
        try:
            return model(*inputs.args, **inputs.kwargs)
        except Exception as error:
            raise RunError(f"{type(error).__name__}: {error}") from error


def disagreement(expected: Any, actual: Any, place: str = "the output") -> str:
    """The first difference in words, empty where there is none."""
    if isinstance(expected, torch.Tensor):
        return _tensors(expected, actual, place)
    for name, parts in (("fields", _parts(expected)), ("items", expected)):
        if isinstance(parts, Mapping):
            return _mappings(parts, _parts(actual) or actual, place, name)
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        if not isinstance(actual, Sequence) or len(actual) != len(expected):
            return f"{place} has {len(expected)} items in the model and is {_brief(actual)} in the graph"
        pairs = enumerate(zip(expected, actual, strict=True))
        return next(filter(None, (disagreement(e, a, f"{place}[{i}]") for i, (e, a) in pairs)), "")
    same = type(expected) is type(actual) and expected == actual
    return "" if same else f"{place} is {_brief(expected)} in the model and {_brief(actual)} in the graph"


def _parts(value: Any) -> dict[str, Any] | None:
    if is_dataclass(value) and not isinstance(value, (type, Mapping)):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None


def _mappings(expected: Mapping[Any, Any], actual: Any, place: str, name: str) -> str:
    if not isinstance(actual, Mapping) or list(actual) != list(expected):
        found = list(actual) if isinstance(actual, Mapping) else _brief(actual)
        return f"{place} has the {name} {list(expected)} in the model and {found} in the graph"
    differences = (disagreement(expected[key], actual[key], f"{place}[{key!r}]") for key in expected)
    return next(filter(None, differences), "")


def _tensors(expected: torch.Tensor, actual: Any, place: str) -> str:
    if not isinstance(actual, torch.Tensor):
        return f"{place} is {_brief(expected)} in the model and {_brief(actual)} in the graph"
    if (expected.shape, expected.dtype, expected.device) != (actual.shape, actual.dtype, actual.device):
        return f"{place} is {_brief(expected)} in the model and {_brief(actual)} in the graph"
    if not (expected.is_floating_point() or expected.is_complex()):
        return "" if torch.equal(expected, actual) else f"{place} has other values in the graph than in the model"
    finite = expected.isfinite()
    unequal_places = not torch.equal(finite, actual.isfinite())
    if unequal_places or not torch.equal(expected[~finite].nan_to_num(), actual[~finite].nan_to_num()):
        return f"{place} has NaN or infinities in different places in the graph than in the model"
    wide = torch.complex128 if expected.is_complex() else torch.float64
    error = (expected[finite].to(wide) - actual[finite].to(wide)).abs()
    largest = expected[finite].to(wide).abs()
    if error.numel() == 0 or float(error.max()) <= _tolerance(expected) * float(largest.max()):
        return ""
    return f"{place} differs by {float(error.max()):.3g} where the model's reaches {float(largest.max()):.3g}"


def _tolerance(tensor: torch.Tensor) -> float:
    errors = ROUNDING_ERRORS.get(tensor.device.type, ROUNDING_ERRORS_ELSEWHERE)
    return min(errors * torch.finfo(tensor.dtype).eps, LARGEST_TOLERANCE)


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"a {type(value).__name__}" if isinstance(value, (Sequence, Mapping)) else repr(value)
