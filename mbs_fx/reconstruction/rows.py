"""What the sums of a layer are taken over: patches of the small network and targets of the original.

Semantics
- Positions are drawn at random, several for every unknown.
- Targets are the original's outputs at the kept channels, or in a linear space what the kept places hold (`subspaces`).
  Where a path with an addition lies behind the layer, they are what the original's sum leaves to it (`additions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from mbs_fx.reconstruction.additions import Path, follow
from mbs_fx.reconstruction.few_rows import Rows
from mbs_fx.reconstruction.frontier import Env, Frontier, Held, run_node
from mbs_fx.reconstruction.input_moments import bias_of, weight_of
from mbs_fx.reconstruction.layers import Call, Layer
from mbs_fx.reconstruction.linear_forms import LinearForm, positions, products
from mbs_fx.runtime.ranks import Ranks

FEWEST_POSITIONS = 1 << 14
FEWEST_IN_GROUPS = 1 << 11
POSITIONS_PER_UNKNOWN = 16


@dataclass(frozen=True)
class Gatherer:
    """Rows of layers from what the frontier holds; ``mixed``: the combinations that writers of linear spaces keep."""

    frontier: Frontier
    images: int
    seed: int
    mixed: Mapping[str, Tensor]

    def nodes(self, call: Call) -> tuple[Any, Any]:
        """The call in both graphs."""
        return self.frontier.nodes[self.frontier.place_of[call.node]]

    def inputs(self, call: Call, original: Env, small: Env) -> tuple[Tensor, Tensor]:
        """What the call reads in both networks."""
        sources = [node.args[0] if node.args else node.kwargs["input"] for node in self.nodes(call)]
        return original[sources[0]], small[sources[1]]

    def scale(self, call: Call, path: Path) -> Tensor:
        """The factor of every output channel on its way to the end of the path."""
        held = self.frontier.held[0]
        output = self.frontier.output(held, call.node)[:1]
        axis = call.form.channel_axis % output.dim()
        zero = torch.zeros_like(output).index_select(axis, index_of(call.out, output))
        env = {node: value[:1] if isinstance(value, Tensor) else value for node, value in held.small.items()}
        low, high = (follow(self.frontier.small, path, call.node, zero + i, env) for i in (0, 1))
        return (high - low).double().movedim(axis, 0).flatten(1).mean(1)

    def rows(self, number: int, held: Held, call: Call, path: Path, scale: Tensor) -> Rows:
        """Rows of one chunk."""
        output = self.frontier.output(held, call.node)
        axis = call.form.channel_axis % output.dim()
        target = output.index_select(axis, index_of(call.out, output))
        energy = target
        if path.adds or call.node in self.mixed:
            whole = follow(self.frontier.original, path, call.node, output.clone(), held.original)
            whole = self._kept(call, whole, axis)
            rest = follow(self.frontier.small, path, call.node, torch.zeros_like(target), held.small)
            shape = [-1 if i == axis else 1 for i in range(output.dim())]
            factor = scale.reshape(shape).to(output.dtype)
            usable = factor.abs() > 1e-6 * factor.abs().max()
            safe = torch.where(usable, factor, 1.0)
            target, energy = torch.where(usable, (whole - rest) / safe, target), whole / safe
        value = self.inputs(call, held.original, held.small)[1]
        return self._chosen_rows(number, held, call, value, target, energy)

    def _kept(self, call: Call, values: Tensor, axis: int) -> Tensor:
        """What the kept places hold of the original's values."""
        mix = self.mixed.get(call.node)
        if mix is None:
            return values.index_select(axis, index_of(call.out, values))
        return (values.movedim(axis, -1) @ mix.T.to(values)).movedim(-1, axis)

    def later(self, number: int, held: Held, layer: Layer) -> list[Rows]:
        """The rows of the further calls of a shared layer: the original runs ahead on copies."""
        if len(layer.calls) == 1:
            return []
        env = {node: value.clone() if isinstance(value, Tensor) else value for node, value in held.original.items()}
        wanted = {self.nodes(call)[0]: call for call in layer.calls[1:]}
        found: list[Rows] = []
        for node, _ in self.frontier.nodes[self.frontier.place : 1 + self.frontier.place_of[layer.calls[-1].node]]:
            if node not in env:
                value = env[node.args[0]] if node in wanted else None
                value = value.clone() if value is not None else None
                env[node] = run_node(self.frontier.original, node, env)
                call = wanted.get(node)
                if call is not None and value is not None and call.inp is not None:
                    axis = call.form.channel_axis % value.dim()
                    target = env[node].index_select(axis, index_of(call.out, value))
                    value = value.index_select(axis, index_of(call.inp, value))
                    found.append(self._chosen_rows(number, held, call, value, target, target))
        return found

    def _chosen_rows(self, number: int, held: Held, call: Call, value: Tensor, target: Tensor, energy: Tensor) -> Rows:
        """Rows at positions drawn at random."""
        count = self._wanted(call.form, call.form.unknowns(value))
        chosen = self._drawn(number, held, call.form.positions(target), count).to(target.device)
        patches = call.form.patches(value, tuple(target.shape), chosen)
        rows, energies = call.form.outputs(target, chosen), call.form.outputs(energy, chosen)
        return Rows(patches, rows, energies, held.chunk.fitted * len(chosen))

    def before_pooling(self, number: int, held: Held, layer: Layer, pool: str) -> Rows:
        """Rows at positions of the map that is averaged before a layer; targets: the original layer there."""
        call, nodes = layer.calls[0], self.frontier.nodes[self.frontier.place_of[pool]]
        original, small = held.original[nodes[0]], held.small[nodes[1]]
        flat = positions(original, 1), positions(small, 1)
        count = self._wanted(call.form, small.shape[1])
        chosen = self._drawn(number, held, flat[0].shape[1], count).to(original.device)
        inputs, patches = (each.index_select(1, chosen).flatten(0, 1) for each in flat)
        patches = patches.to(products(patches))
        weight, bias = (part.to(patches) for part in self._own(call))
        targets = inputs.to(patches) @ weight.T + bias
        return Rows(patches[None], targets[None], targets[None], held.chunk.fitted * len(chosen))

    def _drawn(self, number: int, held: Held, positions: int, count: int) -> Tensor:
        """So many of the positions of a layer, by its number, the chunk and the seed."""
        generator = torch.Generator().manual_seed((self.seed * 10_007 + number) * 100_003 + held.chunk.number)
        return torch.randperm(positions, generator=generator)[:count].sort().values

    def _own(self, call: Call) -> tuple[Tensor, Tensor]:
        """The original's weight and bias at the kept outputs of a layer with one kernel position."""
        node = self.nodes(call)[0]
        gm: GraphModule = self.frontier.original.module  # pyright: ignore[reportAssignmentType]
        weight, bias = weight_of(gm, node), bias_of(gm, node)
        assert weight is not None
        rows = weight.detach().double().flatten(1)
        kept = index_of(call.out, rows)
        shift = rows.new_zeros(len(rows)) if bias is None else bias.detach().double()
        return rows.index_select(0, kept), shift.index_select(0, kept)

    def _wanted(self, form: LinearForm, unknowns: int) -> int:
        """Positions of one image."""
        fewest = FEWEST_POSITIONS if form.groups == 1 else FEWEST_IN_GROUPS
        return ceil(max(fewest, POSITIONS_PER_UNKNOWN * unknowns) / self.images)

    def positions(self, layer: Layer, ranks: Ranks) -> int:
        """Positions of all calls, images and processes."""
        call, held = layer.calls[0], self.frontier.held
        output = self.frontier.output(held[0], call.node)
        own = len(layer.calls) * sum(len(each.chunk) for each in held)
        value = self.inputs(call, held[0].original, held[0].small)[1]
        each = min(call.form.positions(output), self._wanted(call.form, call.form.unknowns(value)))
        return each * sum(ranks.exchange(own))


def index_of(kept: Any, like: Tensor) -> Tensor:
    """An index on the device of a tensor."""
    return torch.from_numpy(kept).to(like.device)
