"""A private copy of a graph that computes the same activations faster, for measuring only.

- A BatchNorm that alone reads a convolution's output is folded into its weights.
- Parameters keep their storage where nothing about them changes: only folded, moved or converted ones take
  memory.
- Weights and inputs may be in channels-last order.
- The input graph, its modules and its parameters are not touched.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.resolve import is_plain_layer, of_module
from mbs_fx.shapes.graph_attributes import attribute, shallow_copy

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def fast_copy(
    gm: fx.GraphModule,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = False,
    fold: bool = True,
) -> fx.GraphModule:
    """``gm`` with BatchNorm folded, on ``device``, floating-point parameters in ``dtype``."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    attributes: dict[str, Any] = {}
    folded = _foldable(gm) if fold else {}
    for node in gm.graph.nodes:
        if node in folded:
            conv = folded[node]
            attributes[str(conv.target)] = _fold(_module(gm, conv), _module(gm, node))
            copies[node] = copies[conv]
            continue
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        if node.op in ("call_module", "get_attr") and node.target not in attributes:
            attributes[node.target] = _private(attribute(gm, node.target))
    private = fx.GraphModule(attributes, graph, type(gm).__name__).to(device)
    for tensor in (*private.parameters(), *private.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
        if channels_last and tensor.ndim in LAYOUTS:
            tensor.data = tensor.data.contiguous(memory_format=LAYOUTS[tensor.ndim])
    private.training = False
    return private


def _module(gm: fx.GraphModule, node: fx.Node) -> Any:
    return gm.get_submodule(str(node.target))


def _foldable(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """BatchNorm nodes and the convolutions they can be folded into."""
    calls = Counter(n.target for n in gm.graph.nodes if n.op == "call_module")
    pairs: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        conv = node.args[0] if node.op == "call_module" and len(node.args) == 1 else None
        if not isinstance(conv, fx.Node) or conv.op != "call_module" or len(conv.users) > 1:
            continue
        modules = _module(gm, conv), _module(gm, node)
        kinds = [of_module(type(module)) for module in modules]
        plain = kinds[0] in v.CONV and kinds[1] is v.BATCH_NORM and all(map(is_plain_layer, modules))
        alone = calls[conv.target] == 1 and not any(_is_modified(m) for m in modules)
        if plain and alone and modules[1].running_mean is not None and not modules[1].training:
            pairs[node] = conv
    return pairs


def _is_modified(module: nn.Module) -> bool:
    """Whether hooks or parametrizations change what a call of the module computes."""
    return bool(module._forward_hooks or module._forward_pre_hooks or is_parametrized(module))


def _fold(conv: Any, norm: Any) -> nn.Module:
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    folded = shallow_copy(conv)
    folded._parameters = {"weight": _frozen(weight), "bias": _frozen(bias)}
    return folded


def _private(value: Any) -> Any:
    """A copy of a module with parameters, buffers and children of its own, which share their storage."""
    if isinstance(value, Tensor):
        return _frozen(value) if isinstance(value, nn.Parameter) else value.detach()
    if not isinstance(value, nn.Module):
        return value
    module = shallow_copy(value)
    module._parameters = {k: None if p is None else _frozen(p) for k, p in value._parameters.items()}
    module._buffers = {k: None if b is None else b.detach() for k, b in value._buffers.items()}
    module._modules = {k: None if m is None else _private(m) for k, m in value._modules.items()}
    return module


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)
