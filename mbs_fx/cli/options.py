"""Arguments and options that several commands share: each is described once, here.

Options that `mbs_fx.plan` takes are words of that call; `planning` turns them into its arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mbs_fx.errors import MBSError

Model = Annotated[
    str,
    typer.Argument(
        metavar="[MODEL]",
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
DensityFile = Annotated[
    Path | None, typer.Option("--density", metavar="FILE", help="What `mbs-fx measure` wrote, in place of images.")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="safetensors or a state dict; 'none' for fresh weights. Default: the publisher's, downloaded.",
    ),
]
Z = Annotated[
    float | None,
    typer.Option(
        "--z", help="Threshold z, in multiples of the input size L. Default: 1; with a budget, the largest that fits."
    ),
]
Settled = Annotated[
    float | None, typer.Option("--z", help="Threshold whose widths are to be settled, in multiples of L. Default: 1.")
]
Size = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Input size L. Default: what the network was trained at."),
]
Opaque = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX", help="Modules to scale as a whole, by path. Repeatable."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail where channels cannot be followed.")]
Batch = Annotated[int, typer.Option(min=1, help="Images read at a time.")]
MaxImages = Annotated[
    int | None, typer.Option(min=1, help="Images read at most. Default: until the widths are settled.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images.")]
Device = Annotated[
    str | None, typer.Option(help="Where densities are measured. Default: cuda where there is one, else cpu.")
]
MaxParams = Annotated[str | None, typer.Option(metavar="N|%", help="Budget of parameters: a number or a share (50%).")]
MaxFlops = Annotated[str | None, typer.Option(metavar="N|%", help="Budget of multiply-adds, for one image.")]
MaxBytes = Annotated[str | None, typer.Option(metavar="N|%", help="Budget of the bytes of weights.")]
MaxLatency = Annotated[
    str | None,
    typer.Option("--max-latency-ms", metavar="MS|%", help="Budget of time for one image; candidates are timed."),
]
RoundTo = Annotated[int, typer.Option(min=1, metavar="N", help="Widths are multiples of N where groups allow it.")]
MinWidth = Annotated[int, typer.Option(min=1, metavar="N", help="No scaled width is less.")]
Keep = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY", help="Width that stays: module path, regex, size, or macroblock (m3). Repeatable."),
]
Beta = Annotated[
    list[str] | None, typer.Option(metavar="KEY=β", help="Scaling factor in place of Algorithm 1. Repeatable.")
]
Width = Annotated[list[str] | None, typer.Option(metavar="KEY=N", help="Width in place of a factor. Repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of text.")]
ShowCode = Annotated[bool, typer.Option("--show-code", help="Print the Python that does the same.")]


def planning(**given: Any) -> dict[str, Any]:
    """The arguments of `mbs_fx.plan` that were given on the command line."""
    result: dict[str, Any] = {}
    for name, value in given.items():
        if value is None or (name in ("round_to", "min_width") and value == 1):
            continue
        if name.startswith("max_"):
            result[name] = value if value.endswith("%") else _number(value, name)
        elif name == "keep":
            result[name] = [_key(each) for each in value]
        elif name in ("betas", "widths"):
            kind = float if name == "betas" else int
            result[name] = dict(_pair(each, name, kind) for each in value)
        else:
            result[name] = value
    return result


def _key(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _pair(text: str, name: str, kind: type[float] | type[int]) -> tuple[str | int, float]:
    key, equals, value = text.rpartition("=")
    try:
        if equals and key:
            return _key(key), kind(value)
    except ValueError:
        pass
    raise MBSError(f"--{name[:-1]} {text!r}: write KEY=NUMBER, for example {'14=0.8' if kind is float else 'conv1=48'}")


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        flag = name.replace("_", "-")
        raise MBSError(f"--{flag} {text!r}: write a number, or a share of the original such as 50%") from None
