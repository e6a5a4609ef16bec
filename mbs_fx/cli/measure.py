"""``mbs-fx measure``: the share of non-zero activations of every convolution, into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mbs_fx.cli import options
from mbs_fx.cli.files import outputs
from mbs_fx.cli.session import SHIPPED, Session
from mbs_fx.errors import MBSError


def measure(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    weights: options.Weights = None,
    z: options.Settled = None,
    size: options.Size = None,
    opaque: options.Opaque = None,
    batch: options.Batch = 16,
    max_images: options.MaxImages = None,
    workers: options.Workers = 0,
    device: options.Device = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write. Default: NAME-density.json.")
    ] = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Measure densities on images; plans of any threshold can be made from the file."""
    session = Session(model, weights, size, opaque)
    (path,) = outputs(out, f"{session.source.name}-density", (".json",))
    density = session.measure(images, None, z, device, batch_size=batch, max_images=max_images, workers=workers)
    if density is None:
        raise MBSError("measuring needs images: name a folder with --images DIR")
    session.say("", f"density.save({str(path)!r})")
    density.save(path)
    session.tell(f"{density}\n\nWrote {path}.", density.to_json(), as_json, show_code)
