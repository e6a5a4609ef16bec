"""``mbs-fx sweep``: every plan that a threshold can give, from one measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbs_fx.cli import options
from mbs_fx.cli.files import outputs
from mbs_fx.cli.session import SHIPPED, Session, needed


def sweep(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    density: options.DensityFile = None,
    weights: options.Weights = None,
    size: options.Size = None,
    opaque: options.Opaque = None,
    round_to: options.RoundTo = 1,
    min_width: options.MinWidth = 1,
    keep: options.Keep = None,
    batch: options.Batch = 16,
    device: options.Device = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all plans as JSON.")] = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Show parameters, flops and bytes for every threshold that makes a difference."""
    import mbs_fx

    asked = options.planning(round_to=round_to, min_width=min_width, keep=keep)
    session = Session(model, needed(weights, model, images, density), size, opaque)
    paths = outputs(out, f"{session.source.name}-sweep", (".json",)) if out is not None else ()
    found = session.measure(images, density, None, device, batch_size=batch)
    made = mbs_fx.sweep(session.analysis, found, **asked)
    session.say("plans", "mbs_fx.sweep(analysis, density" + "".join(f", {k}={v!r}" for k, v in asked.items()) + ")")
    for path in paths:
        made.to_json(path)
        session.say("", f"plans.to_json({str(path)!r})")
    session.say("", "print(plans)")
    session.tell(str(made), made.to_json(), as_json, show_code)
