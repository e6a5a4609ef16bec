"""Layers: which attributes of a module count channels, and along which axes their tensors carry which labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import Factor, Labels, along, factor_on, vector, without
from mbs_fx.channels.records import ConvFlow, Count, LabelResult, Layer
from mbs_fx.channels.rules import contractions as mixing
from mbs_fx.channels.rules import normalisation as statistics
from mbs_fx.channels.rules.computed_weights import Axes, tensors_behind, why_kept
from mbs_fx.channels.rules.elementwise import tie_axis_parameters
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.call import TensorShape
from mbs_fx.operations.register import channels
from mbs_fx.runtime.torch_private import ConvTransposeNd
from mbs_fx.shapes.fake_interpreter import stand_in
from mbs_fx.tracing.check import seeded


def _own_tensors(module: nn.Module) -> dict[str, tuple[int, ...]]:
    held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tuple(t.shape) for name, t in held}


@channels(*v.CONVOLUTIONS)
def convolution_rule(call: ChannelCall) -> LabelResult:
    """Any convolution: regular, grouped, depthwise, transposed; subclasses included."""
    module: Any = call.module
    if module is None:
        return mixing.convolution_function(call)
    groups, out_width = int(module.groups), int(module.out_channels)
    if _takes_other_maps(call, module):
        inp = np.zeros(module.in_channels, np.int64)
        mixer = ConvFlow(np.zeros(out_width, np.int64), inp, groups, call.path)
        return mixing.kept(call, "a convolution that takes or returns several maps, or others than it convolves", mixer)
    mixing.require_batch(call, len(module.kernel_size))
    passed = mixing.along_channels(call, module.kernel_size, module.groups, call.path)
    if passed is not None:
        return passed
    inp = vector(call.input, 1, module.in_channels, call.ties)
    why = why_kept(module)
    if why:
        return mixing.kept(call, why, ConvFlow(np.zeros(out_width, np.int64), inp, groups, call.path))
    depthwise = 1 < groups == module.in_channels
    if depthwise:
        out = mixing.depthwise_output(inp, out_width)
    else:
        known = call.layers.get(call.path)
        out = known.out if known else call.ties.new(out_width)
        if groups > 1:
            mixing.balance_groups(call, out, inp, groups)
    attributes: dict[str, Any] = {"in_channels": Count(inp), "out_channels": Count(out)}
    if depthwise:
        attributes["groups"] = Count(inp)
    tensors, notes = _conv_tensors(module, inp, out)
    if _computes_weight(module):
        notes = (*notes, "computes its weight from all of its inputs")
    return LabelResult(
        (*without(call.input, 1), *along(out, 1, len(call.shape))),
        notes=notes,
        layer=Layer(attributes, tensors, out),
        mixer=ConvFlow(out, inp, groups, call.path),
    )


def _takes_other_maps(call: ChannelCall, module: Any) -> bool:
    """Whether a class of somebody's own takes or returns more than one map, or one of another number of axes."""
    if not isinstance(call.returned, TensorShape) or len(call.node.all_input_nodes) > 1:
        return True
    own = not type(module).forward.__module__.startswith("torch.") and not is_parametrized(module)
    return own and len(call.input_shape) < len(module.kernel_size) + 2


def _computes_weight(module: Any) -> bool:
    """Whether a convolution class with a forward of its own does more than convolve (weight standardisation).

    Then twice the weight does not give twice the output.  Without numbers nothing is known, and it counts as such.
    """
    if type(module).forward.__module__.startswith("torch.") or "weight" not in module._parameters:
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


