"""Normalisation, reductions and softmax in functional form.

Statistics over channels (a mean over the channel axis, layer and group normalisation) change when channels are
removed: labels pass, and a note says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from mbs_fx.channels.flow import Count, Flow, Rule
from mbs_fx.channels.labels import Labels, collapse, factor_on, reduce, varying, vector
from mbs_fx.channels.rules.elementwise import elementwise_rule, per_channel_rule, tie_axis_parameters
from mbs_fx.shapes.shapes import TensorShape


def batch_norm_rule(flow: Flow, node: Node) -> Labels:
    """``batch_norm(x, running_mean, running_var, weight, bias)``: all along axis 1."""
    names = ("running_mean", "running_var", "weight", "bias")
    parameters = [flow.arg(node, i + 1, name) for i, name in enumerate(names)]
    return tie_axis_parameters(flow, node, flow.source(node), parameters, 1)


def instance_norm_rule(flow: Flow, node: Node) -> Labels:
    """``instance_norm(x, running_mean, running_var, weight, bias)``: statistics along the spatial axes."""
    per_channel_rule(flow, node)
    return batch_norm_rule(flow, node)


def layer_norm_rule(flow: Flow, node: Node) -> Any:
    """``layer_norm(x, normalized_shape, weight, bias)`` over the last axis."""
    shape = flow.shape(node)
    normalized = flow.value(flow.arg(node, 1, "normalized_shape"))
    if len(normalized) != 1:
        return flow.freeze(node, "normalises over several axes")
    parameters = [flow.arg(node, 2, "weight"), flow.arg(node, 3, "bias")]
    labels = tie_axis_parameters(flow, node, flow.source(node), parameters, len(shape) - 1)
    factor = factor_on(labels, len(shape) - 1)
    if factor is not None:
        flow.note(node, "normalises over channels")
        flow.edit(node, flow.place(node, 1, "normalized_shape"), (Count(factor),))
    return labels


def group_norm_rule(flow: Flow, node: Node) -> Labels:
    """``group_norm(x, num_groups, weight, bias)``: every group keeps equally many channels."""
    parameters = [flow.arg(node, 2, "weight"), flow.arg(node, 3, "bias")]
    labels = tie_axis_parameters(flow, node, flow.source(node), parameters, 1)
    groups, held = int(flow.value(flow.arg(node, 1, "num_groups"))), factor_on(labels, 1)
    if held is not None and groups == flow.shape(node)[1]:
        flow.edit(node, flow.place(node, 1, "num_groups"), Count(held))
    return group_statistics(flow, node, labels, groups)


def group_statistics(flow: Flow, node: Node, labels: Labels, groups: int) -> Labels:
    """Balance the channel axis over the groups of a group normalisation; a group of one channel goes with it."""
    size = flow.shape(node)[1]
    if factor_on(labels, 1) is not None and groups < size:
        flow.ties.balance(vector(labels, 1, size, flow.ties), groups)
        flow.note(node, "normalises over channels")
    return labels


def channel_statistic_rule(flow: Flow, node: Node) -> Labels:
    """Keeps the shape and looks at several channels: local response normalisation, vector normalisation."""
    labels = flow.of(flow.source(node))
    if labels:
        flow.note(node, "looks at several channels at once")
    return labels


def softmax_rule(flow: Flow, node: Node) -> Any:
    """Softmax over an axis: no position of that axis can be removed alone."""
    return over_axis(flow, node, flow.of(flow.source(node)), softmax_axis(flow, node, flow.arg(node, 1, "dim")))


def gumbel_softmax_rule(flow: Flow, node: Node) -> Any:
    """``gumbel_softmax(x, tau, hard, eps, dim)``."""
    return over_axis(flow, node, flow.of(flow.source(node)), softmax_axis(flow, node, flow.arg(node, 4, "dim", -1)))


def softmax_axis(flow: Flow, node: Node, dim: Any) -> int:
    """The axis of a softmax, of which torch chooses one where none is given."""
    rank = len(flow.shape(node))
    value = flow.value(dim)
    return (0 if rank in (0, 1, 3) else 1) if value is None else int(value) % rank


def over_axis(flow: Flow, node: Node, labels: Labels, axis: int) -> Any:
    """Tie what varies along an axis across it; freeze what varies along it alone."""
    result: list[Any] = []
    for factor in labels:
        if varying(factor) == (axis,):
            flow.ties.freeze(factor, f"{flow.where(node)}: works across this axis")
            continue
        result.append(collapse(factor, [axis], flow.ties))
    return tuple(result)


def _reduced_axes(flow: Flow, node: Node, rank: int, place: int) -> Sequence[int] | None:
    dim = flow.value(flow.arg(node, place, "dim", node.kwargs.get("axis")))
    if isinstance(dim, TensorShape):
        return None
    if isinstance(dim, bool) or dim is None or dim == ():
        return range(rank)
    return [int(d) % rank for d in (dim if isinstance(dim, tuple) else (dim,))]


def norm_rule(flow: Flow, node: Node) -> Any:
    """``x.norm(p, dim)``."""
    return reduction_rule(flow, node, place=2)


def reduction_rule(flow: Flow, node: Node, place: int = 1) -> Any:
    """sum, mean, max ... over axes; with a second tensor, max and min are elementwise."""
    source = flow.source(node)
    rank = len(flow.shape(source))
    axes = None if "other" in node.kwargs else _reduced_axes(flow, node, rank, place)
    if axes is None:
        return elementwise_rule(flow, node)
    output = flow.shapes[node.name]
    first = output if isinstance(output, TensorShape) else output[0]
    labels, mixed = reduce(flow.of(source), axes, len(first.shape) == rank, flow.ties)
    if mixed:
        flow.note(node, "computes a statistic over channels")
    return labels if isinstance(output, TensorShape) else [labels] * len(output)


def argument_rule(flow: Flow, node: Node) -> Any:
    """argmax, sort, topk, cumsum: positions along the axis matter."""
    return flow.freeze(node, "positions along its axis matter")


FUNCTIONS: dict[str, Rule] = {
    "batch_norm": batch_norm_rule,
    "layer_norm": layer_norm_rule,
    "group_norm": group_norm_rule,
    "local_response_norm": channel_statistic_rule,
    "normalize": channel_statistic_rule,
    **dict.fromkeys(("softmax", "log_softmax"), softmax_rule),
    "gumbel_softmax": gumbel_softmax_rule,
    "norm": norm_rule,
    "instance_norm": instance_norm_rule,
    **dict.fromkeys(
        [
            "sum",
            "mean",
            "amax",
            "amin",
            "max",
            "min",
            "std",
            "var",
            "prod",
            "logsumexp",
            "var_mean",
            "std_mean",
        ],
        reduction_rule,
    ),
    **dict.fromkeys(["argmax", "argmin", "sort", "topk", "cumsum", "cumprod", "argsort", "median"], argument_rule),
}
