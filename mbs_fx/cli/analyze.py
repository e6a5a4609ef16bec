"""``mbs-fx analyze``: macroblocks, sizes, receptive fields and widths of a network, and what stays and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mbs_fx.cli import options
from mbs_fx.cli.session import SHIPPED, Session

if TYPE_CHECKING:
    from mbs_fx.results.analysis import Analysis


def analyze(
    model: options.Model = SHIPPED,
    size: options.Size = None,
    opaque: options.Opaque = None,
    strict: options.Strict = False,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Show what the analysis finds out about a network; its weights do not matter."""
    session = Session(model, "none", size, opaque, strict)
    session.say("", "print(analysis)")
    session.tell(str(session.analysis), _document(session.analysis), as_json, show_code)


def _document(analysis: Analysis) -> dict[str, Any]:
    fields = ("name", "target", "spatial_size", "stride", "receptive_field", "flops", "width", "macroblock", "counted")
    return {
        "input_shapes": analysis.input_shapes,
        "macroblocks": [
            {
                "index": m.index,
                "spatial_size": m.spatial_size,
                "convs": m.convs,
                "segments": [s.name for s in m.segments],
            }
            for m in analysis.macroblocks
        ],
        "convs": [{name: getattr(conv, name) for name in fields} for conv in analysis.convs],
        "kept": dict(analysis.kept),
        "notes": analysis.notes,
    }
