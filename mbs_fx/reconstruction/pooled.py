"""Layers that read averages over a map: what they do to the average, they do to every position of it.

Semantics
- A linear layer, or a convolution with one kernel position, commutes with global average pooling.  Behind it there is
  one row an image, in front of it there is one for every position: enough to fit a classifier of a thousand inputs on
  a hundred images.
- The fit in front of the pooling is what the fit behind it is regularised towards.
- That a layer reads the averages of a map is found by comparing values, so that it does not matter how they are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from mbs_fx.reconstruction.layers import Layer
from mbs_fx.reconstruction.solve import Sums, fit, solve


@dataclass(frozen=True)
class Prior:
    """What a layer's weights are regularised towards: (groups, O, D) and biases (groups, O).

    ``judged`` is without the images held back, by which the multiple of the next fit is chosen.
    """

    judged: tuple[Tensor, Tensor]
    weight: Tensor
    bias: Tensor
    regularisation: float | None = None

    @staticmethod
    def inherited(weight: Tensor, bias: Tensor) -> Prior:
        """The weights as they are."""
        return Prior((weight, bias), weight, bias)

    def fitted(
        self, sums: tuple[Sums, Sums], free_bias: bool, scale: Tensor, regularisations: tuple[float, ...]
    ) -> Prior:
        """Weights that are fitted in front of the pooling, where they are better there than these."""
        found = fit(*sums, self.weight, self.bias, free_bias, scale, regularisations)
        if found.regularisation is None:
            return self
        judged = solve(sums[0], self.weight, self.bias, free_bias, found.regularisation)
        return Prior(judged, found.weight, found.bias, found.regularisation)


def maps_before(gm: GraphModule, layers: Sequence[Layer], shapes: Mapping[str, Any]) -> dict[str, str]:
    """The map whose averages a layer may read, by the layer's node."""
    nodes: dict[str, Node] = {node.name: node for node in gm.graph.nodes}
    found: dict[str, str] = {}
    for layer in layers:
        call = layer.calls[0]
        kernel = 1 if call.form.spec is None else prod(call.form.spec.kernel)
        if len(layer.calls) == 1 and call.form.groups == kernel == 1:
            place = _map_behind(nodes[call.node].all_input_nodes[0], shapes)
            if place is not None:
                found[call.node] = place.name
    return found


def _map_behind(node: Node, shapes: Mapping[str, Any]) -> Node | None:
    """The next value with several positions, where there is one for all of them before it."""
    first = _shape(node, shapes)
    if len(first) < 2 or prod(first[1:]) != max(first[1:]):
        return None
    while True:
        sources = [each for each in node.all_input_nodes if _shape(each, shapes)]
        if len(sources) != 1:
            return None
        node, shape = sources[0], _shape(sources[0], shapes)
        if len(shape) > 2 and shape[1] == prod(first[1:]) and prod(shape[2:]) > 1:
            return node
        if prod(shape) != prod(first):
            return None


def _shape(node: Node, shapes: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(getattr(shapes.get(node.name), "shape", ()))


def is_average(value: Tensor, of: Tensor) -> bool:
    """Whether a value is the averages of a map over its positions."""
    means = of.flatten(2).mean(2)
    return bool((value.reshape(means.shape) - means).abs().max() <= 1e-4 * means.abs().max())
