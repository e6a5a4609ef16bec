"""Layer by layer in the order of the graph: sums over positions, one solve, the next layer on what that gives.

Semantics
- A layer reads what the small network gives as refitted so far.  Later calls of a shared layer read the original's
  values at the kept channels: what comes between is not fitted by then.
- A layer whose input lost no channel and is the original's input stays as it is.
- Some images are held back from the fits that lambda is chosen by (`solve`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import prod
from operator import add
from typing import Any

import torch
from torch import Tensor

from mbs_fx.reconstruction.additions import Path, path_behind
from mbs_fx.reconstruction.few_rows import Rows, Span
from mbs_fx.reconstruction.frontier import Frontier, run_node
from mbs_fx.reconstruction.layers import NORMS, Layer
from mbs_fx.reconstruction.networks import Pair
from mbs_fx.reconstruction.pooled import Prior, is_average
from mbs_fx.reconstruction.rows import Gatherer, index_of
from mbs_fx.reconstruction.solve import Fit, Sums, fit
from mbs_fx.results.reconstruction import LayerError
from mbs_fx.runtime.ranks import Ranks

FEW = 2
"""Images on which a layer's input is compared with the original's."""

EXACT = 1e-5
"""Inputs that differ by less than this share of the largest are the original's."""

SAME = "its input is the original's"
OTHER = "its forward computes something else than its class says"


@dataclass
class Refitter:
    """Refits the layers of ``pair.small`` in place; ``maps`` are what layers read averages of (`pooled`)."""

    pair: Pair
    frontier: Frontier
    regularisations: tuple[float, ...]
    gatherer: Gatherer
    maps: Mapping[str, str]
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
        original, small = (value[:FEW] for value in self.gatherer.inputs(call, held.original, held.small))
        if not call.lost and call.inp is not None:
            kept = original.index_select(call.form.channel_axis % original.dim(), index_of(call.inp, original))
            same = bool((kept - small).abs().max() <= EXACT * kept.abs().max())
            if all(self.ranks.exchange(same)):
                return SAME
        node = self.gatherer.nodes(call)[1]
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
        call, gatherer = layer.calls[0], self.gatherer
        path = path_behind(self.pair.small, call.node, self.pair.keep.facts.flow.shapes, self._mixers)
        scale = gatherer.scale(call, path)
        weight, bias = self._weights(layer)
        squares = scale.square().reshape(weight.shape[:2])
        rows = (
            each
            for held in self.frontier.held
            for each in (gatherer.rows(number, held, call, path, scale), *gatherer.later(number, held, layer))
        )
        prior = self._prior(number, layer, weight, bias, squares)
        span = None
        if weight.shape[0] == 1 and gatherer.positions(layer, self.ranks) < weight.shape[2]:
            rows = list(rows)
            everyone = self.ranks.exchange([each.patches.cpu() for each in rows])
            patches = [each.to(weight.device) for own in everyone for each in own]
            span = Span.of(patches, weight)
            rows = [span.written(each) for each in rows]
        sums = self._sums(rows)
        chosen = self._chosen(layer, sums, span, weight, bias, prior, squares)
        self._note(layer, chosen, path, squares, *sums)
        if chosen.regularisation is not None:
            self._write(layer, chosen)

    def _prior(self, number: int, layer: Layer, weight: Tensor, bias: Tensor, squares: Tensor) -> Prior:
        """What the weights are regularised towards: inherited ones, or those that fit a map before it is averaged."""
        call, prior = layer.calls[0], Prior.inherited(weight, bias)
        pool = self.maps.get(call.node)
        if pool is None or call.node in self.gatherer.mixed:
            return prior
        held = self.frontier.held[0]
        nodes = self.gatherer.nodes(call)[0], self.frontier.nodes[self.frontier.place_of[pool]][0]
        means = is_average(*(held.original[node][:FEW] for node in (nodes[0].all_input_nodes[0], nodes[1])))
        if not all(self.ranks.exchange(means)):
            return prior
        rows = (self.gatherer.before_pooling(number, held, layer, pool) for held in self.frontier.held)
        return prior.fitted(self._sums(rows), layer.free_bias, squares, self.regularisations)

    def _chosen(
        self,
        layer: Layer,
        sums: tuple[Sums, Sums],
        span: Span | None,
        weight: Tensor,
        bias: Tensor,
        prior: Prior,
        squares: Tensor,
    ) -> Fit:
        """The weights with the least error on images held back: inherited, the prior's, or fitted."""
        judged, shift = prior.judged
        starts = (weight, judged, prior.weight)
        if span is not None:
            starts = [span.start(each) for each in starts]
        inherited, judged, start = starts
        width = weight.shape[2]
        found = fit(*sums, judged, shift, layer.free_bias, squares, self.regularisations, width, start)
        before = sums[1].error(inherited, bias)
        if not float((found.after * squares).sum()) < float((before * squares).sum()):
            return Fit(weight, bias, None, before, before)
        if found.regularisation is None:
            return Fit(prior.weight, prior.bias, prior.regularisation, before, found.after)
        return replace(found if span is None else span.whole(found, prior.weight), before=before)

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
