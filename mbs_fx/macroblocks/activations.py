"""Which activation gives each convolution its p_j (Eq. 4).

Semantics
- The channels of a convolution reach an activation through operations that keep channels apart: normalisation,
  addition, gating, concatenation, pooling, dropout.  The walk ends at the first activation on every path, at whatever
  mixes channels, and at operations of which nothing is known.
- Which operations are activations, and which of these make exact zeros, says `mbs_fx.operations.vocabulary`.  ReLU is
  *sparse*: it has exact zeros, as clamps at zero and shrinkage have.  SiLU, GELU and their like have practically none:
  they pair, and p = 1.
- A module may fold its activation: a normalisation with a child ``act`` is an activation as well.
- A convolution that reaches several activations takes the mean over them; one that reaches none is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from mbs_fx.channels.flow import Flow
from mbs_fx.channels.labels import Factor, varying, vector
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.call import Call, holds_tensor
from mbs_fx.operations.operation import Zeros
from mbs_fx.operations.register import channels
from mbs_fx.operations.resolve import of_module, of_target, spelling
from mbs_fx.results.analysis import Activation

Pairs = dict[str, dict[str, tuple[int, ...] | None]]


def activation_kind(flow: Flow, node: Node) -> tuple[str, bool] | None:
    """(name of the function, whether it has exact zeros) where a node applies an activation."""
    if node.op == "call_module":
        return _module_kind(flow, node, flow.modules[str(node.target)])
    operation = of_target(node)
    if operation is None or operation.zeros == "passes":
        return None
    zeros = _zeros(Call(flow.gm, node, operation, None, flow.shapes))
    return None if zeros == "passes" else (spelling(node.target).lstrip("_"), zeros == "exact")


def _module_kind(flow: Flow, node: Node, module: nn.Module) -> tuple[str, bool] | None:
    zeros = _zeros(Call(flow.gm, node, of_module(type(module)), module, flow.shapes))
    if zeros != "passes":
        return type(module).__name__, zeros == "exact"
    folded = (_module_kind(flow, node, child) for child in module.children())
    return next((kind for kind in folded if kind is not None), None)


def _zeros(call: Call) -> Zeros:
    zeros = call.operation.zeros if call.operation is not None else "passes"
    return zeros(call) if callable(zeros) else zeros


def _channel_axis(flow: Flow, node: Node) -> int:
    rank = len(flow.shape(node))
    axes = [a for factor in flow.of(node) for a in varying(factor)]
    return axes[-1] if axes else min(1, rank - 1)


def pair(flow: Flow, convs: Mapping[str, Factor], hard: Factor) -> tuple[dict[str, Activation], Pairs]:
    """Activations of a graph, and for each convolution (node name, output labels) those that it reaches."""
    number = {name: index for index, name in enumerate(convs)}
    names = list(convs)
    reach: dict[str, int] = {}
    activations: dict[str, Activation] = {}
    pairs: Pairs = {name: {} for name in names}
    for node in flow.gm.graph.nodes:
        entering = 0
        for source in node.all_input_nodes:
            entering |= reach.get(source.name, 0)
        kind = activation_kind(flow, node) if entering else None
        if kind is not None and flow.shape(node):
            activations[node.name] = Activation(node.name, *kind, _channel_axis(flow, node))
            for index in _bits(entering):
                pairs[names[index]][node.name] = None
            if entering & (entering - 1):
                _positions(flow, node, activations[node.name], convs, hard, pairs)
            entering = 0
        if node.name in number:
            entering = 1 << number[node.name]
        elif _mixes(flow, node):
            entering = 0
        reach[node.name] = entering
    return activations, pairs


def _bits(mask: int) -> list[int]:
    result: list[int] = []
    while mask:
        low = mask & -mask
        result.append(low.bit_length() - 1)
        mask ^= low
    return result


def _mixes(flow: Flow, node: Node) -> bool:
    """Whether the walk ends: channels are mixed, nothing is known of them, or the result is no tensor."""
    if node.name in flow.mixers or node.op in ("placeholder", "get_attr", "output"):
        return True
    if not holds_tensor(flow.shapes[node.name]):
        return True
    module = flow.modules[str(node.target)] if node.op == "call_module" else None
    operation = of_target(node) if module is None else of_module(type(module))
    if operation is None or channels.of(operation) is None:
        return True
    slides_along_channels = operation in v.CONVOLUTIONS and bool(flow.of(node))
    return operation.mixes and not slides_along_channels


def _positions(
    flow: Flow, node: Node, activation: Activation, convs: Mapping[str, Factor], hard: Factor, pairs: Pairs
) -> None:
    """Where several convolutions meet in an activation: the positions each of them takes."""
    axis = activation.channel_axis
    held: Any = vector(flow.of(node), axis, flow.shape(node)[axis], flow.ties)
    classes = hard[held]
    everything = np.unique(classes)
    for name, reached in pairs.items():
        if node.name not in reached:
            continue
        own = np.unique(hard[convs[name]])
        if own.shape == everything.shape and (own == everything).all():
            continue
        inside = np.flatnonzero(np.isin(classes, own) & (classes != 0))
        if 0 < len(inside) < len(classes):
            reached[node.name] = tuple(int(i) for i in inside)
