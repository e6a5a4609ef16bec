"""``mbs-fx plan``: scaling factors and widths for a threshold or a budget, into a file that can be edited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbs_fx.cli import options
from mbs_fx.cli.files import outputs
from mbs_fx.cli.session import SHIPPED, Session, needed


def plan(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    density: options.DensityFile = None,
    weights: options.Weights = None,
    z: options.Z = None,
    size: options.Size = None,
    opaque: options.Opaque = None,
    max_params: options.MaxParams = None,
    max_flops: options.MaxFlops = None,
    max_bytes: options.MaxBytes = None,
    max_latency_ms: options.MaxLatency = None,
    round_to: options.RoundTo = 1,
    min_width: options.MinWidth = 1,
    keep: options.Keep = None,
    beta: options.Beta = None,
    width: options.Width = None,
    batch: options.Batch = 16,
    device: options.Device = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write. Default: NAME-plan.json.")] = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Plan the widths by Algorithm 1; `mbs-fx reduce --plan FILE` applies them."""
    asked = options.planning(
        z=z, max_params=max_params, max_flops=max_flops, max_bytes=max_bytes, max_latency_ms=max_latency_ms,
        round_to=round_to, min_width=min_width, keep=keep, betas=beta, widths=width,
    )  # fmt: skip
    session = Session(model, needed(weights, model, images, density), size, opaque)
    (path,) = outputs(out, f"{session.source.name}-plan", (".json",))
    found = session.measure(images, density, z, device, batch_size=batch)
    made = session.plan(found, asked, device)
    session.say("", f"plan.to_json({str(path)!r})")
    made.to_json(path)
    session.tell(f"{made}\n\nWrote {path}.", made.to_json(), as_json, show_code)
