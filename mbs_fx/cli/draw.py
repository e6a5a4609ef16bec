"""``mbs-fx draw``: a picture of a network, of what was measured in it, and of a plan for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbs_fx.cli import options
from mbs_fx.cli.session import SHIPPED, Session, applied


def draw(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to: .svg, .html, .png or .dot.")],
    model: options.Model = SHIPPED,
    density: options.DensityFile = None,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="Widths before and after, by a plan.")] = None,
    size: options.Size = None,
    opaque: options.Opaque = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Draw a network, one frame per macroblock; its weights do not matter."""
    import mbs_fx

    extra = ""
    found = made = None
    if plan is not None:
        made, size = applied(plan, size)
        extra = f", plan=mbs_fx.Plan.from_json({str(plan)!r})"
    session = Session(model, "none", size, opaque)
    if density is not None:
        found = mbs_fx.Density.load(density)
        extra += f", density=mbs_fx.Density.load({str(density)!r})"
    path = mbs_fx.draw(session.analysis, out, density=found, plan=made, title=session.source.name)
    session.say("", f"mbs_fx.draw(analysis, {str(path)!r}{extra}, title={session.source.name!r})")
    session.tell(f"Wrote {path}.", {"files": [str(path)]}, as_json, show_code)
