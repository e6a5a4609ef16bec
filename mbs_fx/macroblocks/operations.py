"""Every node of a graph as a plain value, with its inputs: what pictures and exports need.

Semantics
- One `Operation` per node that handles tensors, in topological order; sizes, numbers and None are left out, and
  so are parameters that a function reads.
- ``inputs`` lead through what is left out: reading ``x.size(0)`` is reading no feature map.
- ``scope`` is the module whose ``forward`` the node stands in, as torch.fx recorded it while tracing; a second call
  of a module has its own scope (``path@1``).  Where nothing was recorded it is the folder of the module's path.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch.fx import Node

from mbs_fx.channels.flow import Flow
from mbs_fx.results.analysis import Operation, plain
from mbs_fx.shapes.convolutions import any_conv, of_module, per_axis
from mbs_fx.shapes.shapes import TensorShape


def operations(flow: Flow) -> tuple[Operation, ...]:
    """All operations of a graph."""
    shown = {node for node in flow.gm.graph.nodes if _handles_tensors(flow, node)}
    return tuple(_operation(flow, node, shown) for node in flow.gm.graph.nodes if node in shown)


def _handles_tensors(flow: Flow, node: Node) -> bool:
    if node.op in ("output", "placeholder"):
        return True
    return node.op != "get_attr" and _first(flow.shapes.get(node.name)) is not None


def _first(value: Any) -> TensorShape | None:
    """A tensor, or the first one of several results."""
    if isinstance(value, TensorShape):
        return value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return next((found for item in items if (found := _first(item)) is not None), None)


def _operation(flow: Flow, node: Node, shown: set[Node]) -> Operation:
    module = flow.modules.get(str(node.target)) if node.op == "call_module" else None
    shape = _first(flow.shapes.get(node.name))
    kernel, step = _window(flow, node, module, max(len(shape.shape) - 2, 0) if shape is not None else 0)
    return Operation(
        name=node.name,
        op=node.op,
        kind=type(module).__name__ if module is not None else _function(node),
        path=str(node.target) if node.op == "call_module" else "",
        scope=_scope(node),
        inputs=tuple(n.name for n in node.all_input_nodes if n in shown),
        shape=() if shape is None else shape.shape,
        kernel=kernel,
        step=step,
    )


def _function(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target)) if node.op == "call_function" else str(node.target)


def _window(flow: Flow, node: Node, module: Any, dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel size and stride of a convolution or a pooling layer."""
    spec = of_module(module) if module is not None else any_conv(flow.gm, node, flow.shapes)
    if spec is not None:
        return plain(spec.kernel), plain(spec.stride)
    kernel, step = getattr(module, "kernel_size", None), getattr(module, "stride", None)
    if not isinstance(kernel, Integral | tuple) or not isinstance(step, Integral | tuple):
        return (), ()
    return plain(per_axis(kernel, dims)), plain(per_axis(step, dims))


def _scope(node: Node) -> tuple[str, ...]:
    """Modules around a node, from the outermost one in."""
    stack = [str(key) for key in node.meta.get("nn_module_stack") or ()]
    if node.op == "call_module":
        path = str(node.target)
        if not stack:
            parts = path.split(".")
            return tuple(".".join(parts[:end]) for end in range(1, len(parts)))
        if stack[-1].split("@")[0] == path:
            stack.pop()
    return tuple(key for key in stack if key)
