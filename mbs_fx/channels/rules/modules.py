"""Modules: which attributes count channels, and along which axes their tensors carry which labels."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from mbs_fx.channels.flow import ConvFlow, Count, Flow, Rule, count_of
from mbs_fx.channels.labels import Factor, Labels, along, factor_on, vector, without
from mbs_fx.channels.rules import contractions as mixing
from mbs_fx.channels.rules import elementwise as arithmetic
from mbs_fx.channels.rules import layout as moves
from mbs_fx.channels.rules import normalisation as statistics
from mbs_fx.shapes.fake_interpreter import stand_in
from mbs_fx.tracing.check import seeded


def _own_tensors(module: nn.Module) -> dict[str, tuple[int, ...]]:
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tuple(t.shape) for name, t in held}


def _foreign(module: nn.Module) -> bool:
    """Whether a layer's numbers are not where its class keeps them: parametrised, or inside children."""
    inside = any(True for child in module.children() for _ in child.parameters())
    weight: Any = getattr(module, "weight", None)
    return inside or (weight is not None and "weight" not in module._parameters)


def conv_module(flow: Flow, node: Node) -> Any:
    """Any convolution module: regular, grouped, depthwise, transposed; subclasses included."""
    path = str(node.target)
    module: Any = flow.modules[path]
    source = flow.source(node)
    mixing.require_batch(flow, node, source, len(module.kernel_size))
    passed = mixing.neighbours(flow, node, source)
    if passed is not None:
        return passed
    if _foreign(module):
        return flow.freeze(node, "its weight is computed from parameters elsewhere")
    if _computes_weight(module):
        flow.note(node, "computes its weight from all of its inputs")
    inp = vector(flow.of(source), 1, module.in_channels, flow.ties)
    groups: int = module.groups
    depthwise = 1 < groups == module.in_channels
    if depthwise:
        out = mixing.depthwise_output(inp, module.out_channels)
    else:
        known = flow.layers.get(path)
        out = known.out if known else flow.ties.new(module.out_channels)
        if groups > 1:
            mixing.balance_groups(flow, out, inp, groups)
    attributes: dict[str, Any] = {"in_channels": Count(inp), "out_channels": Count(out)}
    if depthwise:
        attributes["groups"] = Count(inp)
    flow.layer(path, out, attributes, _conv_tensors(module, inp, out))
    flow.mixers[node.name] = ConvFlow(out, inp, groups, path)
    return (*without(flow.of(source), 1), *along(out, 1, len(flow.shape(node))))


def _computes_weight(module: Any) -> bool:
    """Whether a convolution class with a forward of its own does more than convolve (weight standardisation).

    Then twice the weight does not give twice the output.  Without numbers nothing is known, and it counts as such.
    """
    if type(module).forward.__module__.startswith("torch."):
        return False
    weight: Tensor = module.weight
    if weight.is_meta:
        return True
    sizes = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    x = torch.linspace(-1, 1, module.in_channels * prod(sizes), dtype=weight.dtype, device=weight.device)
    x = x.reshape(1, module.in_channels, *sizes)
    with torch.no_grad(), seeded(weight.device):
        once, twice = (_scaled_twin(module, factor)(x) for factor in (1, 2))
    return not torch.allclose(twice, 2 * once, rtol=1e-2, atol=0)


def _scaled_twin(module: nn.Module, factor: int) -> nn.Module:
    """A copy without hooks and bias whose weight is a multiple: somebody's forward may change what it runs on."""
    twin = stand_in(module, lambda tensor: tensor.detach().clone())
    twin._parameters["weight"] *= factor
    if twin._parameters.get("bias") is not None:
        twin._parameters["bias"].zero_()
    return twin


