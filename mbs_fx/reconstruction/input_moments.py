"""What is known of layers that read channels: their weights as matrices, and second moments of their inputs.

Semantics
- Moments are mean products of input channels of the original, over positions drawn at random.
- Outputs count by the scale of the BatchNorm that alone reads a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from mbs_fx.density.fast_copy import fast_copy
from mbs_fx.reconstruction.frontier import Chunk
from mbs_fx.reconstruction.layers import argument, norm_behind
from mbs_fx.reconstruction.linear_forms import LinearForm, positions, products
from mbs_fx.runtime.ranks import Ranks
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.tracing.example import place_and_dtype

FEWEST_POSITIONS = 1 << 14
POSITIONS_PER_CHANNEL = 4


def moments(
    gm: GraphModule, forms: Mapping[str, LinearForm], chunks: Sequence[Chunk], images: int, seed: int, ranks: Ranks
) -> dict[str, Tensor]:
    """Mean products of the input channels of every node in ``forms``, (channels, channels) in float64."""
    own = _Moments(fast_copy(gm, *place_and_dtype(gm)), forms, images, seed)
    for chunk in chunks:
        own.begin(chunk.number)
        own.run(*chunk.copies(), enable_io_processing=False)
    everyone = ranks.exchange({name: (held.cpu(), own.counts[name]) for name, held in own.sums.items()})
    found: dict[str, Tensor] = {}
    for name, held in own.sums.items():
        given = [each[name] for each in everyone]
        total, count = torch.stack([sums for sums, _ in given]).sum(0), sum(count for _, count in given)
        found[name] = (total / count).to(held.device)
    return found


def weight_of(gm: GraphModule, node: Node) -> Tensor | None:
    """The weight of a call, None where it is computed."""
    return _tensor_of(gm, node, 1, "weight")


def bias_of(gm: GraphModule, node: Node) -> Tensor | None:
    """The bias of a call, None where it has none or it is computed."""
    return _tensor_of(gm, node, 2, "bias")


def _tensor_of(gm: GraphModule, node: Node, position: int, name: str) -> Tensor | None:
    if node.op == "call_module":
        return getattr(gm.get_submodule(str(node.target)), name, None)
    held = argument(node, position, name)
    return attribute(gm, str(held.target)) if isinstance(held, Node) and held.op == "get_attr" else None


def scale_of(norm: Any) -> Tensor:
    """What a BatchNorm multiplies every channel with."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.double()


def weight_matrix(gm: GraphModule, node: Node, form: LinearForm) -> Tensor:
    """The weight as a matrix, every output as large as the BatchNorm behind it makes it."""
    weight = weight_of(gm, node)
    assert weight is not None
    matrix, norm = form.matrix(weight), norm_behind(gm, node)
    return matrix if norm is None else matrix * scale_of(norm).reshape(matrix.shape[0], -1, 1)


class _Moments(fx.Interpreter):
    """Runs the original and sums products of input channels of layers over chosen positions."""

    def __init__(self, gm: GraphModule, forms: Mapping[str, LinearForm], images: int, seed: int) -> None:
        super().__init__(gm)
        self.forms, self.images, self.seed = forms, images, seed
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = dict.fromkeys(forms, 0)
        self.generator = torch.Generator()

    def begin(self, number: int) -> None:
        """Positions depend on the seed and the batch alone."""
        self.generator.manual_seed(self.seed * 100_003 + number)

    def run_node(self, n: Node) -> Any:
        form = self.forms.get(n.name)
        if form is not None:
            value: Tensor = self.env[n.all_input_nodes[0]]
            flat = positions(value, form.channel_axis)
            wanted = max(FEWEST_POSITIONS, POSITIONS_PER_CHANNEL * flat.shape[2]) / self.images
            chosen = torch.randperm(flat.shape[1], generator=self.generator)[: ceil(wanted)].to(flat.device)
            rows = flat.index_select(1, chosen).flatten(0, 1)
            rows = rows.to(products(rows))
            product = (rows.T @ rows).double()
            self.sums[n.name] = product if n.name not in self.sums else self.sums[n.name] + product
            self.counts[n.name] += len(rows)
        return super().run_node(n)
