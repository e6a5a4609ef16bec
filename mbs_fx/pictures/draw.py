"""`mbs_fx.draw`: a network as a picture.

Semantics
- What may be drawn: a traced graph, its analysis, or a plan.  A graph is analyzed first, so its input shapes must be
  known: from ``example``, from the plan that goes with it, or from the graph itself.
- The suffix of the path decides: ``.svg`` and ``.png`` are pictures, ``.html`` is a page in which groups open on a
  click, ``.dot`` is for Graphviz itself (and has every box, in clusters).
- A plan alone knows macroblocks and no wiring: they are drawn folded.
- What comes back shows itself as the last line of a notebook's cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import analyze
from mbs_fx.pictures.diagram import Diagram, Fold, diagram, opened, plan_diagram
from mbs_fx.pictures.dot import dot_text
from mbs_fx.pictures.graphviz_layout import PAGE, SLIDE, fitting
from mbs_fx.pictures.network_boxes import scene
from mbs_fx.pictures.page import page
from mbs_fx.pictures.png import png
from mbs_fx.pictures.svg import alone
from mbs_fx.pictures.target import target
from mbs_fx.reconstruction.networks import MADE
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.density import Density
from mbs_fx.results.files import write_atomically
from mbs_fx.results.plan import Plan
from mbs_fx.results.reconstruction import Reconstruction


@dataclass(frozen=True, eq=False)
class Picture:
    """What `draw` made.  A path wherever one is taken (`os.PathLike`), and a picture in a notebook."""

    path: Path | None
    diagram: Diagram = field(repr=False)
    fold: Fold = field(repr=False)
    title: str = field(repr=False)

    @cached_property
    def svg(self) -> str:
        """The picture as SVG, whatever was written."""
        return _svg(self.diagram, self.fold, self.title)

    def __fspath__(self) -> str:
        if self.path is None:
            raise MBSError('this picture was not written: give draw a path, as draw(x, "net.svg")')
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        return f'<div style="max-width: 100%; overflow: auto">{self.svg}</div>'


def draw(
    x: Any,
    path: str | Path | None = None,
    *,
    density: Density | None = None,
    plan: Plan | None = None,
    analysis: Analysis | None = None,
    reconstruction: Reconstruction | None = None,
    example: Any = None,
    z: float = 1.0,
    fold: Fold = "auto",
    title: str | None = None,
) -> Picture:
    """Draw a network: one frame per macroblock, sizes, receptive fields, densities, widths before and after.

    Args:
        x: a traced graph, an `Analysis`, or a `Plan`.
        path: where to; ``.svg``, ``.html``, ``.png`` or ``.dot``.  None writes nothing, for a notebook.
        density: colours the convolutions.
        plan: widths and the boundary between base and enhancement layers; a graph that `rewrite` made brings its own.
        analysis: the network that a plan in ``x`` was made for.
        reconstruction: ``small.meta["mbs_reconstruction"]``: held-back errors of the layers, large ones in a colour;
            a graph that was reconstructed brings its own.
        example: an input tensor or its shape, for a graph whose shapes are not known.
        z: the threshold that sets the boundary where there is no plan.
        fold: "macroblocks", "units", "none", or "auto": as many levels as a screen of 1600 x 900 shows at full size.
        title: the heading; the name of the network's class where it is known and nothing is said.

    Returns:
        The picture: its path, its SVG, itself in a notebook.

    Raises:
        MBSError: a suffix that is none of these, a path that cannot be written, a graph of unknown shapes, a density
            or a plan of another network, more boxes than can be laid out.

    """
    path = None if path is None else target(path, "a picture", WRITERS)
    known, plan = network(x, analysis, plan, example)
    reconstruction = reported_errors(x, reconstruction)
    picture = diagram(scene(known, density, plan, z, reconstruction)) if known is not None else plan_diagram(plan or x)
    if title is None:
        title = known.name if known is not None else ""
    if fold != "auto":
        opened(picture, fold)  # is there such a folding, and can it be laid out
    if path is not None:
        content = WRITERS[path.suffix](picture, fold, title)
        data = content.encode() if isinstance(content, str) else content
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
    return Picture(path, picture, fold, title)


def network(x: Any, analysis: Analysis | None, plan: Plan | None, example: Any) -> tuple[Analysis | None, Plan | None]:
    """The analysis and the plan that something to be drawn comes with."""
    if isinstance(x, Analysis):
        return x, plan
    if isinstance(x, Plan):
        return analysis, plan or x
    if not hasattr(x, "graph"):
        raise MBSError(
            f"{type(x).__name__} is not a traced graph, an analysis or a plan; trace a model first, "
            "mbs_fx.trace(model, example)"
        )
    made = x.meta.get("mbs") if hasattr(x, "meta") else None
    plan = plan if plan is not None else made if isinstance(made, Plan) else None
    if analysis is not None:
        return analysis, plan
    if example is None and plan is not None:
        example = plan.input_shapes
    try:
        return analyze(x, example), plan
    except MBSError as error:
        if "input shape is not known" not in str(error):
            raise
        raise MBSError(
            "a picture shows sizes and receptive fields, and the input shape of this graph is not known: pass an "
            'example or its shape, as draw(gm, "net.svg", example=(1, 3, 224, 224)), or draw an analysis'
        ) from None


def reported_errors(x: Any, given: Reconstruction | None) -> Reconstruction | None:
    """The reconstruction that is given, or the one that something to be drawn comes with."""
    held = getattr(x, "meta", None)
    found = held.get(MADE) if isinstance(held, Mapping) else None
    return found if given is None and isinstance(found, Reconstruction) else given


Writer = Callable[[Diagram, Fold, str], str | bytes]


def _svg(picture: Diagram, fold: Fold, title: str) -> str:
    return alone(picture, fitting(picture, fold, SLIDE)[1], title)


def _png(picture: Diagram, fold: Fold, title: str) -> bytes:
    return png(_svg(picture, fold, title))


def _html(picture: Diagram, fold: Fold, title: str) -> str:
    return page(picture, fitting(picture, fold, PAGE)[1], title)


def _dot(picture: Diagram, fold: Fold, title: str) -> str:
    return dot_text(picture, fitting(picture, fold, SLIDE)[0], title)


WRITERS: dict[str, Writer] = {".svg": _svg, ".html": _html, ".png": _png, ".dot": _dot}
