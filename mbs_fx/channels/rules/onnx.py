"""Modules of graphs that onnx2torch makes of ONNX files, by class name, so that it need not be installed.

Shapes that ONNX keeps in tensors (the target of a reshape) are constants of the graph and are counted anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mbs_fx.channels import labels as move
from mbs_fx.channels.flow import Count, Flow, Rule, attribute, constant_path, count_of
from mbs_fx.channels.labels import Labels, factor_on
from mbs_fx.channels.rules import contractions as mixing
from mbs_fx.channels.rules import elementwise as arithmetic
from mbs_fx.channels.rules import layout as moves


def _module(flow: Flow, node: Node) -> Any:
    return flow.modules[str(node.target)]


def binary_rule(flow: Flow, node: Node) -> Labels:
    """Add, Sub, Mul, Div: an addition binds."""
    function = getattr(_module(flow, node), "math_op_function", None)
    return arithmetic.addition_rule(flow, node) if function is torch.add else arithmetic.elementwise_rule(flow, node)


def pool_rule(flow: Flow, node: Node) -> Any:
    """A mean over all spatial axes."""
    return arithmetic.per_channel_rule(flow, node)


def concat_rule(flow: Flow, node: Node) -> Labels:
    """Concatenation along the module's axis."""
    axis = int(_module(flow, node).axis) % len(flow.shape(node))
    operands = [(flow.of(t), flow.shape(t)) for t in node.args]
    flow.concatenations[node.name] = [f for labels, _ in operands for f in labels if f.shape[axis] > 1]
    return move.concatenate(operands, axis, flow.ties, f"{flow.where(node)}: meets channels that stay")


def reshape_rule(flow: Flow, node: Node) -> Any:
    """Reshape to a shape held in a tensor."""
    labels = moves.reshape_rule(flow, node)
    shape = node.args[1]
    if not isinstance(shape, Node) or shape.all_input_nodes or shape.op not in ("get_attr", "call_module"):
        return labels
    sizes = attribute(flow.gm, constant_path(shape)).tolist()
    for axis, size in enumerate(sizes):
        template = count_of(factor_on(labels, axis), axis, size)
        if isinstance(template, Count):
            flow.edit(shape, ("value", axis), template)
    return labels


def transpose_rule(flow: Flow, node: Node) -> Labels:
    """A permutation; without one the axes are reversed."""
    order = _module(flow, node).perm or list(reversed(range(len(flow.shape(node)))))
    return move.permute(flow.of(flow.source(node)), order)


_ELEMENTWISE = """
    OnnxErf OnnxHardSigmoid OnnxClip OnnxNeg OnnxPow OnnxSqrt OnnxReciprocal OnnxRound OnnxCopyIdentity
    OnnxDropoutDynamic OnnxFunction OnnxMinMax OnnxMean OnnxWhere OnnxCast
"""

BY_NAME: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), arithmetic.elementwise_rule),
    "OnnxBinaryMathOperation": binary_rule,
    "OnnxSum": arithmetic.addition_rule,
    "OnnxGlobalAveragePool": pool_rule,
    "OnnxGlobalAveragePoolWithKnownInputShape": pool_rule,
    "OnnxPadStatic": pool_rule,
    "OnnxResize": pool_rule,
    "OnnxConcat": concat_rule,
    "OnnxFlatten": moves.reshape_rule,
    "OnnxSqueezeStaticAxes": moves.reshape_rule,
    "OnnxUnsqueezeStaticAxes": moves.reshape_rule,
    "OnnxReshape": reshape_rule,
    "OnnxTranspose": transpose_rule,
    "OnnxMatMul": mixing.matmul_rule,
}
