"""Which nodes are convolutions, and what they cost.

Semantics
- Convolutions are layers of ``torch.nn`` and their subclasses, and the functions ``conv1d`` to
  ``conv_transpose3d``.
- A *learned* convolution has a weight that is a parameter or is computed from one (weight standardisation).
  A function whose weight is a buffer or a constant is a fixed filter, such as a blur.
- ``flops`` are multiply-adds for one image: kernel volume x C_in / groups x C_out for every output pixel, or
  for every input pixel of a transposed convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd  # pyright: ignore[reportPrivateUsage]

from mbs_fx.errors import MBSError
from mbs_fx.shapes.shapes import TensorShape

_FUNCTIONS = {f"conv{dims}d": (dims, False) for dims in (1, 2, 3)} | {
    f"conv_transpose{dims}d": (dims, True) for dims in (1, 2, 3)
}


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """How a convolution was configured; ``weight`` is the shape of its weight.

    ``padding`` is what the configuration says: a subclass may pad in its own way before.
    """

    weight: tuple[int, ...]
    groups: int
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    transposed: bool
    dims: int

    @property
    def kernel(self) -> tuple[int, ...]:
        """The size of the kernel, per spatial axis."""
        return self.weight[2:]


def conv_kind(gm: GraphModule, node: Node, shapes: Mapping[str, Any] | None = None) -> ConvSpec | None:
    """The learned convolution that a node applies, or None where it applies none.

    ``shapes`` (from `mbs_fx.shapes.shapes.infer`) is needed where a weight is reshaped on the way.
    """
    spec = any_conv(gm, node, shapes)
    fixed = spec and node.op == "call_function" and not _learned(gm, _argument(node, 1, "weight"))
    return None if fixed else spec


def any_conv(gm: GraphModule, node: Node, shapes: Mapping[str, Any] | None = None) -> ConvSpec | None:
    """The convolution that a node applies, learned or fixed."""
    if node.op == "call_module":
        module = gm.get_submodule(str(node.target))
        return of_module(module)
    if node.op == "call_function" and is_torch(node.target):
        kind = _FUNCTIONS.get(getattr(node.target, "__name__", ""))
        return None if kind is None else _of_function(gm, node, shapes or {}, *kind)
    return None


def flops(gm: GraphModule, node: Node, shapes: Mapping[str, Any]) -> int:
    """Multiply-adds of a convolution, or of a linear layer at every pixel, for one image; 0 for any other node."""
    spec = any_conv(gm, node, shapes)
    if spec is None:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        pixels = shapes[node.name].shape[1:-1] if isinstance(module, nn.Linear) else ()
        if not isinstance(module, nn.Linear) or len(pixels) < 2:
            return 0
        return prod(pixels) * module.in_features * module.out_features
    value = shapes[_input(node).name if spec.transposed else node.name]
    return prod(spec.weight) * prod(value.shape[-spec.dims :])


def is_torch(target: Any) -> bool:
    """Whether a function is torch's own; its builtins have no module, or an underscored one."""
    module = getattr(target, "__module__", None) or "torch"
    return module.split(".")[0] in ("torch", "_operator") and hasattr(target, "__name__")


def of_module(module: nn.Module) -> ConvSpec | None:
    """From the attributes: reading a parametrised weight would compute it, and may change its state."""
    if not isinstance(module, _ConvNd):
        return None
    transposed = isinstance(module, _ConvTransposeNd)
    ends = (module.in_channels, module.out_channels) if transposed else (module.out_channels, module.in_channels)
    return ConvSpec(
        weight=(ends[0], ends[1] // module.groups, *module.kernel_size),
        groups=module.groups,
        stride=tuple(module.stride),
        padding=module.padding if isinstance(module.padding, str) else tuple(module.padding),
        dilation=tuple(module.dilation),
        transposed=transposed,
        dims=len(module.kernel_size),
    )


def _of_function(gm: GraphModule, node: Node, shapes: Mapping[str, Any], dims: int, transposed: bool) -> ConvSpec:
    dilation = 7 if transposed else 5
    padding = _value(node, 4, "padding", 0, shapes)
    return ConvSpec(
        weight=_weight_shape(gm, node, shapes, dims),
        groups=_value(node, 6, "groups", 1, shapes),
        stride=per_axis(_value(node, 3, "stride", 1, shapes), dims),
        padding=padding if isinstance(padding, str) else per_axis(padding, dims),
        dilation=per_axis(_value(node, dilation, "dilation", 1, shapes), dims),
        transposed=transposed,
        dims=dims,
    )


def _weight_shape(gm: GraphModule, node: Node, shapes: Mapping[str, Any], dims: int) -> tuple[int, ...]:
    weight = _argument(node, 1, "weight")
    if isinstance(weight, Node):
        known = shapes.get(weight.name)
        if isinstance(known, TensorShape):
            return known.shape
        behind = [tensor for tensor in _tensors_behind(gm, weight) if tensor.ndim == dims + 2]
        if behind:
            return tuple(behind[0].shape)
    raise MBSError(
        f"node {node.name}, {node.op} {node.target}: the shape of its weight is not known without the shapes "
        "of the graph: pass the result of mbs_fx.shapes.infer"
    )


def _learned(gm: GraphModule, weight: Any) -> bool:
    return isinstance(weight, Node) and any(isinstance(t, nn.Parameter) for t in _tensors_behind(gm, weight))


def _tensors_behind(gm: GraphModule, node: Node) -> list[Tensor]:
    """The parameters, buffers and constants that a value is computed from, in graph order of discovery."""
    found: list[Tensor] = []
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if current.op == "get_attr":
            owner, _, name = str(current.target).rpartition(".")
            value = getattr(gm.get_submodule(owner), name)
            found += [value] if isinstance(value, Tensor) else []
        elif current.op == "call_module":
            found += gm.get_submodule(str(current.target)).parameters()
        fresh = [n for n in current.all_input_nodes if n not in seen]
        seen.update(fresh)
        waiting += fresh
    return found


def per_axis(value: Any, dims: int) -> tuple[int, ...]:
    """``value`` once per axis, as torch reads an int or a sequence."""
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    return items * dims if len(items) == 1 else items


def _input(node: Node) -> Node:
    return _argument(node, 0, "input")


def _argument(node: Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _value(node: Node, position: int, name: str, default: Any, shapes: Mapping[str, Any]) -> Any:
    value = _argument(node, position, name)
    value = shapes.get(value.name) if isinstance(value, Node) else value
    return default if value is None else value