def _conv_tensors(module: Any, inp: Factor, out: Factor) -> tuple[dict[str, Axes], tuple[str, ...]]:
    """Axes of a convolution's tensors, and notes; each group sees one part of the inputs (transposed: of the outputs).

    Such an axis is labelled (groups, positions in a group): all groups keep equally many.
    """
    kernel = (None,) * len(module.kernel_size)
    depthwise = 1 < module.groups == module.in_channels
    first, other = (inp, out) if isinstance(module, ConvTransposeNd) else (out, inp)
    weight = (first, None if depthwise else other.reshape(module.groups, -1), *kernel)
    behind, notes = tensors_behind(module, {"weight": weight, "bias": (out,)})
    tensors: dict[str, Axes] = {}
    size = (len(first), 1 if depthwise else len(other) // module.groups, *module.kernel_size)
    for name, shape in _own_tensors(module).items():
        if shape == size:
            tensors[name] = weight
        elif shape and shape[0] == len(out) and all(s == 1 for s in shape[1:]):
            tensors[name] = (out, *(None for _ in shape[1:]))
        else:
            tensors[name] = (None,) * len(shape)
    return tensors | behind, notes


@channels(v.LINEAR)
def linear_rule(call: ChannelCall) -> LabelResult:
    """A linear layer on the last axis."""
    module: Any = call.module
    if module is None:
        return mixing.linear_function(call)
    rank, labels = len(call.shape), call.input
    inp = vector(labels, rank - 1, module.in_features, call.ties)
    why = why_kept(module)
    if why:
        return mixing.kept(call, why, ConvFlow(np.zeros(module.out_features, np.int64), inp, 1, call.path))
    known = call.layers.get(call.path)
    out = known.out if known else call.ties.new(int(module.out_features))
    own: dict[str, Axes] = {"weight": (out, inp), "bias": (out,)}
    behind, notes = tensors_behind(module, own)
    tensors = {name: own[name] for name in _own_tensors(module) if name in own} | behind
    return LabelResult(
        (*without(labels, rank - 1), *along(out, rank - 1, rank)),
        notes=notes,
        layer=Layer({"in_features": Count(inp), "out_features": Count(out)}, tensors, out),
        mixer=ConvFlow(out, inp, 1, call.path),
    )


def _channel_layer(
    call: ChannelCall, module: nn.Module, axis: int, attributes: Callable[[Factor], dict[str, Any]]
) -> LabelResult:
    """A layer with one number (or none) per channel along one axis; it is recorded for channels that stay, too."""
    labels, size = call.input, call.input_shape[axis]
    if any(True for child in module.children() for _ in child.parameters()):
        return call.freeze("holds parameters in children")
    held = vector(labels, axis, size, call.ties)
    tensors: dict[str, tuple[Factor | None, ...]] = {
        name: (held,) if shape == (size,) else (None,) * len(shape) for name, shape in _own_tensors(module).items()
    }
    return LabelResult(labels, layer=Layer(attributes(held) if held.any() else {}, tensors, held))


@channels(v.BATCH_NORM)
def batch_norm_rule(call: ChannelCall) -> Any:
    """Batch normalisation, along axis 1."""
    if call.module is None:
        return statistics.batch_norm_function(call)
    return _channel_layer(call, call.module, 1, lambda held: {"num_features": Count(held)})


@channels(v.INSTANCE_NORM)
def instance_norm_rule(call: ChannelCall) -> Any:
    """Instance normalisation, along axis 1: statistics along the spatial axes."""
    found = batch_norm_rule(call)
    result = found if isinstance(found, LabelResult) else LabelResult(found)
    refused = statistics.across_maps(call)
    return result if refused is None else replace(result, refused=refused.refused)


@channels(v.GROUP_NORM)
def group_norm_rule(call: ChannelCall) -> LabelResult:
    """Group normalisation: groups keep equally many channels."""
    module: Any = call.module
    if module is None:
        return statistics.group_norm_function(call)
    counts = ("num_channels", "num_groups") if module.num_groups == module.num_channels else ("num_channels",)
    result = _channel_layer(call, module, 1, lambda held: dict.fromkeys(counts, Count(held)))
    return replace(result, notes=statistics.group_statistics(call, result.labels, module.num_groups))


@channels(v.LAYER_NORM)
def layer_norm_rule(call: ChannelCall) -> Any:
    """Layer normalisation over channels: the last axis, or axis 1 for subclasses that say so."""
    module: Any = call.module
    if module is None:
        return statistics.layer_norm_function(call)
    shape = list(call.shape)
    if len(module.normalized_shape) != 1:
        return call.freeze("normalises over several axes")
    plain = type(module).forward is nn.LayerNorm.forward or len(shape) < 3
    size = module.normalized_shape[0]
    first = not plain and shape[1] == size and (shape[-1] != size or factor_on(call.input, 1) is not None)
    axis = 1 if first else len(shape) - 1
    result = _channel_layer(call, module, axis, lambda held: {"normalized_shape": (Count(held),)})
    over = factor_on(result.labels, axis) is not None
    return replace(result, notes=("normalises over channels",) if over else ())


@channels(v.PRELU)
def prelu_rule(call: ChannelCall) -> LabelResult | Labels:
    """PReLU with one slope, or one per channel along axis 1."""
    module: Any = call.module
    if module is None:
        return tie_axis_parameters(call, [call.argument("weight")], 1)
    if module.num_parameters == 1:
        return call.input
    return _channel_layer(call, module, 1, lambda held: {"num_parameters": Count(held)})
