"""Elementwise operations, and operations that work on each channel's map by itself.

An elementwise operation ties the operands that meet in an element.  Pooling, interpolation and the like leave the
channel axis alone; labels on the axes that they mix are frozen.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from mbs_fx.channels.flow import Flow, Rule
from mbs_fx.channels.labels import Labels, along, elementwise, factor_on, varying, vector
from mbs_fx.shapes.shapes import TensorShape


def elementwise_rule(flow: Flow, node: Node) -> Labels:
    """Tie all tensor operands; the result is labelled like them."""
    operands = [n for n in node.all_input_nodes if isinstance(flow.shapes[n.name], TensorShape)]
    if len(operands) == 1 and flow.shape(operands[0]) == flow.shape(node):
        return flow.of(operands[0])
    pairs = [(flow.of(n), flow.shape(n)) for n in operands]
    return elementwise(pairs, flow.shape(node), flow.ties, f"{flow.where(node)}: meets channels that stay")


def addition_rule(flow: Flow, node: Node) -> Labels:
    """An addition also *binds*: the macroblock of a width group is where its channels are first bound."""
    labels = elementwise_rule(flow, node)
    operands = [n for n in node.all_input_nodes if flow.of(n)]
    if len(operands) > 1 and labels:
        flow.additions[node.name] = labels[0]
    return labels


def pooling(name: str) -> Rule:
    """The rule of ``max_pool2d`` and the like, which work along as many of the last axes as their name says."""
    dims = int(name[-2]) if name[-1] == "d" else None

    def rule(flow: Flow, node: Node) -> Any:
        return per_channel_rule(flow, node, dims)

    return rule


def per_channel_rule(flow: Flow, node: Node, dims: int | None = None) -> Any:
    """Labels on the last ``dims`` axes, on which this works, are frozen; without a number, all but the first two."""
    source = flow.source(node)
    labels = flow.of(source)
    rank = len(flow.shape(source))
    output = flow.shapes[node.name]
    if not isinstance(output, TensorShape) or len(output.shape) != rank:
        return flow.freeze(node, "no rule for this form of the operation")
    first = 2 if dims is None else rank - dims
    for factor in labels:
        if any(a >= first for a in varying(factor)):
            return flow.freeze(node, "works across an axis that carries channels")
    return labels


def grid_sample_rule(flow: Flow, node: Node) -> Any:
    """``grid_sample(x, grid)``: the grid holds coordinates, of which none can go."""
    for factor in flow.of(flow.arg(node, 1, "grid")):
        flow.ties.freeze(factor, f"{flow.where(node)}: reads coordinates")
    return per_channel_rule(flow, node)


def first_rule(flow: Flow, node: Node) -> Labels:
    """``type_as(x, other)``: nothing of the second but its type is read."""
    return flow.of(flow.source(node))


def prelu_rule(flow: Flow, node: Node) -> Labels:
    """``prelu(x, weight)``: the weight lies along axis 1."""
    source, weight = flow.source(node), flow.arg(node, 1, "weight")
    return tie_axis_parameters(flow, node, source, [weight], 1)


def tie_axis_parameters(flow: Flow, node: Node, source: Any, parameters: list[Any], axis: int) -> Labels:
    """Tie one-dimensional parameters of a functional layer to one axis of its input."""
    labels, shape = flow.of(source), flow.shape(source)
    for parameter in parameters:
        if isinstance(parameter, Node) and flow.shape(parameter)[:1] not in ((), (1,)):
            own = vector(flow.of(parameter), 0, shape[axis], flow.ties)
            mine = vector(labels, axis, shape[axis], flow.ties)
            flow.ties.tie(own, mine, f"{flow.where(node)}: its parameter cannot be reduced")
            if factor_on(labels, axis) is None:
                labels = (*labels, *along(own, axis, len(shape)))
    return labels


_ELEMENTWISE = """
    sub subtract mul multiply div true_divide truediv floor_divide floordiv pow neg abs exp expm1 log log1p log2
    sqrt rsqrt
    square reciprocal sin cos tan erf sigmoid tanh relu relu6 gelu silu mish selu elu celu leaky_relu rrelu
    hardswish hardsigmoid hardtanh softplus softsign softshrink hardshrink tanhshrink logsigmoid threshold clamp
    clip clamp_min clamp_max round floor ceil trunc sign where maximum minimum fmod remainder lerp addcmul
    addcdiv masked_fill dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    feature_alpha_dropout stochastic_depth drop_path contiguous clone detach float half double bfloat16 to
    type requires_grad nan_to_num zeros_like ones_like full_like rand_like randn_like empty_like
    bernoulli copy fill zero eq ne lt le gt ge logical_and logical_or logical_not isnan isfinite rsub
    pos positive bool int long cuda cpu and or invert atan nanmean_like
"""
_PER_CHANNEL = """
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    _max_pool1d _max_pool2d _max_pool3d boolean_dispatch interpolate upsample upsample_nearest upsample_bilinear
"""

FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise_rule),
    **{name: pooling(name) for name in _PER_CHANNEL.split()},
    "add": addition_rule,
    "prelu": prelu_rule,
    "grid_sample": grid_sample_rule,
    "type_as": first_rule,
}
