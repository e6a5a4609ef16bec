"""The labels of a whole graph: what the label pass leaves to macroblocks and to the rewrite.

Semantics
- Parameters and buffers hold labels like any tensor, so they are sliced by the same labels.
- To *freeze* a node is to keep every label that enters it; what leaves it is `FROZEN`.
- Only the label pass writes here (`mbs_fx.channels.label_pass`); rules return what they found out.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from mbs_fx.channels.labels import FROZEN, Factor, Labels, along
from mbs_fx.channels.records import ConvFlow, Edit, LabelResult, Layer
from mbs_fx.channels.ties import Ties
from mbs_fx.operations.call import TensorShape, where


@dataclass
class Flow:
    """Labels of every node of a graph, and everything recorded on the way; ``outputs`` are those that stay."""

    root: weakref.ReferenceType[GraphModule]
    shapes: Mapping[str, Any]
    outputs: tuple[tuple[str | int, ...], ...] | None = None
    ties: Ties = field(default_factory=Ties)
    labels: dict[str, Any] = field(default_factory=dict[str, Any])
    layers: dict[str, Layer] = field(default_factory=dict[str, Layer])
    parameters: dict[str, tuple[Factor | None, ...]] = field(default_factory=dict[str, Any])
    mixers: dict[str, ConvFlow] = field(default_factory=dict[str, ConvFlow])
    edits: list[Edit] = field(default_factory=list[Edit])
    notes: dict[str, str] = field(default_factory=dict[str, str])
    concatenations: dict[str, list[Factor]] = field(default_factory=dict[str, list[Factor]])
    additions: dict[str, Factor] = field(default_factory=dict[str, Factor])
    counting: dict[str, Any] = field(default_factory=dict[str, Any])
    refused: list[str] = field(default_factory=list[str])
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        self.modules = {path: m for path, m in self.gm.named_modules(remove_duplicate=False) if path}

    @property
    def gm(self) -> GraphModule:
        """The graph, which whoever uses this holds: what is remembered of a graph does not keep it alive."""
        held = self.root()
        assert held is not None
        return held

    def of(self, node: Node) -> Labels:
        """Labels of the tensor that a node returns; `FROZEN` where it returns something else."""
        found = self.labels.get(node.name)
        return found if isinstance(found, tuple) else FROZEN

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of the tensor that a node returns; () where it returns something else."""
        value = self.shapes[node.name]
        return value.shape if isinstance(value, TensorShape) else ()

    def entering(self, node: Node) -> list[Factor]:
        """Every factor that enters a node."""
        return [f for each in node.all_input_nodes for f in factors_in(self.labels.get(each.name))]

    def freeze(self, node: Node, why: str) -> Labels:
        """Freeze every label that enters a node; its outputs are `FROZEN`."""
        entering = [f for f in self.entering(node) if f.any()]
        if entering:
            self.refused.append(f"{where(node)}: {why}")
        for factor in entering:
            self.ties.freeze(factor, f"{where(node)}: {why}")
        return FROZEN

    def record(self, node: Node, result: LabelResult) -> None:
        """Write down what a rule found out about a node."""
        self.edits += result.edits
        for text in result.notes:
            self.notes[node.name] = f"{where(node)}: {text}"
        if result.layer is not None:
            self._record_layer(str(node.target), result.layer)
        if result.mixer is not None:
            self.mixers[node.name] = result.mixer
        if result.added is not None:
            self.additions[node.name] = result.added
        if result.joined is not None:
            self.concatenations[node.name] = list(result.joined)
        if result.refused:
            self.freeze(node, result.refused)
            self.reasons[node.name] = f"{where(node)}: {result.refused}"

    def _record_layer(self, path: str, layer: Layer) -> None:
        """Record a module once; where it is applied again its labels are tied to those of the first time."""
        known = self.layers.setdefault(path, layer)
        if known is layer:
            return
        reason = f"{path} is shared by layers that cannot be reduced"
        for name, axes in layer.tensors.items():
            for old, new in zip(known.tensors[name], axes, strict=True):
                if old is not None and new is not None and old is not new:
                    self.ties.tie(old, new, reason)
        self.ties.tie(known.out, layer.out, reason)

    def parameter(self, target: str, tensor: torch.Tensor) -> Labels:
        """Labels of a parameter or buffer that the graph reads directly, one factor per axis."""
        rank = tensor.dim()
        if target not in self.parameters:
            kernel = rank >= 3 and tensor.shape[0] > 1
            axes = range(2 if kernel else rank)
            self.parameters[target] = tuple(
                self.ties.new(tensor.shape[a]) if a in axes and tensor.shape[a] > 1 else None for a in range(rank)
            )
        held = self.parameters[target]
        return tuple(f for a, v in enumerate(held) if v is not None for f in along(v, a, rank))


def factors_in(labels: Any) -> list[Factor]:
    """Every factor in the labels of one tensor or of several."""
    if isinstance(labels, np.ndarray):
        return [labels]
    if isinstance(labels, list | tuple):
        return [f for each in labels for f in factors_in(each)]
    if isinstance(labels, dict):
        return [f for each in labels.values() for f in factors_in(each)]
    return []
