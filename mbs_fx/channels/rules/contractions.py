"""Operations that mix channels, in functional form: convolution, linear, matmul, einsum, attention.

They read the labels on the axis that they contract and give new ones to what they make.  A functional
convolution takes the labels of its weight, whether that is a parameter or computed from one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from mbs_fx.channels.flow import ConvFlow, Count, Flow, Rule
from mbs_fx.channels.labels import Factor, Labels, along, elementwise, factor_on, varying, vector, without
from mbs_fx.errors import MBSError


def depthwise_output(inp: Factor, out_width: int) -> Factor:
    """A depthwise convolution's outputs are its inputs' channels, each as often as the multiplier says."""
    return np.repeat(inp, out_width // len(inp))


def balance_groups(flow: Flow, out: Factor, inp: Factor, groups: int) -> None:
    """Every group of a grouped convolution keeps equally many inputs and equally many outputs."""
    flow.ties.balance(out, groups)
    flow.ties.balance(inp, groups)


def neighbours(flow: Flow, node: Node, source: Any) -> Labels | None:
    """A convolution that slides along the channels (efficient channel attention): labels pass, with a note."""
    labels, before, after = flow.of(source), flow.shape(source), flow.shape(node)
    sliding = [f for f in labels if any(a >= 2 for a in varying(f))]
    if not sliding:
        return None
    if before == after and before[1] == 1 and all(len(varying(f)) == 1 for f in sliding):
        flow.note(node, "slides along the channels, which become others' neighbours")
        return labels
    return flow.freeze(node, "convolves along an axis that carries channels")


def require_batch(flow: Flow, node: Node, source: Any, dims: int) -> None:
    """A single map without a batch axis would have its channels where everything here takes the batch to be."""
    shape = flow.shape(source)
    if len(shape) < dims + 2:
        example = ", ".join(map(str, (1, 3, *(64,) * dims)))
        raise MBSError(
            f"{flow.where(node)}: takes a map of shape {shape}, without a batch axis; give an example with one, "
            f"such as ({example})"
        )


def conv_rule(flow: Flow, node: Node) -> Any:
    """``conv(x, weight, bias, stride, padding, dilation, groups)``."""
    source, weight = flow.source(node), flow.arg(node, 1, "weight")
    require_batch(flow, node, source, len(flow.shape(weight)) - 2)
    passed = neighbours(flow, node, source)
    if passed is not None:
        return passed
    groups = int(flow.value(flow.arg(node, 6, "groups", 1)))
    return _convolve(flow, node, source, weight, groups, transposed=False)


def conv_transpose_rule(flow: Flow, node: Node) -> Any:
    """``conv_transpose(x, weight, bias, stride, padding, output_padding, groups, dilation)``."""
    source, weight = flow.source(node), flow.arg(node, 1, "weight")
    require_batch(flow, node, source, len(flow.shape(weight)) - 2)
    groups = int(flow.value(flow.arg(node, 6, "groups", 1)))
    return _convolve(flow, node, source, weight, groups, transposed=True)


def _convolve(flow: Flow, node: Node, source: Any, weight: Any, groups: int, transposed: bool) -> Labels:
    rank, in_width, out_width = len(flow.shape(node)), flow.shape(source)[1], flow.shape(node)[1]
    labels = flow.of(weight)
    inp = vector(flow.of(source), 1, in_width, flow.ties)
    note_computed(flow, node, weight)
    reason = f"{flow.where(node)}: its weight cannot be reduced"
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    rows = vector(labels, out_axis, flow.shape(weight)[out_axis], flow.ties)
    columns = vector(labels, in_axis, flow.shape(weight)[in_axis], flow.ties)
    for factor in without(without(labels, 0), 1):
        flow.ties.freeze(factor, reason)
    if 1 < groups == in_width:
        out = depthwise_output(inp, out_width)
        flow.ties.tie(rows if not transposed else np.tile(rows, groups), out, reason)
        if transposed:
            flow.ties.tie(columns, inp, reason)
        flow.edit(node, flow.place(node, 6, "groups"), Count(inp))
    else:
        out = np.tile(rows, groups) if transposed and groups > 1 else rows
        inner = columns if transposed else np.tile(columns, groups)
        flow.ties.tie(inner, inp, reason)
        if groups > 1:
            balance_groups(flow, out, inp, groups)
    bias = flow.arg(node, 2, "bias")
    if isinstance(bias, Node):
        flow.ties.tie(vector(flow.of(bias), 0, out_width, flow.ties), out, reason)
    flow.mixers[node.name] = ConvFlow(out, inp, groups, weight.target if weight.op == "get_attr" else "")
    return (*without(flow.of(source), 1), *along(out, 1, rank))


def note_computed(flow: Flow, node: Node, weight: Node) -> None:
    """A weight that is computed (an exponential) need not be zero where the parameter behind it is."""
    if weight.op != "get_attr":
        flow.note(node, "takes a weight that is computed")


def linear_rule(flow: Flow, node: Node) -> Labels:
    """``linear(x, weight, bias)``."""
    source, weight, bias = flow.source(node), flow.arg(node, 1, "weight"), flow.arg(node, 2, "bias")
    shape = flow.shape(node)
    inp = vector(flow.of(source), len(shape) - 1, flow.shape(source)[-1], flow.ties)
    note_computed(flow, node, weight)
    reason = f"{flow.where(node)}: its weight cannot be reduced"
    flow.ties.tie(vector(flow.of(weight), 1, len(inp), flow.ties), inp, reason)
    out = vector(flow.of(weight), 0, shape[-1], flow.ties)
    if isinstance(bias, Node):
        flow.ties.tie(vector(flow.of(bias), 0, shape[-1], flow.ties), out, reason)
    return (*without(flow.of(source), len(shape) - 1), *along(out, len(shape) - 1, len(shape)))


def _contract(flow: Flow, node: Node, tensors: Sequence[Any], axes: Sequence[int]) -> None:
    """Tie the single-axis factors that are summed over together; freeze what cannot be."""
    held = [factor_on(flow.of(tensor), axis) for tensor, axis in zip(tensors, axes, strict=True)]
    factors = [f for f in held if f is not None]
    if factors and len(factors) == len(held) and all(len(varying(f)) == 1 for f in factors):
        for other in factors[1:]:
            flow.ties.tie(factors[0], other, f"{flow.where(node)}: inner product with channels that stay")
        if all(tensor.op != "get_attr" for tensor in tensors):
            flow.note(node, "sums over channels, which need not be zero where their layers' numbers are")
        return
    for factor in factors:
        flow.ties.freeze(factor, f"{flow.where(node)}: inner product over channels, as in attention")


def matmul_rule(flow: Flow, node: Node) -> Any:
    """``a @ b``: the contracted axis is tied, rows and columns and batch axes pass."""
    a, b = flow.source(node), flow.arg(node, 1, "other", node.kwargs.get("mat2"))
    shapes = flow.shape(a), flow.shape(b)
    if min(map(len, shapes)) < 2:
        return flow.freeze(node, "product with a vector")
    ranks = len(shapes[0]), len(shapes[1])
    left, right = flow.of(a), flow.of(b)
    _contract(flow, node, (a, b), (ranks[0] - 1, ranks[1] - 2))
    operands = [
        (without(left, ranks[0] - 1), (*shapes[0][:-1], 1)),
        (without(right, ranks[1] - 2), (*shapes[1][:-2], 1, shapes[1][-1])),
    ]
    return elementwise(operands, flow.shape(node), flow.ties, f"{flow.where(node)}: meets channels that stay")


def einsum_rule(flow: Flow, node: Node) -> Any:
    """``einsum(equation, ...)``: letters that vanish are contracted, the others pass."""
    equation = flow.value(flow.source(node))
    given = node.args[1:]
    tensors = list(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else list(given)
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return flow.freeze(node, "einsum in a form that is not followed")
    inputs, output = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    for letter in sorted(set("".join(terms)) - set(output)):
        held = [(t, term.index(letter)) for term, t in zip(terms, tensors, strict=True) if letter in term]
        _contract(flow, node, *zip(*held, strict=True))
    operands: list[tuple[Labels, tuple[int, ...]]] = []
    for term, tensor in zip(terms, tensors, strict=True):
        labels = flow.of(tensor)
        for axis, letter in enumerate(term):
            if letter not in output:
                labels = without(labels, axis)
        operands.append(_to_output(labels, flow.shape(tensor), term, output))
    return elementwise(operands, flow.shape(node), flow.ties, f"{flow.where(node)}: meets channels that stay")


def _to_output(labels: Labels, shape: Sequence[int], term: str, output: str) -> tuple[Labels, tuple[int, ...]]:
    """Labels and shape of an einsum operand with its axes in the order of the result."""
    present = [letter for letter in output if letter in term]
    order = [term.index(letter) for letter in present]
    rest = [axis for axis in range(len(term)) if axis not in order]
    moved: list[Factor] = []
    for factor in labels:
        kept = factor.transpose([*order, *rest]).reshape([factor.shape[a] for a in order])
        sizes = iter(kept.shape)
        moved.append(kept.reshape([next(sizes) if letter in term else 1 for letter in output]))
    sizes = tuple(shape[term.index(letter)] if letter in term else 1 for letter in output)
    return tuple(moved), sizes


def attention_rule(flow: Flow, node: Node) -> Any:
    """Fused attention keeps its width."""
    return flow.freeze(node, "attention keeps its width")


def glu_rule(flow: Flow, node: Node) -> Labels:
    """``glu(x, dim)``: the first half gated by the second."""
    rank = len(flow.shape(node))
    axis = int(flow.value(flow.arg(node, 1, "dim", -1))) % rank
    return glu_labels(flow, flow.of(flow.source(node)), axis)


def glu_labels(flow: Flow, labels: Labels, axis: int) -> Labels:
    """Tie the two halves of an axis."""
    result: list[Factor] = []
    for factor in labels:
        if factor.shape[axis] > 1:
            first, second = np.split(factor, 2, axis)
            flow.ties.tie(first, second)
            factor = first
        result.append(factor)
    return tuple(result)


FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv_rule),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose_rule),
    **dict.fromkeys(("matmul", "bmm", "mm"), matmul_rule),
    "linear": linear_rule,
    "einsum": einsum_rule,
    "scaled_dot_product_attention": attention_rule,
    "glu": glu_rule,
}
