"""What every node of a graph returns, found out without computing it.

Semantics
- Tensors, also inside tuples, lists, dicts and named tuples, become `TensorShape`; a dataclass object that holds
  tensors becomes the dict of its fields; Python values (sizes, numbers, None, devices) stand as they are, so that a
  later pass can read the constants of the graph.
- Nothing is allocated and no kernel is called, except in a leaf that decides by values.  BatchNorm statistics,
  modes, hooks, ``node.meta`` and the random number generators stay as they were.
- Inputs are tensors or shapes.  A shape stands for a tensor of the first floating-point parameter's dtype.
  All inputs lie where that parameter lies.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError, SizedByValuesError
from mbs_fx.operations.call import TensorShape
from mbs_fx.runtime.random_state import random_state_kept
from mbs_fx.runtime.torch_private import FAKE_TENSOR_LOG
from mbs_fx.shapes.fake_interpreter import FakeInterpreter, contains_tensor, fields_of, mapped


def typed(shapes: Sequence[Sequence[int]], types: Sequence[str]) -> list[Tensor | Sequence[int]]:
    """Inputs for `infer`: shapes, and tensors without numbers where an input has a type of its own (``"int64"``)."""
    named = [*types, *[""] * (len(shapes) - len(types))]
    return [
        torch.empty(tuple(shape), dtype=getattr(torch, name), device="meta") if name else shape
        for shape, name in zip(shapes, named, strict=True)
    ]


def types_of(inputs: Iterable[Any]) -> tuple[str, ...]:
    """The type of every input, or dtype, of whole numbers, empty for all others; () where there are only others."""
    types = [getattr(value, "dtype", value) for value in inputs]
    whole = [isinstance(each, torch.dtype) and not each.is_floating_point for each in types]
    named = (str(each).removeprefix("torch.") * is_whole for each, is_whole in zip(types, whole, strict=True))
    return tuple(named) if any(whole) else ()


def random_inputs(shapes: Sequence[Sequence[int]], types: Sequence[str], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Standard normal numbers, always the same ones; zeros for whole numbers, which are an index into any table."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.zeros(value.shape, dtype=value.dtype)
        if isinstance(value, Tensor)
        else torch.randn(tuple(value), generator=generator).to(dtype)
        for value in typed(shapes, types)
    )


def infer(gm: GraphModule, inputs: Sequence[Any], advice: str = "") -> dict[str, Any]:
    """The value of every node, by name, for ``inputs`` in the order of the placeholders.

    An input is a tensor, its shape, or a list or dict of these.
    ``advice`` says what to do where the graph does not take them; without it, what the error suggests.
    """
    _check_inputs(gm, inputs)
    with torch.no_grad(), _no_traces():
        run = _ShapeInterpreter(gm, advice)
        run.run(*(nested(value, run.input) for value in inputs), enable_io_processing=False)
    return run.shapes


def nested(value: Any, make: Callable[[Any], Any]) -> Any:
    """``make`` applied to every tensor or shape in an input."""
    if isinstance(value, dict):
        return {key: nested(item, make) for key, item in value.items()}
    if isinstance(value, tuple | list) and any(isinstance(item, Tensor | tuple | list | dict) for item in value):
        return [nested(item, make) for item in value]
    return make(value)


def _check_inputs(gm: GraphModule, inputs: Sequence[Any]) -> None:
    nodes = [node for node in gm.graph.nodes if node.op == "placeholder"]
    variadic = any(str(node.target).startswith("*") for node in nodes)
    required = [node.name for node in nodes if not node.args and not str(node.target).startswith("*")]
    if len(inputs) < len(required):
        raise MBSError(
            f"the graph needs {len(required)} inputs ({', '.join(required)}) and got {len(inputs)}: "
            "give a tensor or a shape for each"
        )
    if len(inputs) > len(nodes) and not variadic:
        raise MBSError(f"the graph takes {len(nodes)} inputs and got {len(inputs)}: leave out the last ones")
    for index, value in enumerate(inputs):
        nested(value, lambda leaf, index=index: _check_input(index, leaf))


def _check_input(index: int, value: Any) -> None:
    if not (isinstance(value, Tensor) or _is_shape(value)):
        raise MBSError(
            f"input {index} is {reprlib.repr(value)}: give a tensor, or its shape as a tuple of positive whole "
            "numbers such as (1, 3, 224, 224)"
        )


def _is_shape(value: object) -> bool:
    sizes = isinstance(value, tuple | list)
    return sizes and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value)


@contextmanager
def _no_traces() -> Generator[None]:
    """Other people's modules may draw random numbers, and torch logs every error that we report ourselves."""
    log = logging.getLogger(FAKE_TENSOR_LOG)
    disabled, log.disabled = log.disabled, True
    try:
        with random_state_kept():
            yield
    finally:
        log.disabled = disabled


