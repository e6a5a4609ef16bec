"""Layer by layer in the order of the graph: sums over positions, one solve, the next layer on what that gives.

Semantics
- A layer reads what the small network gives as refitted so far.  Later calls of a shared layer read the original's
  values at the kept channels: what comes between is not fitted by then.
- A layer whose input lost no channel and is the original's input stays as it is.
- Some images are held back from the fits that lambda is chosen by (`solve`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import ceil, prod
from operator import add
from typing import Any

import torch
from torch import Tensor

from mbs_fx.reconstruction.additions import Path, follow, path_behind
from mbs_fx.reconstruction.few_rows import Rows, Span
from mbs_fx.reconstruction.frontier import Env, Frontier, Held, run_node
from mbs_fx.reconstruction.layers import NORMS, Call, Layer
from mbs_fx.reconstruction.linear_forms import LinearForm
from mbs_fx.reconstruction.networks import Pair
from mbs_fx.reconstruction.solve import Fit, Sums, fit
from mbs_fx.results.reconstruction import LayerError
from mbs_fx.runtime.ranks import Ranks

FEWEST_POSITIONS = 1 << 14
FEWEST_IN_GROUPS = 1 << 11
POSITIONS_PER_UNKNOWN = 16

FEW = 2
"""Images on which a layer's input is compared with the original's."""

EXACT = 1e-5
"""Inputs that differ by less than this share of the largest are the original's."""

SAME = "its input is the original's"
OTHER = "its forward computes something else than its class says"


