"""Which nodes are convolutions, and what they cost.

Semantics
- Convolutions are layers of ``torch.nn`` and their subclasses, the functions ``conv1d`` to ``conv_transpose3d``, and
  torchvision's deformable convolution.
- A *learned* convolution has a weight that is a parameter or is computed from one (weight standardisation).
  A function whose weight is a buffer or a constant is a fixed filter, such as a blur.
- ``flops`` are multiply-adds for one image: kernel volume x C_in / groups x C_out for every output pixel, or
  for every input pixel of a transposed convolution.  Where the graph makes windows or frames of an image entries of
  the batch, they are all counted.  A convolution class that returns several maps counts as one on the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.call import Call, TensorShape
from mbs_fx.operations.resolve import of_target, operation_of, spelling
from mbs_fx.runtime.torch_private import ConvNd, ConvTransposeNd
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.shapes.shapes import tensors_in

_ONE_PER_AXIS = {"stride": ("stride_h", "stride_w"), "padding": ("pad_h", "pad_w"), "dilation": ("dil_h", "dil_w")}


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
    fixed = spec and node.op == "call_function" and not _learned(gm, _argument(gm, node, "weight"))
    return None if fixed else spec


def any_conv(gm: GraphModule, node: Node, shapes: Mapping[str, Any] | None = None) -> ConvSpec | None:
    """The convolution that a node applies, learned or fixed."""
    if node.op == "call_module":
        return of_module(attribute(gm, str(node.target)))
    operation = of_target(node) if node.op == "call_function" else None
    if operation is None or operation.dims is None or operation not in v.CONVOLUTIONS:
        return None
    call = Call(gm, node, operation, None, shapes or {})
    return _of_function(call, operation.dims, operation in v.CONV_TRANSPOSE)


def flops(gm: GraphModule, node: Node, shapes: Mapping[str, Any], batch: int | None = None) -> int:
    """Multiply-adds of a convolution, or of a linear layer at every pixel, for one image; 0 for any other node.

    ``batch`` is the number of images, the first axis of the first input where it is not given.
    """
    images = _batch(gm, shapes) if batch is None else batch
    spec = any_conv(gm, node, shapes)
    if spec is None:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        pixels = shapes[node.name].shape[:-1] if isinstance(module, nn.Linear) else ()
        if not isinstance(module, nn.Linear) or len(pixels) < 3:
            return 0
        return prod(pixels) * module.in_features * module.out_features // images
    held = shapes[_argument(gm, node, "input").name if spec.transposed else node.name]
    shape = tensors_in(held)[0].shape
    maps = prod(shape[: -spec.dims - 1])
    return prod(spec.weight) * maps * prod(shape[-spec.dims :]) // images


def _batch(gm: GraphModule, shapes: Mapping[str, Any]) -> int:
    entering = (tensor for n in gm.graph.nodes if n.op == "placeholder" for tensor in tensors_in(shapes[n.name]))
    return next((tensor.shape[0] for tensor in entering if tensor.shape), 1)


def of_module(module: nn.Module) -> ConvSpec | None:
    """From the attributes: reading a parametrised weight would compute it, and may change its state."""
    if not isinstance(module, ConvNd):
        return None
    transposed = isinstance(module, ConvTransposeNd)
    ends = (module.in_channels, module.out_channels) if transposed else (module.out_channels, module.in_channels)
    return ConvSpec(
        weight=(int(ends[0]), int(ends[1] // module.groups), *map(int, module.kernel_size)),
        groups=int(module.groups),
        stride=tuple(map(int, module.stride)),
        padding=module.padding if isinstance(module.padding, str) else tuple(map(int, module.padding)),
        dilation=tuple(map(int, module.dilation)),
        transposed=transposed,
        dims=len(module.kernel_size),
    )


def _of_function(call: Call, dims: int, transposed: bool) -> ConvSpec:
    names = _ONE_PER_AXIS if call.operation is v.DEFORMABLE_CONV else {}
    stride, padding, dilation = (
        tuple(_known(call, each, default) for each in names[name]) if names else _known(call, name, default)
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    return ConvSpec(
        weight=_weight_shape(call.gm, call.node, call.argument("weight"), call.values, dims),
        groups=_known(call, "groups", 1),
        stride=per_axis(stride, dims),
        padding=padding if isinstance(padding, str) else per_axis(padding, dims),
        dilation=per_axis(dilation, dims),
        transposed=transposed,
        dims=dims,
    )


def _known(call: Call, name: str, default: Any) -> Any:
    """A setting; the default where it is a node of which nothing is known."""
    given = call.argument(name, default)
    return default if isinstance(given, Node) and given.name not in call.values else call.evaluated(given)


def _weight_shape(gm: GraphModule, node: Node, weight: Any, shapes: Mapping[str, Any], dims: int) -> tuple[int, ...]:
    if isinstance(weight, Node):
        known = shapes.get(weight.name)
        if isinstance(known, TensorShape):
            return known.shape
        behind = [tensor for tensor in _tensors_behind(gm, weight) if tensor.ndim == dims + 2]
        if behind:
            return tuple(behind[0].shape)
    raise MBSError(
        f"node {node.name}, {node.op} {spelling(node.target)}: the shape of its weight is not known without the shapes "
        "of the graph: pass the result of mbs_fx.shapes.shapes.infer"
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
            value = attribute(gm, str(current.target))
            found += [value] if isinstance(value, Tensor) else []
        elif current.op == "call_module":
            found += gm.get_submodule(str(current.target)).parameters()
        fresh = [n for n in current.all_input_nodes if n not in seen]
        seen.update(fresh)
        waiting += fresh
    return found


def per_axis(value: Any, dims: int) -> tuple[int, ...]:
    """``value`` once per axis, as torch reads an int or a sequence."""
    items = tuple(map(int, value)) if isinstance(value, tuple | list) else (int(value),)
    return items * dims if len(items) == 1 else items


def _argument(gm: GraphModule, node: Node, name: str) -> Any:
    module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
    return Call(gm, node, operation_of(gm, node), module, {}).argument(name)