class _ShapeInterpreter(FakeInterpreter):
    """Notes what every node returns, and says where and why one could not."""

    def __init__(self, gm: GraphModule, advice: str) -> None:
        super().__init__(gm)
        self.advice = advice
        self.shapes: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        """The value of a node, noted; what goes wrong becomes an `MBSError`."""
        try:
            result = super().run_node(n)
        except Exception as error:
            kind = SizedByValuesError if _looks_at_values(error) else MBSError
            raise kind(self._message(n, error)) from error
        self.shapes[n.name] = shapes_of(result)
        return result

    def _message(self, n: Node, error: Exception) -> str:
        given = ", ".join(f"{a.name} {_describe(self.shapes[a.name])}" for a in n.all_input_nodes) or "none"
        name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", n.target)
        place = f"{n.op} {name}"
        if n.op == "call_module":
            place += f" ({type(self.submodules.get(str(name))).__name__})"
        elif stack := n.meta.get("nn_module_stack"):
            place += f" in module {list(stack)[-1]}"
        text = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        return f"node {n.name}, {place}, cannot take its inputs ({given}): {text}. {self.advice or _advice(error)}."


def shapes_of(value: Any) -> Any:
    """A value with every tensor in it replaced by its shape, and dataclass objects around tensors by dicts."""
    if isinstance(value, Tensor):
        return TensorShape(tuple(value.shape), value.dtype)
    if not contains_tensor(value):
        return value
    if type(value) in (tuple, list):
        return type(value)(map(shapes_of, value))
    if isinstance(value, dict) or is_dataclass(value):
        held = value if isinstance(value, dict) else fields_of(value)
        return {name: shapes_of(item) for name, item in held.items()}
    return mapped(value, shapes_of)


def tensors_in(value: Any) -> list[TensorShape]:
    """The shapes in what `shapes_of` returns, in order."""
    if isinstance(value, TensorShape):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def _describe(value: Any) -> str:
    if isinstance(value, TensorShape):
        return str(value.shape)
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        return "[" + ", ".join(map(_describe, value)) + "]"
    return reprlib.repr(value)


_VALUES = ("datadependent", "data-dependent", "data dependent", "dynamicoutputshape")
_ADVICE = (
    (
        ("kernel size can't be greater", "too small", "must be strictly less", "padding size should be less"),
        "The input is too small for this network: give a larger one",
    ),
    (("more than 1 value per channel",), "Give two images or more, or put the model in eval mode"),
    (
        _VALUES,
        "Its result depends on values: make this part a leaf module that returns tensors of a fixed shape",
    ),
    (("dtype", "same type", "should be the same"), "Give an input of the dtype of the weights"),
)


def _advice(error: Exception) -> str:
    """What to do, by the words of torch's messages."""
    advice = (advice for signs, advice in _ADVICE if _has_one(error, signs))
    return next(advice, "Give an input of the shape that the network was built for")


def _looks_at_values(error: Exception) -> bool:
    return _has_one(error, _VALUES)


def _has_one(error: Exception, signs: Iterable[str]) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return any(sign in text for sign in signs)
