"""Contexts around operations, which torch.fx does not record: gradient mode, autocast, checkpointing.

Semantics
- *Gradient mode.*  An operation that runs without gradients (``no_grad``, ``inference_mode``, ``set_grad_enabled``,
  as context or decorator) is marked.  `detach_regions` then puts a ``detach`` between each marked operation and its
  readers outside.  What an operation in place changes or adds there is detached before it.
- *Autocast.*  Entering and leaving a region are two nodes, those that torch.compile writes, too.
- *Checkpointing.*  The graph has the operations inside; that it keeps their activations stands in a note.
- What runs inside of leaves is not recorded: a leaf has its own contexts.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, Protocol
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks

from mbs_fx.runtime.torch_private import enter_autocast, exit_autocast

NUMBER_METHODS: Final = frozenset({"size", "dim", "numel", "nelement", "stride", "ndimension", "element_size", "item"})
NUMBER_ATTRIBUTES: Final = frozenset({"shape", "ndim", "dtype", "device", "layout", "is_cuda", "requires_grad"})
NUMBER_FUNCTIONS: Final = frozenset({len, torch.numel, enter_autocast, exit_autocast})


class RegionTracer(Protocol):
    """What the patches of `recorded_regions` need of a tracer."""

    paused: bool
    told: dict[str, None]

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any) -> fx.Node: ...


@contextmanager
def recorded_regions(tracer: RegionTracer) -> Generator[None]:
    """Gradients on, as in a forward pass for training; autocast regions become nodes, checkpoints notes."""
    enter, leave, hook = torch.autocast.__enter__, torch.autocast.__exit__, saved_tensors_hooks.__enter__
    entered: dict[int, fx.Node] = {}

    def enter_region(mode: Any) -> Any:
        result = enter(mode)
        if not tracer.paused:
            args = (mode.device, mode.fast_dtype, mode._enabled, mode._cache_enabled)
            entered[id(mode)] = tracer.create_node("call_function", enter_autocast, args, {})
        return result

    def leave_region(mode: Any, *error: Any) -> Any:
        node = entered.pop(id(mode), None)
        if node is not None:
            tracer.create_node("call_function", exit_autocast, (node,), {})
        return leave(mode, *error)

    def enter_hooks(hooks: Any) -> Any:
        if not tracer.paused:
            tell_of_checkpoint(tracer)
        return hook(hooks)

    with (
        patch.object(torch.autocast, "__enter__", enter_region),
        patch.object(torch.autocast, "__exit__", leave_region),
        patch.object(saved_tensors_hooks, "__enter__", enter_hooks),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        yield


def tell_of_checkpoint(tracer: RegionTracer) -> None:
    """Note that the graph keeps the activations which the model would compute again."""
    tracer.told["the graph does not checkpoint: training keeps the activations that the model computes again"] = None


def detach_regions(graph: fx.Graph, root: nn.Module, inside: set[fx.Node]) -> None:
    """Let no gradient pass through the operations in ``inside``, those that ran without gradients."""
    detached: dict[fx.Node, fx.Node] = {}
    carries: set[fx.Node] = set()
    # What an operation in place returns is, outside, the tensor that it changed, with the history of that.
    changed: dict[fx.Node, fx.Node] = {}
    nodes = list(graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]

    def detach(node: fx.Node) -> fx.Node:
        if node not in detached:
            with graph.inserting_after(inputs[-1] if node.op == "placeholder" else node):
                detached[node] = graph.call_method("detach", (node,))
        return detached[node]

    for node in nodes if inside else ():
        for arg in [arg for arg in node.all_input_nodes if arg in changed and node not in inside]:
            node.replace_input_with(arg, changed[arg])
        if _is_part(node) and node.args[0] in inside:
            inside.add(node)
        if node in inside and is_in_place(node):
            target = node.args[0] if node.args else None
            if isinstance(target, fx.Node) and (target not in inside or target in changed):
                changed[node] = changed.get(target, target)
            _replace(node, node.all_input_nodes, carries, detach)
        elif node not in inside:
            _replace(node, [arg for arg in node.all_input_nodes if arg in inside], carries, detach)
        if _carries_gradient(node, root, carries):
            carries.add(node)


def _replace(node: fx.Node, given: list[fx.Node], carries: set[fx.Node], detach: Callable[[fx.Node], fx.Node]) -> None:
    for arg in given:
        if arg in carries:
            node.replace_input_with(arg, detach(arg))


def _is_part(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (operator.getitem, builtins.getattr) and bool(node.args)


def _carries_gradient(node: fx.Node, root: nn.Module, carries: set[fx.Node]) -> bool:
    if node.op in ("placeholder", "call_module"):
        return True
    if node.op == "get_attr":
        held: Any = root
        for name in str(node.target).split("."):
            held = getattr(held, name)
        return isinstance(held, nn.Parameter)
    return not is_number(node) and any(arg in carries for arg in node.all_input_nodes)


def is_number(node: fx.Node) -> bool:
    """Whether a node makes no tensor: a size, a type, or arithmetic on such values."""
    if node.op == "call_method":
        return node.target in NUMBER_METHODS
    if node.op != "call_function":
        return False
    if node.target is builtins.getattr:
        return node.args[1] in NUMBER_ATTRIBUTES
    arithmetic = getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
    numbers = arithmetic and bool(node.all_input_nodes) and all(map(is_number, node.all_input_nodes))
    return node.target in NUMBER_FUNCTIONS or numbers


def is_in_place(node: fx.Node) -> bool:
    """Whether a node changes what it is given."""
    if node.op not in ("call_method", "call_function"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    changes = name.endswith("_") and not name.endswith("__")
    in_operator = getattr(node.target, "__module__", "") == "_operator" and name in IN_PLACE_OPERATORS
    return changes or in_operator or bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None


IN_PLACE_OPERATORS: Final = frozenset(
    {"setitem", *(name for name in dir(operator) if name.startswith("i") and hasattr(operator, f"__{name}__"))}
) - {"index", "invert", "inv"}
