"""Which channels stay: from counts per cell to one decision per label.

Semantics
- Inside a cell any choice does; a criterion ranks them, and the best stay in their original order.
- A choice is scored over its whole width group: the sum over all convolutions that make its channels, each
  layer's scores divided by their mean so that layers count alike.
- In opaque segments only counts are decided.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from mbs_fx.channels.labels import Factor, shrinking_axis
from mbs_fx.channels.records import Count, IfSingleChannel, Positions
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import Facts
from mbs_fx.runtime.by_identity import ByIdentity
from mbs_fx.runtime.torch_private import ConvTransposeNd
from mbs_fx.runtime.weight_hooks import computed_weight, weight_hooks

Criterion = str | Callable[[str, Tensor], Tensor]

BY_WEIGHTS = ("l1", "l2", "scale", "first")
BY_IMAGES = ("readers", "activation", "taylor")
"""Criteria of `mbs_fx.choose_channels`."""


@dataclass(frozen=True, eq=False)
class Keep:
    """``stays[label]`` for labels that are followed; ``counts[cell]`` out of ``facts``' cell sizes for opaque ones."""

    facts: Facts
    stays: NDArray[np.bool_]
    counts: tuple[int, ...]

    @cached_property
    def _positions_of(self) -> ByIdentity[Factor, NDArray[np.int64] | None]:
        return ByIdentity()

    def size(self, factor: Factor) -> int:
        """How many positions stay along the shrinking axis of a factor."""
        return self._share(factor, factor.size // max(1, factor.shape[shrinking_axis(factor)]))

    def extent(self, axis: Factor) -> int:
        """The new size of a tensor's axis: labels of its positions, or (groups, positions in a group)."""
        return self._share(axis, axis.shape[0] if axis.ndim == 2 else 1)

    def _share(self, factor: Factor, parts: int) -> int:
        """How many labels stay in each of several equal parts of a factor."""
        choices = self.facts.choices
        labels = factor.reshape(-1)
        opaque = choices.opaque[labels] if choices.opaque_cells else None
        if opaque is None:
            total = Fraction(int(np.count_nonzero(self.stays[labels])))
        else:
            total = Fraction(int(np.count_nonzero(self.stays[labels[~opaque]])))
            cells, found = np.unique(choices.cell[labels[opaque]], return_counts=True)
            for cell, number in zip(cells, found, strict=True):
                whole = self.facts.analysis.cells[cell].size if cell >= 0 else 1
                total += Fraction(int(number) * (self.counts[cell] if cell >= 0 else 1), whole)
        total /= parts
        if total.denominator != 1:
            raise MBSError(f"an axis of {factor.shape} inside an opaque segment would get the size {total}")
        return int(total)

    def indices(self, axis: Factor) -> NDArray[np.int64] | None:
        """Positions of a tensor's axis that stay; None where only their number is known."""
        return self._positions_of.get(axis, self._indices)

    def _indices(self, axis: Factor) -> NDArray[np.int64] | None:
        if self.facts.choices.opaque[axis].any():
            return None
        return np.flatnonzero(self.stays[axis[0] if axis.ndim == 2 else axis])

    def evaluate(self, template: Any) -> Any:
        """A constant with every `Count` in it replaced by its number; None for one that stays as it is."""
        if isinstance(template, Count):
            return self.size(template.factor) + template.offset
        if isinstance(template, IfSingleChannel):
            return template.constant if any(self.size(f) == 1 for f in template.factors) else None
        if isinstance(template, Positions):
            return self._positions(template)
        if isinstance(template, list | tuple):
            return type(template)(self.evaluate(t) for t in template)
        if isinstance(template, slice):
            return slice(*(self.evaluate(t) for t in (template.start, template.stop, template.step)))
        return template

    def _positions(self, template: Positions) -> Tensor:
        """A constant index after the channels around it have moved up."""
        if self.facts.choices.opaque[template.source].any():
            raise MBSError("a constant index picks channels inside an opaque segment, where they are not followed")
        stays = self.stays[template.source]
        moved = np.cumsum(stays) - 1
        return torch.from_numpy(moved[template.index[stays[template.index]]])

    def channels(self) -> dict[str, tuple[int, ...]]:
        """Kept output channels by path of the module or parameter, where they are followed."""
        result: dict[str, tuple[int, ...]] = {}
        for path, out in recorded(self.facts).items():
            indices = self.indices(out)
            if indices is not None:
                result[path] = tuple(indices.tolist())
        return result


def recorded(facts: Facts) -> dict[str, Factor]:
    """Output labels of every layer with channel parameters, and of every parameter that the graph reads."""
    found = {path: layer.out for path, layer in facts.flow.layers.items() if layer.tensors}
    made = {mixer.path: mixer.out for mixer in facts.flow.mixers.values() if mixer.path}
    for path, axes in facts.flow.parameters.items():
        first = made.get(path, next((axis for axis in axes if axis is not None), None))
        if first is not None:
            found[path] = first
    return found


def select(facts: Facts, counts: Sequence[int], criterion: Criterion) -> Keep:
    """Keep the best choices of every cell by a criterion: "l1", "l2", "scale", "first", or a callable.

    A callable gets (module path, weight with output channels first) and returns one score per output channel.
    """
    choices = facts.choices
    score = _scores(facts, criterion)
    stays = np.ones(len(choices.choice), bool)
    roots = np.flatnonzero(choices.choice == np.arange(len(choices.choice)))
    order = np.argsort(choices.cell[roots], kind="stable")
    roots = roots[order]
    starts = np.searchsorted(choices.cell[roots], np.arange(len(counts) + 1))
    for cell, count in enumerate(counts):
        members = roots[starts[cell] : starts[cell + 1]]
        if count < len(members):
            ranked = members[np.argsort(-score[members], kind="stable")]
            stays[ranked[count:]] = False
    return Keep(facts, stays[choices.choice], tuple(counts))


def restore(facts: Facts, counts: Sequence[int], channels: Mapping[str, Sequence[int]]) -> Keep:
    """The decision that an earlier rewrite recorded as kept channels by module path."""
    choices = facts.choices
    stays = np.ones(len(choices.choice), bool)
    outputs = recorded(facts)
    for path, kept in channels.items():
        if path not in outputs:
            continue
        roots = choices.choice[outputs[path]]
        if kept and max(kept) >= len(roots):
            raise MBSError(f"{path}: the plan keeps channel {max(kept)} of a layer that has {len(roots)}")
        gone = np.ones(len(roots), bool)
        gone[list(kept)] = False
        stays[roots[gone]] = False
    return Keep(facts, stays[choices.choice], tuple(counts))


def _scores(facts: Facts, criterion: Criterion) -> NDArray[np.float64]:
    """One score per choice."""
    score = np.zeros(len(facts.choices.choice))
    if criterion == "first":
        return score
    seen: set[str] = set()
    for name, flow in facts.flow.mixers.items():
        if flow.path in seen or name not in facts.analysis.by_name or not flow.out.any():
            continue
        seen.add(flow.path)
        values = _layer_scores(facts, flow.path, criterion)
        if values is not None:
            _check_scores(flow.path, values, len(flow.out))
            np.add.at(score, facts.choices.choice[flow.out], values / max(float(values.mean()), 1e-12))
    if criterion == "scale":
        _add_scales(facts, score)
    return score


def _check_scores(path: str, values: NDArray[np.float64], channels: int) -> None:
    if values.shape != (channels,) or np.isnan(values).any():
        raise MBSError(
            f"{path}: the criterion gives scores of shape {values.shape}{' with NaN' * bool(np.isnan(values).any())}; "
            f"it gives one number for each of the {channels} output channels"
        )


def _layer_scores(facts: Facts, path: str, criterion: Criterion) -> NDArray[np.float64] | None:
    module = facts.flow.modules.get(path)
    weight: Any = None if module is None else weight_of(module)
    if not isinstance(weight, Tensor) or weight.is_meta or criterion == "scale":
        return None
    if isinstance(module, ConvTransposeNd):
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    if callable(criterion):
        with torch.no_grad():
            return torch.as_tensor(criterion(path, weight.detach())).double().cpu().numpy()
    rows = weight.detach().flatten(1).float().cpu().numpy()
    if criterion == "l1":
        return np.abs(rows).sum(1, dtype=np.float64)
    return np.sqrt(np.square(rows, dtype=np.float64).sum(1))


def weight_of(module: nn.Module) -> Any:
    """The weight of a layer, computed on a copy where it is parametrized: reading it may change the layer."""
    hook = next((hook for hook in weight_hooks(module) if hook.name == "weight"), None)
    if hook is not None:
        return computed_weight(module, hook)
    if not is_parametrized(module, "weight"):
        return getattr(module, "weight", None)
    with torch.no_grad():
        return copy.deepcopy(module).eval().weight


def _add_scales(facts: Facts, score: NDArray[np.float64]) -> None:
    """Magnitudes of the normalisation scales of every choice."""
    for path, layer in facts.flow.layers.items():
        weight = weight_of(facts.flow.modules[path])
        if isinstance(weight, Tensor) and weight.dim() == 1 and len(layer.out) == len(weight):
            np.add.at(score, facts.choices.choice[layer.out], weight.detach().abs().double().cpu().numpy())
