"""Arguments and options that several commands share: each is described once, here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision/NAME, timm/NAME, path/to/file.py:factory, or the network that comes with mbs-fx.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Image files, at any depth. Without it every density counts as equal (p = 1).",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="safetensors or a state dict; 'none' for fresh weights. Default: the publisher's, downloaded.",
    ),
]
Z = Annotated[float, typer.Option("--z", help="Threshold z, in multiples of the input size L.")]
Size = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Input size L. Default: what the network was trained at."),
]
Batch = Annotated[int, typer.Option(min=1, help="Images read at a time.")]
MaxImages = Annotated[
    int | None, typer.Option(min=1, help="Images read at most. Default: until the widths are settled.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images.")]
Device = Annotated[
    str | None, typer.Option(help="Where densities are measured. Default: cuda where there is one, else cpu.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of text.")]
