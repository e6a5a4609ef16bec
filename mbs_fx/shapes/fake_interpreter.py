"""Running a graph on tensors without numbers.

Semantics
- The environment holds meta tensors.  A *layout* is shape, strides and dtype; all tensors of one layout share
  one meta tensor.
- Layers of ``torch.nn`` and functions of the libraries return layouts that follow from their configuration
  and the layouts of their arguments: each combination runs once, on meta tensors.
- Other people's code, and what fails on meta tensors, runs at every node on fake tensors: several times
  slower, but they know their device and how to mix with real ones.  A module that decides by values gets zeros,
  a function of torch that checks them (``istft`` its window) ones.
- A tensor of one number that comes of numbers alone (``torch.as_tensor(length / 2).ceil()``) keeps it.
- Short tensors of whole numbers that the graph holds (a shape, an order of channels) keep their numbers.
- Regions of autocast are not entered: they change types, not shapes.
- Modules run as shallow copies that hold such tensors and no hooks, so nothing of the model changes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node, map_arg
from torch.fx.immutable_collections import immutable_dict, immutable_list

from mbs_fx.operations.resolve import is_in_place, of_library, of_target
from mbs_fx.runtime.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    enter_autocast,
    exit_autocast,
)
from mbs_fx.shapes.graph_attributes import shallow_copy
from mbs_fx.shapes.known_numbers import KnownNumbers
from mbs_fx.shapes.layouts import MODULE_FIELDS, hashed, is_constant, layout

HOOKS = frozenset(name for name in MODULE_FIELDS if "_hooks" in name)
_BATCH_NORM_DIMS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
}


class FakeInterpreter(Interpreter):
    """Runs a graph on meta and fake tensors; ``env`` then holds a meta tensor for every tensor."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.extra_traceback = False
        self.modules = dict(gm.named_modules(remove_duplicate=False))
        self.results: dict[Hashable, Any] = {}
        self.metas: dict[Hashable, Tensor] = {}
        self.numbers = KnownNumbers()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.shares = not any(map(_reshapes_in_place, gm.graph.nodes))
        first = next((p for p in gm.parameters() if p.is_floating_point()), torch.empty(0))
        self.dtype = first.dtype
        self.device = next(chain(gm.parameters(), gm.buffers()), first).device

    def input(self, value: Tensor | Sequence[int]) -> Tensor:
        """A stand-in for an input, given as a tensor or as the shape of one."""
        if isinstance(value, Tensor):
            return self._meta(value)
        return torch.empty(tuple(value), dtype=self.dtype, device="meta")

    def run_node(self, n: Node) -> Any:
        """The value of a node; its tensors are meta tensors, but for single numbers that are known."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        number = self.numbers.made(n, args, kwargs)
        if number is not None:
            return number
        args, kwargs = self.numbers.given(n, args, kwargs)
        return mapped(self._dispatch(n, args, kwargs), self._meta)

    def _dispatch(self, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if n.op in ("placeholder", "output"):
            return getattr(self, n.op)(n.target, args, kwargs)
        if n.op == "get_attr":
            return self.fetch_attr(str(n.target))
        if n.target in (enter_autocast, exit_autocast):
            return None
        if n.op == "call_method" and not isinstance(args[0], Tensor):
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        return self._called(n, args, kwargs)

    def _called(self, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function, a method of a tensor or a module returns."""
        call: Any = n.target
        if n.op != "call_function":
            call = _Method(str(n.target)) if n.op == "call_method" else self.modules[str(n.target)]
        tensors = [a for a in args if isinstance(a, Tensor)]
        # Fake tensors would hide the numbers of a constant from the code that reads them.
        run = self._on_metas if any(map(is_constant, tensors)) else self._on_fakes
        if _of_library(call):
            run = self._call
        try:
            return run(call, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if n.op != "call_module":
                return self._of_numbers(n, run, call)
            if self.device.type == "meta":
                raise
            return self._on_zeros(call, args, kwargs)

    def _of_numbers(self, n: Node, run: Callable[..., Any], call: Any) -> Any:
        """What a function returns that looks at numbers: those of constants, or ones where it only checks them."""
        args, kwargs = self._with_numbers(n)
        try:
            return run(call, args, kwargs)
        except DataDependentOutputException:
            if self.device.type == "meta":
                raise
            given = mapped((args, kwargs), lambda t: torch.ones_like(t, device=self.device) if t.is_meta else t)
            result = call(*given[0], **given[1])
            if not isinstance(result, Tensor):
                raise
            return mapped(result, self._meta)

    def _with_numbers(self, n: Node) -> tuple[Any, Any]:
        """Arguments of a node, with a number for each constant of one element that the graph holds."""
        return map_arg((n.args, n.kwargs), self._number)

    def _number(self, n: Node) -> Any:
        held = self.fetch_attr(str(n.target)) if n.op == "get_attr" else None
        return held.item() if isinstance(held, Tensor) and held.dim() == 0 and not held.is_meta else self.env[n]

    def _call(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = hashed((call, args, kwargs)) if self.shares and "out" not in kwargs else None
        if key is not None and key in self.results:
            return self.results[key]
        result = self._on_metas(call, args, kwargs)
        if key is not None and isinstance(result, Tensor | tuple | int | float):
            self.results[key] = result = mapped(result, self._meta)
        return result

    def _on_metas(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "device" in kwargs or call is getattr or not contains_tensor((args, kwargs)):
            return self._on_fakes(call, args, kwargs)
        try:
            if isinstance(call, nn.Module) and keeps_layout(call, args[0]):
                return args[0]
            return stand_in(call, self._meta)(*args, **kwargs)
        except Exception:  # noqa: BLE001 whatever meta tensors cannot do: fake tensors can, or say why not
            return self._on_fakes(call, args, kwargs)

    def _on_fakes(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.mode:
            fake_args, fake_kwargs = mapped((args, kwargs), self._fake)
            return stand_in(call, self._fake)(*fake_args, **fake_kwargs)

    def _on_zeros(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = mapped((args, kwargs), lambda t: torch.zeros_like(t, device=self.device) if t.is_meta else t)
        return stand_in(call, lambda t: t.detach().clone())(*given[0], **given[1])

    def _meta(self, tensor: Tensor) -> Tensor:
        if is_constant(tensor):
            return tensor
        plain = tensor.device.type == "meta" and type(tensor) is Tensor
        if plain or tensor.layout != torch.strided:
            return tensor
        if not self.shares:
            return _empty_like(tensor, torch.device("meta"))
        key = layout(tensor)
        if key not in self.metas:
            self.metas[key] = _empty_like(tensor, torch.device("meta"))
        return self.metas[key]

    def _fake(self, tensor: Tensor) -> Tensor:
        kept = isinstance(tensor, FakeTensor) or is_constant(tensor) or tensor.layout != torch.strided
        return tensor if kept else _empty_like(tensor, self.device)


@dataclass(frozen=True, slots=True)
class _Method:
    """A method as a function of its object."""

    name: str

    def __call__(self, obj: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(obj, self.name)(*args, **kwargs)


def keeps_layout(module: nn.Module, x: Tensor) -> bool:
    """Whether a module is a batch norm and takes ``x``, as it nearly always does; torch decomposes it, at 2 ms each."""
    if type(module) not in _BATCH_NORM_DIMS:
        return False
    held = chain(module._parameters.values(), module._buffers.values())
    shape, dtype = x.shape, x.dtype
    fits = all(t is None or t.ndim == 0 or (t.shape == shape[1:2] and t.dtype == dtype) for t in held)
    refused = module.training and shape[1] == shape.numel()
    return fits and len(shape) in _BATCH_NORM_DIMS[type(module)] and not refused


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """``value`` with ``change`` applied to every tensor in it, containers and dataclass objects rebuilt as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        # What max(dim) and the like return is named too, and is made from one sequence.
        return type(value)(items) if hasattr(value, "n_fields") else tuple(items)
    if type(value) is list or type(value) is immutable_list:
        return [mapped(item, change) for item in value]
    if isinstance(value, dict):
        clone = dict(value) if isinstance(value, immutable_dict) else copy(value)
        for key, item in value.items():
            clone[key] = mapped(item, change)
        return clone
    if is_dataclass(value) and not isinstance(value, type | nn.Module):
        return _mapped_fields(value, change)
    return value


def _mapped_fields(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A copy of a dataclass object, made without its ``__init__``, which may check what it is given."""
    held = fields_of(value)
    if not contains_tensor(held):
        return value
    clone = copy(value)
    for name, item in held.items():
        object.__setattr__(clone, name, mapped(item, change))
    return clone


def stand_in(call: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """Modules as shallow copies without hooks, their tensors replaced; anything else as it is."""
    if not isinstance(call, nn.Module) or isinstance(call, torch.jit.ScriptModule):
        return call
    clone = shallow_copy(call)
    for name, value in vars(call).items():
        if name in HOOKS:
            vars(clone)[name] = type(value)()
        elif name == "_modules":
            vars(clone)[name] = {key: stand_in(child, make) for key, child in value.items()}
        else:
            vars(clone)[name] = mapped(value, make)
    return clone


def _empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass object that are set, by name."""
    return {f.name: getattr(value, f.name) for f in fields(value) if hasattr(value, f.name)}


def contains_tensor(value: Any) -> bool:
    """Whether a value is a tensor or holds one, in containers and dataclass objects."""
    if isinstance(value, tuple | list):
        return any(map(contains_tensor, value))
    if is_dataclass(value) and not isinstance(value, type | dict | nn.Module):
        return contains_tensor(fields_of(value))
    return isinstance(value, Tensor) or (isinstance(value, dict) and any(map(contains_tensor, value.values())))


def _of_library(call: Any) -> bool:
    if isinstance(call, nn.Module):
        return _library_layer(type(call)) and all(map(_of_library, call.children()))
    return isinstance(call, _Method) or of_library(call)


def _reshapes_in_place(node: Node) -> bool:
    """Whether a node changes the shape of the tensor that it is given."""
    operation = of_target(node)
    return operation is not None and operation.moves and is_in_place(node)


@cache
def _library_layer(kind: type) -> bool:
    """A layer of torch.nn, or a subclass of one."""
    return any(base.__module__.startswith("torch.nn.modules") and base is not nn.Module for base in kind.__mro__)
