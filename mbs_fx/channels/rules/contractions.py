"""Operations that mix channels, in functional form: convolution, linear, matmul, einsum, attention.

They read the labels on the axis that they contract and give new ones to what they make.  A functional
convolution takes the labels of its weight, whether that is a parameter or computed from one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.fx import Node

from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import FROZEN, Factor, Labels, along, elementwise, factor_on, varying, vector, without
from mbs_fx.channels.records import ConvFlow, Count, LabelResult
from mbs_fx.errors import MBSError
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.register import channels


def depthwise_output(inp: Factor, out_width: int) -> Factor:
    """A depthwise convolution's outputs are its inputs' channels, each as often as the multiplier says."""
    return np.repeat(inp, out_width // len(inp))


def balance_groups(call: ChannelCall, out: Factor, inp: Factor, groups: int) -> None:
    """Every group of a grouped convolution keeps equally many inputs and equally many outputs."""
    call.ties.balance(out, groups)
    call.ties.balance(inp, groups)


def kept(call: ChannelCall, why: str, mixer: ConvFlow) -> LabelResult:
    """A layer that keeps the widths on both of its sides; it is a layer of the network all the same."""
    return LabelResult(FROZEN, mixer=mixer, refused=why)


def along_channels(call: ChannelCall, kernel: Sequence[int], groups: int, path: str) -> LabelResult | None:
    """A convolution that slides along the channels (efficient channel attention): labels pass, with a note.

    One of a single pixel mixes nothing along such an axis.  A map that a linear layer made, viewed as (channels,
    height, width), has its channels along all three: they go as whole channels.
    """
    labels, before, after = call.input, call.input_shape, call.shape
    sliding = [f for f in labels if any(a >= 2 for a in varying(f))]
    if (max(kernel) == 1 and before[2:] == after[2:]) or all(f.shape[1] > 1 for f in sliding):
        return None
    if before == after and before[1] == 1 and all(len(varying(f)) == 1 for f in sliding):
        return LabelResult(labels, notes=("slides along the channels, which become others' neighbours",))
    inp = vector(labels, 1, before[1], call.ties)
    return kept(
        call,
        "convolves along an axis that carries channels",
        ConvFlow(np.zeros(after[1], np.int64), inp, groups, path),
    )


def require_batch(call: ChannelCall, dims: int) -> None:
    """A single map without a batch axis would have its channels where everything here takes the batch to be."""
    shape = call.input_shape
    if len(shape) < dims + 2:
        example = ", ".join(map(str, (1, 3, *(64,) * dims)))
        raise MBSError(
            f"{call.where}: takes a map of shape {shape}, without a batch axis; give an example with one, "
            f"such as ({example})"
        )


def convolution_function(call: ChannelCall) -> LabelResult:
    """``conv(x, weight, bias, ...)`` and ``conv_transpose``, whose weights may be computed."""
    weight = call.argument("weight")
    require_batch(call, len(call.shape_of(weight)) - 2)
    groups, transposed = int(call.value("groups", 1)), call.operation in v.CONV_TRANSPOSE
    path = str(weight.target) if weight.op == "get_attr" else ""
    passed = along_channels(call, call.shape_of(weight)[2:], groups, path)
    if passed is not None:
        return passed
    labels, in_width, out_width = call.of(weight), call.input_shape[1], call.shape[1]
    inp = vector(call.input, 1, in_width, call.ties)
    reason = f"{call.where}: its weight cannot be reduced"
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    rows = vector(labels, out_axis, call.shape_of(weight)[out_axis], call.ties)
    columns = vector(labels, in_axis, call.shape_of(weight)[in_axis], call.ties)
    for factor in without(without(labels, 0), 1):
        call.ties.freeze(factor, reason)
    depthwise = 1 < groups == in_width
    if depthwise:
        out = depthwise_output(inp, out_width)
        call.ties.tie(rows if not transposed else np.tile(rows, groups), out, reason)
        if transposed:
            call.ties.tie(columns, inp, reason)
    else:
        out = np.tile(rows, groups) if transposed and groups > 1 else rows
        call.ties.tie(columns if transposed else np.tile(columns, groups), inp, reason)
        if groups > 1:
            balance_groups(call, out, inp, groups)
    _tie_bias(call, out)
    if call.operation is v.DEFORMABLE_CONV:
        _keep_offsets(call)
    return LabelResult(
        (*without(call.input, 1), *along(out, 1, len(call.shape))),
        edits=(call.edit("groups", Count(inp)),) if depthwise else (),
        notes=_computed(weight),
        mixer=ConvFlow(out, inp, groups, path),
    )


def _keep_offsets(call: ChannelCall) -> None:
    """The maps that say where a deformable convolution looks have one channel for each tap of the kernel."""
    for name in ("offset", "mask"):
        for factor in call.of(call.argument(name)):
            call.ties.freeze(factor, f"{call.where}: gives one {name} for each tap of the kernel")


def _tie_bias(call: ChannelCall, out: Factor) -> None:
    bias = call.argument("bias")
    if isinstance(bias, Node):
        own = vector(call.of(bias), 0, len(out), call.ties)
        call.ties.tie(own, out, f"{call.where}: its weight cannot be reduced")


def _computed(weight: Node) -> tuple[str, ...]:
    """A weight that is computed (an exponential) need not be zero where the parameter behind it is."""
    return () if weight.op == "get_attr" else ("takes a weight that is computed",)


def linear_function(call: ChannelCall) -> LabelResult:
    """``linear(x, weight, bias)``."""
    weight, shape = call.argument("weight"), call.shape
    last = len(shape) - 1
    inp = vector(call.input, last, call.input_shape[-1], call.ties)
    reason = f"{call.where}: its weight cannot be reduced"
    call.ties.tie(vector(call.of(weight), 1, len(inp), call.ties), inp, reason)
    out = vector(call.of(weight), 0, shape[-1], call.ties)
    _tie_bias(call, out)
    return LabelResult((*without(call.input, last), *along(out, last, len(shape))), notes=_computed(weight))


def _contract(call: ChannelCall, tensors: Sequence[Any], axes: Sequence[int]) -> tuple[str, ...]:
    """Tie the single-axis factors that are summed over together, with a note; freeze what cannot be."""
    held = [factor_on(call.of(tensor), axis) for tensor, axis in zip(tensors, axes, strict=True)]
    factors = [f for f in held if f is not None]
    if factors and len(factors) == len(held) and all(len(varying(f)) == 1 for f in factors):
        for other in factors[1:]:
            call.ties.tie(factors[0], other, f"{call.where}: inner product with channels that stay")
        if all(tensor.op != "get_attr" for tensor in tensors):
            return ("sums over channels, which need not be zero where their layers' numbers are",)
        return ()
    for factor in factors:
        call.ties.freeze(factor, f"{call.where}: inner product over channels, as in attention")
    return ()


@channels(v.MATMUL)
def matmul_rule(call: ChannelCall) -> Any:
    """``a @ b``: the contracted axis is tied, rows and columns and batch axes pass."""
    a, b = call.source, call.argument("other")
    return product(call, a, b)


def product(call: ChannelCall, a: Any, b: Any) -> LabelResult:
    """The matrix product of two tensors."""
    shapes = call.shape_of(a), call.shape_of(b)
    if min(map(len, shapes)) < 2:
        return call.freeze("product with a vector")
    ranks = len(shapes[0]), len(shapes[1])
    left, right = call.of(a), call.of(b)
    notes = _contract(call, (a, b), (ranks[0] - 1, ranks[1] - 2))
    operands = [
        (without(left, ranks[0] - 1), (*shapes[0][:-1], 1)),
        (without(right, ranks[1] - 2), (*shapes[1][:-2], 1, shapes[1][-1])),
    ]
    reason = f"{call.where}: meets channels that stay"
    return LabelResult(elementwise(operands, call.shape, call.ties, reason), notes=notes)


@channels(v.EINSUM)
def einsum_rule(call: ChannelCall) -> LabelResult:
    """``einsum(equation, ...)``: letters that vanish are contracted, the others pass."""
    equation = call.evaluated(call.source)
    tensors, _, _ = call.collected("operands")
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return call.freeze("einsum in a form that is not followed")
    inputs, output = equation.replace(" ", "").split("->")
    terms = inputs.split(",")
    notes: tuple[str, ...] = ()
    for letter in sorted(set("".join(terms)) - set(output)):
        held = [(t, term.index(letter)) for term, t in zip(terms, tensors, strict=True) if letter in term]
        notes += _contract(call, [t for t, _ in held], [axis for _, axis in held])
    operands: list[tuple[Labels, tuple[int, ...]]] = []
    for term, tensor in zip(terms, tensors, strict=True):
        labels = call.of(tensor)
        for axis, letter in enumerate(term):
            if letter not in output:
                labels = without(labels, axis)
        operands.append(_to_output(labels, call.shape_of(tensor), term, output))
    reason = f"{call.where}: meets channels that stay"
    return LabelResult(elementwise(operands, call.shape, call.ties, reason), notes=notes)


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


@channels(v.ATTENTION)
def attention_rule(call: ChannelCall) -> LabelResult:
    """Fused attention keeps its width."""
    return call.freeze("attention keeps its width")


@channels(v.SELF_ATTENTION)
def self_attention_rule(call: ChannelCall) -> LabelResult:
    """``nn.MultiheadAttention`` keeps its width."""
    return call.freeze("no rule for this operation")


@channels(v.GLU)
def glu_rule(call: ChannelCall) -> Labels:
    """``glu(x, dim)``: the first half of an axis gated by the second."""
    axis = call.axis("dim", -1)
    result: list[Factor] = []
    for factor in call.input:
        if factor.shape[axis] > 1:
            first, second = np.split(factor, 2, axis)
            call.ties.tie(first, second)
            factor = first
        result.append(factor)
    return tuple(result)
