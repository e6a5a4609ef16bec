"""`mbs_fx.to_networkx`: the network as a graph for people's own questions.

Semantics
- One node per operation, by its name in the graph, in topological order; an edge for everything that it reads.
- Node attributes are plain values: what the operation is (``op``, ``kind``, ``path``, ``scope``, ``shape``, ``kernel``,
  ``step``), where it lies (``spatial_size``, ``stride``, ``receptive_field``, ``upsampled``, ``macroblock``), and for a
  convolution ``width``, ``in_width``, ``groups``, ``flops``, ``counted``, ``activations``, ``segment``.
- ``kept`` says why a layer keeps its width; ``density``, ``new_width`` and ``base`` come with a density and a plan.
- An attribute that a node has no value for is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mbs_fx.pictures.network_boxes import Box, scene
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density
from mbs_fx.results.plan import Plan

if TYPE_CHECKING:
    import networkx as nx


def to_networkx(analysis: Analysis, density: Density | None = None, plan: Plan | None = None) -> nx.DiGraph[str]:
    """The operations of a network with all that is known of them.

    Raises:
        MBSError: a density or a plan of another network.

    """
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph(input_shapes=analysis.input_shapes, input_size=analysis.input_size)
    boxes = {o.name: box for box in scene(analysis, density, plan, None).boxes for o in box.operations}
    for operation in analysis.operations:
        box = boxes[operation.name]
        found: dict[str, Any] = {
            "op": operation.op,
            "kind": operation.kind,
            "path": operation.path,
            "scope": operation.scope,
            "shape": operation.shape,
            "kernel": operation.kernel or None,
            "step": operation.step or None,
            "macroblock": box.macroblock,
            **_place(analysis, operation.name),
            **(_layer(box) if box.head is operation else {}),
        }
        graph.add_node(operation.name, **{key: value for key, value in found.items() if value is not None})
        graph.add_edges_from((source, operation.name) for source in operation.inputs)
    return graph


def _place(analysis: Analysis, name: str) -> dict[str, Any]:
    g = analysis.geometry.get(name)
    if g is None:
        return {}
    return {
        "spatial_size": g.spatial_size,
        "stride": g.stride,
        "receptive_field": g.receptive_field,
        "upsampled": g.upsampled,
    }


def _layer(box: Box) -> dict[str, Any]:
    """What is known of a layer, not of the operations that follow it."""
    conv = box.conv
    found: dict[str, Any] = {"kept": box.kept or None, "base": box.base, "density": box.p}
    if conv is None:
        return found
    return found | {
        "width": conv.width,
        "in_width": conv.in_width,
        "groups": conv.groups,
        "flops": conv.flops,
        "counted": conv.counted,
        "activations": tuple(conv.activations),
        "segment": box.segment.name if box.segment is not None else None,
        "new_width": box.width[1] if box.width is not None else None,
    }