@dataclass
class Refitter:
    """Refits the layers of ``pair.small`` in place."""

    pair: Pair
    frontier: Frontier
    images: int
    regularisations: tuple[float, ...]
    seed: int
    ranks: Ranks
    errors: list[LayerError] = field(default_factory=list[LayerError])
    left: dict[str, str] = field(default_factory=dict[str, str])
    recalibrated: list[str] = field(default_factory=list[str])

    def run(self, layers: Sequence[Layer], fresh: Sequence[str], passed: Callable[[str], object]) -> None:
        """Refit every layer, and measure the statistics of BatchNorms in opaque segments anew, in the graph's order."""
        place_of, norms = self.frontier.place_of, self._norms(fresh)
        numbered = {layer.calls[0].node: (number, layer) for number, layer in enumerate(layers)}
        for name in sorted([*numbered, *norms], key=lambda each: place_of[each]):
            self.frontier.advance(place_of[name])
            if name in norms:
                self._recalibrate(name, norms[name])
                continue
            number, layer = numbered[name]
            why = self._why_left(layer)
            if why:
                self.left[layer.path] = why
            else:
                self._refit(number, layer)
            passed(layer.path)

    def _norms(self, fresh: Sequence[str]) -> dict[str, Any]:
        """BatchNorms without statistics of their own, by the node of their first call."""
        found: dict[str, Any] = {}
        for _, node in self.frontier.nodes:
            if node.op == "call_module" and node.target in fresh:
                module = self.pair.small.get_submodule(str(node.target))
                known = any(module is other for other in found.values())
                if isinstance(module, NORMS) and module.running_mean is not None and not known:
                    found[node.name] = module
        return found

    def _recalibrate(self, name: str, norm: Any) -> None:
        node = self.frontier.nodes[self.frontier.place_of[name]][1]
        values = [
            held.small[node.all_input_nodes[0]].transpose(0, 1).flatten(1).double() for held in self.frontier.held
        ]
        own = sum(v.shape[1] for v in values), sum(v.sum(1) for v in values), sum(v.square().sum(1) for v in values)
        count, total, squares = (reduce(add, part) for part in zip(*self.ranks.exchange(own), strict=True))
        mean = total / count
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((squares / count - mean.square()).clamp_min(0))
        self.recalibrated.append(str(node.target))

    def _why_left(self, layer: Layer) -> str:
        call, held = layer.calls[0], self.frontier.held[0]
        original, small = (value[:FEW] for value in self._inputs(call, held.original, held.small))
        if not call.lost and call.inp is not None:
            kept = original.index_select(call.form.channel_axis % original.dim(), _index(call.inp, original))
            same = bool((kept - small).abs().max() <= EXACT * kept.abs().max())
            if all(self.ranks.exchange(same)):
                return SAME
        node = self._nodes(call)[1]
        given = run_node(self.frontier.small, node, {**held.small, node.all_input_nodes[0]: small})
        chosen = torch.arange(min(call.form.positions(given), 64), device=given.device)
        patches = call.form.patches(small, tuple(given.shape), chosen)
        weight, bias = self._weights(layer)
        wanted = call.form.outputs(given, chosen)
        difference = (patches.double() @ weight.transpose(1, 2) + bias[:, None] - wanted).abs().max()
        return "" if bool(difference <= 0.02 * wanted.abs().max()) else OTHER

    def _weights(self, layer: Layer) -> tuple[Tensor, Tensor]:
        weight = layer.calls[0].form.matrix(layer.weight)
        if layer.bias is None:
            return weight, weight.new_zeros(weight.shape[:2])
        return weight, layer.bias.detach().double().reshape(weight.shape[:2])

    def _refit(self, number: int, layer: Layer) -> None:
        call = layer.calls[0]
        path = path_behind(self.pair.small, call.node, self.pair.keep.facts.flow.shapes, self._mixers)
        scale = self._scale(call, path)
        weight, bias = self._weights(layer)
        squares = scale.square().reshape(weight.shape[:2])
        rows = (
            each
            for held in self.frontier.held
            for each in (self._rows(number, held, call, path, scale), *self._later(number, held, layer))
        )
        span = None
        if weight.shape[0] == 1 and self._positions(layer) < weight.shape[2]:
            rows = list(rows)
            everyone = self.ranks.exchange([each.patches.cpu() for each in rows])
            patches = [each.to(weight.device) for own in everyone for each in own]
            span = Span.of(patches, weight)
            rows = [span.written(each) for each in rows]
        fitted, held_back = self._sums(rows)
        start = weight if span is None else span.start()
        width = weight.shape[2]
        found = fit(fitted, held_back, start, bias, layer.free_bias, squares, self.regularisations, width)
        chosen = found if span is None else span.whole(found)
        self._note(layer, chosen, path, squares, fitted, held_back)
        if chosen.regularisation is not None:
            self._write(layer, chosen)

    @property
    def _mixers(self) -> frozenset[str]:
        return frozenset(self.pair.keep.facts.flow.mixers)

    def _sums(self, rows: Iterable[Rows]) -> tuple[Sums, Sums]:
        """Sums over the images to fit to and over those held back, of all processes."""
        own: list[Sums | None] = [None, None]
        for each in rows:
            for side, part in enumerate((slice(each.fitted), slice(each.fitted, None))):
                if each.patches[:, part].shape[1]:
                    found = Sums.of(each.patches[:, part], each.targets[:, part], each.energies[:, part])
                    earlier = own[side]
                    own[side] = found if earlier is None else earlier + found
        everyone = self.ranks.exchange(own)
        fitted, held_back = (reduce(add, [sums for sums in side if sums]) for side in zip(*everyone, strict=True))
        return fitted, held_back

    def _write(self, layer: Layer, chosen: Fit) -> None:
        layer.weight.data.copy_(layer.calls[0].form.weight(chosen.weight, layer.weight))
        if layer.bias is not None:
            layer.bias.data.copy_(chosen.bias.reshape(-1))
        elif layer.norm is not None:
            layer.norm.running_mean.data.sub_(chosen.bias.reshape(-1).to(layer.norm.running_mean))

    def _note(self, layer: Layer, chosen: Fit, path: Path, squares: Tensor, fitted: Sums, back: Sums) -> None:
        energy = max(float((back.energy / back.count * squares).sum()), torch.finfo(torch.float64).tiny)
        before, after = ((float((error * squares).sum()) / energy) ** 0.5 for error in (chosen.before, chosen.after))
        unknowns = prod(chosen.weight.shape[2:]) + layer.free_bias
        images = sum(self.ranks.exchange(sum(len(held.chunk) for held in self.frontier.held)))
        matched = "sum" if path.adds else "output"
        positions = fitted.count + back.count
        self.errors.append(
            LayerError(layer.path, matched, before, after, chosen.regularisation, unknowns, positions, images)
        )

    # What the sums are taken over.

    def _nodes(self, call: Call) -> tuple[Any, Any]:
        return self.frontier.nodes[self.frontier.place_of[call.node]]

    def _inputs(self, call: Call, original: Env, small: Env) -> tuple[Tensor, Tensor]:
        """What the call reads in both networks."""
        sources = [node.args[0] if node.args else node.kwargs["input"] for node in self._nodes(call)]
        return original[sources[0]], small[sources[1]]

    def _scale(self, call: Call, path: Path) -> Tensor:
        """The factor of every output channel on its way to the end of the path."""
        held = self.frontier.held[0]
        output = self.frontier.output(held, call.node)[:1]
        axis = call.form.channel_axis % output.dim()
        zero = torch.zeros_like(output).index_select(axis, _index(call.out, output))
        env = {node: value[:1] if isinstance(value, Tensor) else value for node, value in held.small.items()}
        low, high = (follow(self.frontier.small, path, call.node, zero + i, env) for i in (0, 1))
        return (high - low).double().movedim(axis, 0).flatten(1).mean(1)

    def _rows(self, number: int, held: Held, call: Call, path: Path, scale: Tensor) -> Rows:
        output = self.frontier.output(held, call.node)
        axis = call.form.channel_axis % output.dim()
        kept = _index(call.out, output)
        target = output.index_select(axis, kept)
        energy = target
        if path.adds:
            whole = follow(self.frontier.original, path, call.node, output.clone(), held.original)
            whole = whole.index_select(axis, kept)
            rest = follow(self.frontier.small, path, call.node, torch.zeros_like(target), held.small)
            shape = [-1 if i == axis else 1 for i in range(output.dim())]
            factor = scale.reshape(shape).to(output.dtype)
            usable = factor.abs() > 1e-6 * factor.abs().max()
            safe = torch.where(usable, factor, 1.0)
            target, energy = torch.where(usable, (whole - rest) / safe, target), whole / safe
        value = self._inputs(call, held.original, held.small)[1]
        return self._chosen_rows(number, held, call, value, target, energy)

    def _later(self, number: int, held: Held, layer: Layer) -> list[Rows]:
        """The rows of the further calls of a shared layer: the original runs ahead on copies."""
        if len(layer.calls) == 1:
            return []
        env = {node: value.clone() if isinstance(value, Tensor) else value for node, value in held.original.items()}
        wanted = {self._nodes(call)[0]: call for call in layer.calls[1:]}
        found: list[Rows] = []
        for node, _ in self.frontier.nodes[self.frontier.place : 1 + self.frontier.place_of[layer.calls[-1].node]]:
            if node not in env:
                value = env[node.args[0]] if node in wanted else None
                value = value.clone() if value is not None else None
                env[node] = run_node(self.frontier.original, node, env)
                call = wanted.get(node)
                if call is not None and value is not None and call.inp is not None:
                    axis = call.form.channel_axis % value.dim()
                    target = env[node].index_select(axis, _index(call.out, value))
                    value = value.index_select(axis, _index(call.inp, value))
                    found.append(self._chosen_rows(number, held, call, value, target, target))
        return found

    def _chosen_rows(self, number: int, held: Held, call: Call, value: Tensor, target: Tensor, energy: Tensor) -> Rows:
        """Rows at positions drawn at random."""
        generator = torch.Generator().manual_seed((self.seed * 10_007 + number) * 100_003 + held.chunk.number)
        count = self._wanted(call.form, call.form.unknowns(value))
        chosen = torch.randperm(call.form.positions(target), generator=generator)[:count].sort().values
        chosen = chosen.to(target.device)
        patches = call.form.patches(value, tuple(target.shape), chosen)
        rows, energies = call.form.outputs(target, chosen), call.form.outputs(energy, chosen)
        return Rows(patches, rows, energies, held.chunk.fitted * len(chosen))

    def _wanted(self, form: LinearForm, unknowns: int) -> int:
        """Positions of one image."""
        fewest = FEWEST_POSITIONS if form.groups == 1 else FEWEST_IN_GROUPS
        return ceil(max(fewest, POSITIONS_PER_UNKNOWN * unknowns) / self.images)

    def _positions(self, layer: Layer) -> int:
        """Positions of all calls, images and processes."""
        call, held = layer.calls[0], self.frontier.held
        output = self.frontier.output(held[0], call.node)
        own = len(layer.calls) * sum(len(each.chunk) for each in held)
        value = self._inputs(call, held[0].original, held[0].small)[1]
        each = min(call.form.positions(output), self._wanted(call.form, call.form.unknowns(value)))
        return each * sum(self.ranks.exchange(own))


def _index(kept: Any, like: Tensor) -> Tensor:
    return torch.from_numpy(kept).to(like.device)
