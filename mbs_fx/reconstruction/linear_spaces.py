"""Channels between which nothing but sums happens, so that they may be mixed: linear bottlenecks and their streams.

Semantics
- A *linear space* is a set of channels that layers without groups write, directly or through a BatchNorm of their own,
  that additions, dropout and identities pass on, and that only layers without groups read.
- There a small network need not keep a subset of channels.  It may keep any combinations of them: a subspace
  (`subspaces`).
- Layers that are called more than once, or whose weight is computed, neither write nor read a space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from mbs_fx.reconstruction.additions import PASSING, adds
from mbs_fx.reconstruction.layers import Layer, is_plain_norm, norm_behind
from mbs_fx.rewriting.selection import Keep


@dataclass(frozen=True)
class Space:
    """``kept`` of the channels stay; ``writers`` and ``readers`` are nodes in the graph's order."""

    kept: NDArray[np.int64]
    writers: tuple[str, ...]
    readers: tuple[str, ...]


def find_spaces(keep: Keep, original: GraphModule, layers: Sequence[Layer]) -> list[Space]:
    """The linear spaces that lose channels."""
    nodes = {node.name: node for node in original.graph.nodes}
    once = [layer.calls[0] for layer in layers if len(layer.calls) == 1]
    alone = {call.node for call in once if call.form.groups == 1 and nodes[call.node].op == "call_module"}
    found: list[Space] = []
    seen: set[str] = set()
    for name in nodes:
        if name not in alone or name in seen:
            continue
        walk = _Walk(original, alone)
        fine = walk.from_writer(nodes[name])
        seen |= walk.writers
        mixers = keep.facts.flow.mixers
        axes = [mixers[each].out for each in walk.writers] + [mixers[each].inp for each in walk.readers]
        kept = [keep.indices(axis) for axis in axes]
        if fine and walk.readers and _same(kept) and kept[0] is not None and len(kept[0]) < len(axes[0]):
            order = [each for each in nodes if each in walk.writers | walk.readers]
            writers, readers = (tuple(each for each in order if each in s) for s in (walk.writers, walk.readers))
            found.append(Space(kept[0], writers, readers))
    return found


def _same(kept: Sequence[NDArray[np.int64] | None]) -> bool:
    """Whether all layers keep the same places."""
    return all(each is not None and kept[0] is not None and np.array_equal(each, kept[0]) for each in kept)


class _Walk:
    """Everything that holds the channels that one layer writes."""

    def __init__(self, gm: GraphModule, alone: set[str]) -> None:
        self.gm, self.alone = gm, alone
        self.writers: set[str] = set()
        self.readers: set[str] = set()
        self.values: set[Node] = set()
        self.waiting: list[Node] = []

    def from_writer(self, node: Node) -> bool:
        """Whether the channels are a linear space."""
        self.waiting = [self._value_of(node)]
        while self.waiting:
            value = self.waiting.pop()
            if value in self.values:
                continue
            self.values.add(value)
            if not (self._made(value) and all(self._read(user, value) for user in value.users)):
                return False
        return not self.writers & self.readers

    def _value_of(self, writer: Node) -> Node:
        """A layer, or the BatchNorm behind it."""
        norm = norm_behind(self.gm, writer)
        return writer if norm is None or norm.weight is None else next(iter(writer.users))

    def _made(self, value: Node) -> bool:
        """Whether a value is written by layers, or a sum of such."""
        source = value.all_input_nodes[0] if value.all_input_nodes else value
        if value.name in self.alone:
            self.writers.add(value.name)
            return True
        if value.op == "call_module" and is_plain_norm(self.gm.get_submodule(str(value.target))):
            self.writers.add(source.name)
            return source.name in self.alone and self._value_of(source) is value
        self.waiting += value.all_input_nodes
        return self._passes(value)

    def _read(self, user: Node, value: Node) -> bool:
        if user.name in self.alone:
            self.readers.add(user.name)
            return user.all_input_nodes[0] is value and user.all_input_nodes.count(value) == 1
        self.waiting.append(user)
        return self._passes(user)

    def _passes(self, node: Node) -> bool:
        """Whether a node adds its operands or gives back its only one."""
        if node.op == "call_module" and type(self.gm.get_submodule(str(node.target))) in PASSING:
            return len(node.all_input_nodes) == 1
        return adds(node)