def _conv_tensors(module: Any, inp: Factor, out: Factor) -> dict[str, tuple[Factor | None, ...]]:
    """Axes of a convolution's tensors; each group sees one part of the inputs (transposed: of the outputs).

    Such an axis is labelled (groups, positions in a group): all groups keep equally many.
    """
    shapes = _own_tensors(module)
    kernel = (None,) * (len(shapes["weight"]) - 2)
    depthwise = 1 < module.groups == module.in_channels
    first, other = (inp, out) if isinstance(module, _ConvTransposeNd) else (out, inp)
    weight = (first, None if depthwise else other.reshape(module.groups, -1), *kernel)
    tensors: dict[str, tuple[Factor | None, ...]] = {}
    for name, shape in shapes.items():
        if shape == shapes["weight"]:
            tensors[name] = weight
        elif shape and shape[0] == len(out) and all(s == 1 for s in shape[1:]):
            tensors[name] = (out, *(None for _ in shape[1:]))
        else:
            tensors[name] = (None,) * len(shape)
    return tensors


def linear_module(flow: Flow, node: Node) -> Any:
    """``nn.Linear`` on the last axis."""
    path = str(node.target)
    module: Any = flow.modules[path]
    if _foreign(module):
        return flow.freeze(node, "its weight is computed from parameters elsewhere")
    rank = len(flow.shape(node))
    labels = flow.of(flow.source(node))
    inp = vector(labels, rank - 1, module.in_features, flow.ties)
    known = flow.layers.get(path)
    out = known.out if known else flow.ties.new(module.out_features)
    tensors: dict[str, tuple[Factor | None, ...]] = {"weight": (out, inp)}
    if module.bias is not None:
        tensors["bias"] = (out,)
    flow.layer(path, out, {"in_features": Count(inp), "out_features": Count(out)}, tensors)
    flow.mixers[node.name] = ConvFlow(out, inp, 1, path)
    return (*without(labels, rank - 1), *along(out, rank - 1, rank))


def _channel_layer(flow: Flow, node: Node, axis: int, attributes: Callable[[Factor], dict[str, Any]]) -> Any:
    """A layer with one number (or none) per channel along one axis; it is recorded for channels that stay, too."""
    path = str(node.target)
    module = flow.modules[path]
    source = flow.source(node)
    labels, size = flow.of(source), flow.shape(source)[axis]
    if any(True for child in module.children() for _ in child.parameters()):
        return flow.freeze(node, "holds parameters in children")
    held = vector(labels, axis, size, flow.ties)
    tensors: dict[str, tuple[Factor | None, ...]] = {
        name: (held,) if shape == (size,) else (None,) * len(shape) for name, shape in _own_tensors(module).items()
    }
    flow.layer(path, held, attributes(held) if held.any() else {}, tensors)
    return labels


def norm_module(flow: Flow, node: Node) -> Any:
    """Batch normalisation, along axis 1."""
    return _channel_layer(flow, node, 1, lambda held: {"num_features": Count(held)})


def instance_norm_module(flow: Flow, node: Node) -> Any:
    """Instance normalisation, along axis 1: statistics along the spatial axes."""
    arithmetic.per_channel_rule(flow, node)
    return norm_module(flow, node)


def group_norm_module(flow: Flow, node: Node) -> Any:
    """Group normalisation: groups keep equally many channels."""
    module: Any = flow.modules[str(node.target)]
    counts = ("num_channels", "num_groups") if module.num_groups == module.num_channels else ("num_channels",)
    labels = _channel_layer(flow, node, 1, lambda held: dict.fromkeys(counts, Count(held)))
    return statistics.group_statistics(flow, node, labels, module.num_groups)


def layer_norm_module(flow: Flow, node: Node) -> Any:
    """Layer normalisation over channels: the last axis, or axis 1 for subclasses that say so."""
    module: Any = flow.modules[str(node.target)]
    shape = list(flow.shape(node))
    if len(module.normalized_shape) != 1:
        return flow.freeze(node, "normalises over several axes")
    labels = flow.of(flow.source(node))
    plain = type(module).forward is nn.LayerNorm.forward or len(shape) < 3
    size = module.normalized_shape[0]
    first = not plain and shape[1] == size and (shape[-1] != size or factor_on(labels, 1) is not None)
    axis = 1 if first else len(shape) - 1
    labels = _channel_layer(flow, node, axis, lambda held: {"normalized_shape": (Count(held),)})
    if factor_on(labels, axis) is not None:
        flow.note(node, "normalises over channels")
    return labels


