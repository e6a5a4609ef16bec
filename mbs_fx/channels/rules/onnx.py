"""Modules of graphs that onnx2torch makes of ONNX files, by class name, so that it need not be installed.

Shapes that ONNX keeps in tensors (the target of a reshape) are constants of the graph and are counted anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from mbs_fx.channels import labels as move
from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.labels import Labels, factor_on
from mbs_fx.channels.records import Count, Edit, LabelResult, constant_path, count_of
from mbs_fx.channels.rules import layout
from mbs_fx.channels.rules.contractions import product
from mbs_fx.channels.rules.elementwise import addition_rule, elementwise_rule, per_channel_rule
from mbs_fx.channels.rules.slicing import concatenated
from mbs_fx.operations import onnx
from mbs_fx.operations.register import channels
from mbs_fx.shapes.graph_attributes import attribute

channels(onnx.SUM)(addition_rule)
channels(onnx.POOL)(per_channel_rule)
channels(onnx.FLATTEN)(layout.reshape_rule)


@channels(onnx.BINARY)
def binary_rule(call: ChannelCall) -> Any:
    """Add, Sub, Mul, Div: an addition binds."""
    function = getattr(call.module, "math_op_function", None)
    return addition_rule(call) if function is torch.add else elementwise_rule(call)


@channels(onnx.CONCAT)
def concat_rule(call: ChannelCall) -> LabelResult:
    """Concatenation along the module's axis."""
    module: Any = call.module
    axis = int(module.axis) % len(call.shape)
    return concatenated(call, [(call.of(t), call.shape_of(t)) for t in call.node.args], axis)


@channels(onnx.RESHAPE)
def reshape_rule(call: ChannelCall) -> Any:
    """Reshape to a shape held in a tensor."""
    labels = layout.reshape_rule(call)
    shape = call.node.args[1]
    if not isinstance(shape, Node) or shape.all_input_nodes or shape.op not in ("get_attr", "call_module"):
        return labels
    sizes = attribute(call.gm, constant_path(shape)).tolist()
    templates = [(axis, count_of(factor_on(labels, axis), axis, size)) for axis, size in enumerate(sizes)]
    edits = [Edit(shape.name, ("value", axis), made) for axis, made in templates if isinstance(made, Count)]
    return LabelResult(labels, tuple(edits))


@channels(onnx.TRANSPOSE)
def transpose_rule(call: ChannelCall) -> Labels:
    """A permutation; without one the axes are reversed."""
    module: Any = call.module
    return move.permute(call.input, module.perm or list(reversed(range(len(call.shape)))))


@channels(onnx.MATMUL)
def matmul_rule(call: ChannelCall) -> LabelResult:
    """The matrix product of two tensors."""
    a, b = call.node.args
    return product(call, a, b)
