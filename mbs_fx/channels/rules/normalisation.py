"""Normalisation, reductions and softmax.

Statistics over channels (a mean over the channel axis, layer and group normalisation) change when channels are
removed: labels pass, and a note says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import Factor, Labels, collapse, factor_on, reduce, varying, vector
from mbs_fx.channels.records import Count, LabelResult
from mbs_fx.channels.rules.elementwise import elementwise_rule, tie_axis_parameters
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.call import TensorShape
from mbs_fx.operations.register import channels


def batch_norm_function(call: ChannelCall) -> Labels:
    """``batch_norm(x, running_mean, running_var, weight, bias)``: all along axis 1, in whichever order."""
    names = ("running_mean", "running_var", "weight", "bias")
    return tie_axis_parameters(call, [call.argument(name) for name in names], 1)


def across_maps(call: ChannelCall) -> LabelResult | None:
    """A refusal where statistics along the spatial axes would be statistics over channels."""
    if any(a >= 2 for factor in call.input for a in varying(factor)):
        return call.freeze("works across an axis that carries channels")
    return None


def layer_norm_function(call: ChannelCall) -> Any:
    """``layer_norm(x, normalized_shape, weight, bias)`` over the last axis."""
    last = len(call.shape) - 1
    if len(call.value("normalized_shape")) != 1:
        return call.freeze("normalises over several axes")
    labels = tie_axis_parameters(call, [call.argument("weight"), call.argument("bias")], last)
    factor = factor_on(labels, last)
    if factor is None:
        return labels
    return LabelResult(labels, (call.edit("normalized_shape", (Count(factor),)),), ("normalises over channels",))


def group_norm_function(call: ChannelCall) -> LabelResult:
    """``group_norm(x, num_groups, weight, bias)``: every group keeps equally many channels."""
    labels = tie_axis_parameters(call, [call.argument("weight"), call.argument("bias")], 1)
    groups, held = int(call.value("num_groups")), factor_on(labels, 1)
    alone = held is not None and groups == call.shape[1]
    edits = (call.edit("num_groups", Count(held)),) if held is not None and alone else ()
    return LabelResult(labels, edits, group_statistics(call, labels, groups))


def group_statistics(call: ChannelCall, labels: Labels, groups: int) -> tuple[str, ...]:
    """Balance the channel axis over the groups of a group normalisation; a group of one channel goes with it."""
    size = call.shape[1]
    if factor_on(labels, 1) is None or groups >= size:
        return ()
    call.ties.balance_statistics(vector(labels, 1, size, call.ties), groups)
    return ("normalises over channels",)


@channels(v.LOCAL_NORM, v.NORMALIZE)
def channel_statistic_rule(call: ChannelCall) -> LabelResult:
    """Keeps the shape and looks at several channels: local response normalisation, vector normalisation."""
    labels = call.input
    return LabelResult(labels, notes=("looks at several channels at once",) if labels else ())


@channels(v.SOFTMAX, v.GUMBEL_SOFTMAX)
def softmax_rule(call: ChannelCall) -> Labels:
    """Softmax over an axis, of which torch chooses one where none is given; no position of it can be removed alone."""
    rank = len(call.shape)
    chosen = -1 if call.operation is v.GUMBEL_SOFTMAX else 0 if rank in (0, 1, 3) else 1
    axis = call.axis("dim", chosen)
    result: list[Factor] = []
    for factor in call.input:
        if varying(factor) == (axis,):
            call.ties.freeze(factor, f"{call.where}: works across this axis")
            continue
        result.append(collapse(factor, [axis], call.ties))
    return tuple(result)


@channels(v.SOFTMAX2D)
def softmax2d_rule(call: ChannelCall) -> LabelResult:
    """Softmax over the channels."""
    return call.freeze("softmax over channels")


def _reduced_axes(call: ChannelCall, rank: int) -> Sequence[int] | None:
    dim = call.value("dim")
    if isinstance(dim, TensorShape):
        return None
    if isinstance(dim, bool) or dim is None or dim == ():
        return range(rank)
    return [int(d) % rank for d in (dim if isinstance(dim, tuple) else (dim,))]


@channels(v.REDUCTION, v.EXTREMUM, v.NORM)
def reduction_rule(call: ChannelCall) -> Any:
    """sum, mean, max ... over axes; with a second tensor, max and min are elementwise."""
    rank = len(call.input_shape)
    axes = _reduced_axes(call, rank)
    if axes is None:
        return elementwise_rule(call)
    output = call.returned
    first = output if isinstance(output, TensorShape) else output[0]
    labels, mixed = reduce(call.input, axes, len(first.shape) == rank, call.ties)
    notes = ("computes a statistic over channels",) if mixed else ()
    return LabelResult(labels if isinstance(output, TensorShape) else [labels] * len(output), notes=notes)


@channels(v.ARGUMENT, v.SCAN, v.QUANTILE)
def position_rule(call: ChannelCall) -> LabelResult:
    """argmax, sort, topk, cumsum, median: positions along the axis matter."""
    return call.freeze("positions along its axis matter")
