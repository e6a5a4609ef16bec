"""The passes in the form that torch.fx's ``PassManager`` takes.

Semantics
- ``PassManager([Analyze(), Measure(images), Scale(z=1.0)])(gm).graph_module`` is the small network; other passes
  stand between them as they please.
- A ``PassManager`` drops everything that a pass returns beside the graph, so results travel in ``gm.meta``
  (``mbs_analysis``, ``mbs_density``) and on the nodes (``node.meta["mbs"]``, one line each, which
  ``print_readable(additional_meta=["mbs"])`` shows).  They are notes: what does not fit the graph any more is
  found out again, or refused where it cannot be.
- `Analyze` and `Measure` change nothing that a graph computes and report ``modified=False``.  `Scale` returns a new
  graph and leaves the one that it was given as it was.
- A ``PassManager`` raises every error of a pass as a bare ``Exception``; the `MBSError` is its ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from mbs_fx.channels.kept_outputs import Outputs
from mbs_fx.density.measure import measure
from mbs_fx.macroblocks.analyze import analyze, facts
from mbs_fx.planning.plan import plan
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density
from mbs_fx.results.tables import size_text
from mbs_fx.rewriting.resizing import Init
from mbs_fx.rewriting.rewrite import rewrite
from mbs_fx.rewriting.selection import Criterion
from mbs_fx.shapes.graph_inputs import ExampleLike

ANALYSIS, DENSITY, NOTE = "mbs_analysis", "mbs_density", "mbs"


@dataclass(frozen=True, slots=True)
class NodeNote:
    """What the analysis found out about one node; ``macroblock`` and ``width`` only where it is a conv layer."""

    spatial_size: tuple[int, ...]
    stride: tuple[float, ...]
    receptive_field: tuple[float, ...]
    macroblock: int | None = None
    width: int | None = None

    def __str__(self) -> str:
        size, stride, field = map(size_text, (self.spatial_size, self.stride, self.receptive_field))
        conv = "" if self.macroblock is None else f", macroblock {self.macroblock}, width {self.width}"
        return f"{size}, stride {stride}, RF {field}{conv}"


class Analyze(PassBase):
    """`mbs_fx.analyze`; the arguments are the same."""

    def __init__(
        self,
        example: ExampleLike = None,
        *,
        opaque: Iterable[str | type[nn.Module]] = (),
        strict: bool = False,
        outputs: Outputs = None,
    ) -> None:
        super().__init__()
        self.example, self.opaque, self.strict, self.outputs = example, tuple(opaque), strict, outputs

    def call(self, graph_module: GraphModule) -> PassResult:
        found = analyze(graph_module, self.example, opaque=self.opaque, strict=self.strict, outputs=self.outputs)
        _annotate(graph_module, found)
        return PassResult(graph_module, False)


class Measure(PassBase):
    """`mbs_fx.measure`; the arguments are the same."""

    def __init__(self, images: Any, **measuring: Any) -> None:
        super().__init__()
        self.images, self.measuring = images, measuring

    def call(self, graph_module: GraphModule) -> PassResult:
        found = measure(graph_module, self.images, analysis=_analysis(graph_module), **self.measuring)
        graph_module.meta[DENSITY] = found
        return PassResult(graph_module, False)


class Scale(PassBase):
    """`mbs_fx.plan` and `mbs_fx.rewrite`, from what earlier passes found; ``planning`` are `plan`'s arguments."""

    def __init__(self, *, init: Init = "inherit", criterion: Criterion = "l1", **planning: Any) -> None:
        super().__init__()
        self.init, self.criterion, self.planning = init, criterion, planning

    def call(self, graph_module: GraphModule) -> PassResult:
        analysis = _analysis(graph_module) or analyze(graph_module)
        density: Density | None = graph_module.meta.get(DENSITY)
        made = plan(analysis, density, **self.planning)
        small = rewrite(graph_module, made, init=self.init, criterion=self.criterion)
        for stale in (ANALYSIS, DENSITY):
            small.meta.pop(stale, None)
        return PassResult(small, True)


def _annotate(gm: GraphModule, found: Analysis) -> None:
    gm.meta[ANALYSIS] = found
    convs = found.by_name
    for node in gm.graph.nodes:
        place, conv = found.geometry.get(node.name), convs.get(node.name)
        if place is not None:
            extra = (conv.macroblock, conv.width) if conv is not None else ()
            node.meta[NOTE] = NodeNote(place.spatial_size, place.stride, place.receptive_field, *extra)


def _analysis(gm: GraphModule) -> Analysis | None:
    """The analysis of this graph: the one it carries, made again where a pass has changed the graph since."""
    carried: Analysis | None = gm.meta.get(ANALYSIS)
    if carried is None:
        return None
    return facts(
        gm, carried.input_shapes, carried.opaque, carried.input_types, carried.input_names, carried.outputs
    ).analysis
