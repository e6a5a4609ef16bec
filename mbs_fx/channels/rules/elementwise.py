"""Elementwise operations, and operations that work on each channel's map by itself.

An elementwise operation ties the operands that meet in an element.  Pooling, interpolation and the like leave the
channel axis alone; labels on the axes that they mix are frozen.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import Factor, Labels, along, elementwise, factor_on, varying, vector
from mbs_fx.channels.records import LabelResult
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.call import TensorShape
from mbs_fx.operations.register import channels


def elementwise_rule(call: ChannelCall) -> Any:
    """Tie all tensor operands; every result is labelled like them."""
    operands = [n for n in call.node.all_input_nodes if isinstance(call.values[n.name], TensorShape)]
    value = call.returned
    if not isinstance(value, TensorShape):
        return [_met(call, operands, part.shape) for part in value]
    return _met(call, operands, value.shape)


channels.elementwise = elementwise_rule


def _met(call: ChannelCall, operands: list[Node], shape: tuple[int, ...]) -> Labels:
    if len(operands) == 1 and call.shape_of(operands[0]) == shape:
        return call.of(operands[0])
    pairs = [(call.of(n), call.shape_of(n)) for n in operands]
    return elementwise(pairs, shape, call.ties, f"{call.where}: meets channels that stay")


@channels(v.ADD)
def addition_rule(call: ChannelCall) -> LabelResult:
    """An addition also *binds*: the macroblock of a width group is where its channels are first bound."""
    labels = elementwise_rule(call)
    operands = [n for n in call.node.all_input_nodes if call.of(n)]
    return LabelResult(labels, added=labels[0] if len(operands) > 1 and labels else None)


@channels(
    *(*v.MAX_POOL, *v.AVG_POOL, *v.LP_POOL, *v.ADAPTIVE_POOL, *v.FRACTIONAL_POOL, *v.PADDING),
    v.INTERPOLATE,
)
def per_channel_rule(call: ChannelCall) -> Any:
    """Labels on the last axes, on which this works, are frozen; without a number of axes, all but the first two."""
    labels, rank = call.input, len(call.input_shape)
    output = call.returned
    if not isinstance(output, TensorShape) or len(output.shape) != rank:
        return call.freeze("no rule for this form of the operation")
    dims = call.operation.dims if call.operation is not None else None
    first = 2 if dims is None else rank - dims
    if any(a >= first for factor in labels for a in varying(factor)):
        return call.freeze("works across an axis that carries channels")
    return labels


@channels(*v.UNPOOL)
def unpool_rule(call: ChannelCall) -> Any:
    """``max_unpool(x, indices)``: the indices have the channels of the values."""
    labels, shape = call.input, call.input_shape
    if any(a >= 2 for factor in labels for a in varying(factor)):
        return call.freeze("works across an axis that carries channels")
    reason = f"{call.where}: meets channels that stay"
    return elementwise([(labels, shape), (call.of(call.argument("indices")), shape)], shape, call.ties, reason)


@channels(v.GRID_SAMPLE)
def grid_sample_rule(call: ChannelCall) -> Any:
    """``grid_sample(x, grid)``: the grid holds coordinates, of which none can go."""
    for factor in call.of(call.argument("grid")):
        call.ties.freeze(factor, f"{call.where}: reads coordinates")
    return per_channel_rule(call)


@channels(v.TYPE_AS)
def first_rule(call: ChannelCall) -> Labels:
    """``type_as(x, other)``: nothing of the second but its type is read."""
    return call.input


def tie_axis_parameters(call: ChannelCall, parameters: list[Any], axis: int) -> Labels:
    """Tie one-dimensional parameters of a functional layer to one axis of its input."""
    labels, shape = call.input, call.input_shape
    for parameter in parameters:
        if isinstance(parameter, Node) and call.shape_of(parameter)[:1] not in ((), (1,)):
            own = vector(call.of(parameter), 0, shape[axis], call.ties)
            mine: Factor = vector(labels, axis, shape[axis], call.ties)
            call.ties.tie(own, mine, f"{call.where}: its parameter cannot be reduced")
            if factor_on(labels, axis) is None:
                labels = (*labels, *along(own, axis, len(shape)))
    return labels
