"""Which activation gives each convolution its p_j (Eq. 4).

Semantics
- The channels of a convolution reach an activation through operations that keep channels apart: normalisation,
  addition, gating, concatenation, pooling, dropout.  The walk ends at the first activation on every path, and at
  whatever mixes channels.
- ReLU in every spelling is *sparse*: it has exact zeros.  So have ReLU6 and clamps at zero.  Other activations
  (SiLU, GELU, hardswish, sigmoid, ...) have practically none: they pair, and p = 1.
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
from mbs_fx.channels.rules import operation, rule_for
from mbs_fx.results.analysis import Activation

_SPARSE_MODULES = (nn.ReLU, nn.ReLU6, nn.Threshold)
_DENSE_MODULES = (
    nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU,
    nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.GLU, nn.Hardtanh, nn.Softshrink,
    nn.Hardshrink, nn.Tanhshrink,
)  # fmt: skip
_SPARSE = frozenset(("relu", "relu6", "threshold"))
_DENSE = frozenset(
    (
        "silu", "gelu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "rrelu", "prelu", "elu", "selu",
        "celu", "mish", "softplus", "softsign", "logsigmoid", "glu", "hardtanh",
    )
)  # fmt: skip
_MIXING = frozenset(("matmul", "bmm", "mm", "einsum", "linear", "scaled_dot_product_attention", "baddbmm"))

Pairs = dict[str, dict[str, tuple[int, ...] | None]]


def activation_kind(flow: Flow, node: Node) -> tuple[str, bool] | None:
    """(name of the function, whether it has exact zeros) where a node applies an activation."""
    if node.op == "call_module":
        return _module_kind(flow.modules[str(node.target)])
    if node.op not in ("call_function", "call_method"):
        return None
    name = operation(node.target)
    if name in ("clamp", "clamp_min", "clip"):
        low = flow.value(flow.arg(node, 1, "min"))
        return (name, True) if isinstance(low, int | float) and low == 0 else None
    if name == "hardtanh":
        return name, flow.value(flow.arg(node, 1, "min_val", -1.0)) == 0
    return (name, name in _SPARSE) if name in _SPARSE | _DENSE else None


def _module_kind(module: nn.Module) -> tuple[str, bool] | None:
    if isinstance(module, nn.Hardtanh):
        return type(module).__name__, module.min_val == 0
    if isinstance(module, _SPARSE_MODULES + _DENSE_MODULES):
        return type(module).__name__, isinstance(module, _SPARSE_MODULES)
    folded = (_module_kind(child) for child in module.children())
    return next((kind for kind in folded if kind is not None), None)


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
    if node.name in flow.mixers or node.op in ("placeholder", "get_attr", "output"):
        return True
    if node.op == "call_module":
        return rule_for(flow, node) is None
    return operation(node.target) in _MIXING


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
