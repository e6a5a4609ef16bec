"""A linear space in fewer dimensions: which combinations of its channels the kept places hold.

Semantics
- For readers r with second moments M_r of their inputs x and A_r = sum over kernel positions of W^T W, each relative to
  the energy tr(A_r M_r) of its outputs: M is the mean of M_r / tr(A M_r), A the sum of A_r / tr(A_r M_r), and
  H = A^(1/2).  The k-dimensional projection with the least error for the readers is

      P = H^-1 V V^T H,   V the k leading eigenvectors of H M H    (reduced-rank regression).

- A kept place holds its own channel of P x: the space's channels at the kept places become T x, T = the kept rows of P.
  Where these are nearly dependent, small singular values of T M^(1/2) are raised: readers would need large weights to
  tell them apart, and the first step of a training would destroy them.
  Readers take x back as B_r T x with B_r = M_r T^T (T M_r T^T)^-1, the best linear prediction.
- A BatchNorm behind a writer gets the scale and the mean that its combination of channels has, its variance stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from mbs_fx.reconstruction.frontier import Chunk
from mbs_fx.reconstruction.input_moments import bias_of, moments, scale_of, weight_matrix, weight_of
from mbs_fx.reconstruction.layers import Layer, norm_behind
from mbs_fx.reconstruction.linear_forms import LinearForm
from mbs_fx.reconstruction.linear_spaces import Space, find_spaces
from mbs_fx.reconstruction.networks import Pair
from mbs_fx.runtime.ranks import Ranks

RIDGE = 1e-3
"""Added to diagonals as a share of their mean: combinations that no reader or no image tells apart stay as they are."""

EVEN = 1.0
"""Singular values of what kept places hold are at least this share of their root mean square."""


@dataclass(frozen=True)
class Basis:
    """T of one space, (kept, channels), and B of each of its readers, (channels, kept)."""

    down: Tensor
    up: Mapping[str, Tensor]


def change_basis(
    both: Pair, layers: Sequence[Layer], chunks: Sequence[Chunk], images: int, seed: int, ranks: Ranks
) -> dict[str, Tensor]:
    """Write and read every linear space of ``both.small`` in fewer dimensions, in place; T by writer's node."""
    spaces = find_spaces(both.keep, both.original, layers)
    if not spaces:
        return {}
    nodes: dict[str, Node] = {node.name: node for node in both.original.graph.nodes}
    forms = {layer.calls[0].node: layer.calls[0].form for layer in layers}
    read = {name: forms[name] for space in spaces for name in space.readers}
    means = moments(both.original, read, chunks, images, seed, ranks)
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    for space in spaces:
        basis = _basis(both, space, nodes, read, means)
        down |= dict.fromkeys(space.writers, basis.down)
        up |= basis.up
    for layer in layers:
        name = layer.calls[0].node
        if name in down or name in up:
            _write(both, layer, nodes[name], down.get(name), up.get(name))
    return down


def _basis(
    both: Pair, space: Space, nodes: Mapping[str, Node], forms: Mapping[str, LinearForm], means: Mapping[str, Tensor]
) -> Basis:
    kept = torch.from_numpy(space.kept)
    products: list[Tensor] = []
    for name in space.readers:
        rows = _kept_rows(both, name, weight_matrix(both.original, nodes[name], forms[name])[0])
        parts = rows.reshape(len(rows), len(means[name]), -1)
        product = torch.einsum("oik,ojk->ij", parts, parts)
        products.append(product / (product * means[name]).sum())
    weight = torch.stack(products).sum(0)
    moment = torch.stack([means[name] / (weight * means[name]).sum() for name in space.readers]).mean(0)
    down = _combinations(weight, moment, kept.to(weight.device))
    up: dict[str, Tensor] = {}
    for name in space.readers:
        seen = means[name] @ down.T
        up[name] = torch.linalg.solve(_ridged(down @ seen), seen.T).T
    return Basis(down, up)


def _kept_rows(both: Pair, name: str, rows: Tensor) -> Tensor:
    kept = both.keep.indices(both.keep.facts.flow.mixers[name].out)
    return rows if kept is None else rows[torch.from_numpy(kept).to(rows.device)]


def _combinations(weight: Tensor, moment: Tensor, kept: Tensor) -> Tensor:
    """T of the module's docstring."""
    values, vectors = torch.linalg.eigh(_ridged(weight))
    root, inverse = ((vectors * values.clamp_min(0).pow(power)) @ vectors.T for power in (0.5, -0.5))
    spread, leading = (part[..., -len(kept) :] for part in torch.linalg.eigh(root @ _ridged(moment) @ root))
    deviations = spread.clamp_min(0).sqrt()
    left, sizes, right = torch.linalg.svd((inverse @ leading * deviations)[kept], full_matrices=False)
    sizes = sizes.clamp_min(EVEN * float(sizes.square().mean().sqrt()))
    return left * sizes @ right / deviations @ leading.T @ root


def _ridged(symmetric: Tensor) -> Tensor:
    return symmetric + RIDGE * symmetric.diagonal().mean() * torch.eye(len(symmetric)).to(symmetric)


def _write(both: Pair, layer: Layer, node: Node, down: Tensor | None, up: Tensor | None) -> None:
    """The layer's weight, and the BatchNorm behind it, as what they inherit in the new basis."""
    call, flow = layer.calls[0], both.keep.facts.flow.mixers[node.name]
    given: Any = weight_of(both.original, node)
    matrix = call.form.matrix(given)[0]
    parts = matrix.reshape(len(matrix), len(flow.inp), -1)
    if up is not None:
        parts = torch.einsum("ock,cj->ojk", parts, up)
    elif call.inp is not None:
        parts = parts[:, torch.from_numpy(call.inp).to(parts.device)]
    mix = torch.eye(len(parts)).to(parts)[torch.from_numpy(call.out).to(parts.device)]
    if down is not None:
        mix = _through_norm(both, layer, node, down)
    layer.weight.data.copy_(call.form.weight(torch.einsum("jo,ock->jck", mix, parts).flatten(1)[None], layer.weight))
    shift = bias_of(both.original, node)
    if layer.bias is not None and shift is not None:
        layer.bias.data.copy_(mix @ shift.double())


def _through_norm(both: Pair, layer: Layer, node: Node, down: Tensor) -> Tensor:
    """The combination of a writer's outputs whose normalised values are ``down`` times the original's."""
    own, given = norm_behind(both.original, node), _norm(both.small, node)
    if own is None:
        return down
    gamma = (down.square() @ own.weight.double().square()).sqrt()
    given.weight.data.copy_(gamma)
    mix = down * scale_of(own) / scale_of(given)[:, None]
    given.bias.data.copy_(down @ own.bias.double())
    given.running_mean.data.copy_(mix @ own.running_mean.double())
    return mix


def _norm(small: GraphModule, node: Node) -> Any:
    return norm_behind(small, next(each for each in small.graph.nodes if each.name == node.name))