def prelu_module(flow: Flow, node: Node) -> Any:
    """PReLU with one slope, or one per channel."""
    module: Any = flow.modules[str(node.target)]
    if module.num_parameters == 1:
        return flow.of(flow.source(node))
    return _channel_layer(flow, node, 1, lambda held: {"num_parameters": Count(held)})


def unflatten_module(flow: Flow, node: Node) -> Any:
    """``nn.Unflatten``: sizes that count channels are attributes of the module."""
    module: Any = flow.modules[str(node.target)]
    labels = moves.reshape_rule(flow, node)
    start = int(module.dim) % len(flow.shape(flow.source(node)))
    sizes = tuple(count_of(factor_on(labels, start + i), start + i, s) for i, s in enumerate(module.unflattened_size))
    flow.layer(str(node.target), np.zeros(1, np.int64), {"unflattened_size": sizes}, {})
    return labels


def softmax_module(flow: Flow, node: Node) -> Any:
    """``nn.Softmax``: works across its axis."""
    module: Any = flow.modules[str(node.target)]
    axis = statistics.softmax_axis(flow, node, module.dim)
    return statistics.over_axis(flow, node, flow.of(flow.source(node)), axis)


def glu_module(flow: Flow, node: Node) -> Labels:
    """``nn.GLU``: the first half gated by the second."""
    module: Any = flow.modules[str(node.target)]
    return mixing.glu_labels(flow, flow.of(flow.source(node)), int(module.dim) % len(flow.shape(node)))


def shuffle_module(flow: Flow, node: Node) -> Labels:
    """``nn.ChannelShuffle``."""
    module: Any = flow.modules[str(node.target)]
    return moves.shuffle_labels(flow, flow.of(flow.source(node)), module.groups)


def pixel_shuffle_module(flow: Flow, node: Node) -> Labels:
    """``nn.PixelShuffle``."""
    module: Any = flow.modules[str(node.target)]
    return moves.pixel_shuffle_labels(flow, node, module.upscale_factor)


def pixel_unshuffle_module(flow: Flow, node: Node) -> Labels:
    """``nn.PixelUnshuffle``."""
    module: Any = flow.modules[str(node.target)]
    return moves.pixel_unshuffle_labels(flow, node, module.downscale_factor)


def local_norm_module(flow: Flow, node: Node) -> Labels:
    """``nn.LocalResponseNorm``: looks at neighbouring channels."""
    return statistics.channel_statistic_rule(flow, node)


_ELEMENTWISE = """
    ReLU ReLU6 GELU SiLU Mish SELU ELU CELU LeakyReLU RReLU Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softplus
    Softsign Softshrink Hardshrink Tanhshrink LogSigmoid Threshold Identity Dropout Dropout1d Dropout2d Dropout3d
    AlphaDropout FeatureAlphaDropout
"""
_PER_CHANNEL = """
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d LPPool3d AdaptiveAvgPool1d
    AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d FractionalMaxPool2d
    Upsample UpsamplingNearest2d UpsamplingBilinear2d ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d
    ConstantPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d
    ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d
"""


MODULES: dict[type[nn.Module], Rule] = {
    **{getattr(nn, name): arithmetic.elementwise_rule for name in _ELEMENTWISE.split()},
    **{getattr(nn, name): arithmetic.pooling(name) for name in _PER_CHANNEL.split()},
    _ConvNd: conv_module,
    _NormBase: norm_module,
    _InstanceNorm: instance_norm_module,
    nn.Linear: linear_module,
    nn.GroupNorm: group_norm_module,
    nn.LayerNorm: layer_norm_module,
    nn.PReLU: prelu_module,
    nn.Flatten: moves.reshape_rule,
    nn.Unflatten: unflatten_module,
    nn.Softmax: softmax_module,
    nn.LogSoftmax: softmax_module,
    nn.Softmax2d: lambda flow, node: flow.freeze(node, "softmax over channels"),
    nn.GLU: glu_module,
    nn.ChannelShuffle: shuffle_module,
    nn.PixelShuffle: pixel_shuffle_module,
    nn.PixelUnshuffle: pixel_unshuffle_module,
    nn.LocalResponseNorm: local_norm_module,
}
