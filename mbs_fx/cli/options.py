"""Arguments and options that several commands share: each is described once, here.

- ``--help`` groups them: what goes in, how much is removed, what stays, what comes out.
- An option that was not given is None; options that `mbs_fx.plan` takes become its arguments by `planning`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mbs_fx.errors import MBSError

INPUT, AMOUNT, STAYS, OUTPUT = "Input", "How much", "What stays", "Output"


def _multiple(text: str | int) -> int | str:
    """What ``--round-to`` takes."""
    if str(text) == "auto":
        return "auto"
    if not str(text).isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither a whole number, at least 1, nor 'auto'")
    return int(text)


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
        rich_help_panel=INPUT,
    ),
]
DensityFile = Annotated[
    Path | None,
    typer.Option(
        "--density", metavar="FILE", help="What `mbs-fx measure` wrote, in place of images.", rich_help_panel=INPUT
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="safetensors or a state dict; 'none' for fresh weights. Default: the publisher's, downloaded.",
        rich_help_panel=INPUT,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        help="Input size L. Default: what the network was trained at.",
        rich_help_panel=INPUT,
    ),
]
Batch = Annotated[int | None, typer.Option(min=1, help="Images read at a time. Default: 16.", rich_help_panel=INPUT)]
MaxImages = Annotated[
    int | None,
    typer.Option(min=1, help="Images read at most. Default: until the widths are settled.", rich_help_panel=INPUT),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that read images. Default: none but this.", rich_help_panel=INPUT)
]
BadImage = Annotated[
    str | None,
    typer.Option(
        "--on-bad-image",
        metavar="raise|skip",
        help="At an image file that cannot be read: stop, or leave it out and count it. Default: raise.",
        rich_help_panel=INPUT,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where to run. Default: cuda where there is one, else cpu.", rich_help_panel=INPUT),
]
Z = Annotated[
    float | None,
    typer.Option(
        "--z",
        help="Threshold z, in multiples of the input size L. Default: 1; with a budget, the largest that fits.",
        rich_help_panel=AMOUNT,
    ),
]
Eval = Annotated[
    Path | None,
    typer.Option(
        "--eval",
        metavar="DIR|CSV",
        exists=True,
        help="Labelled images to test on, before and after: a folder per class, or a CSV of file names and labels.",
        rich_help_panel=INPUT,
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Names of all classes, one a line, in the order of the outputs. Default: the classes' names are numbers, "
        "or as many as there are outputs, in the order of the names.",
        rich_help_panel=INPUT,
    ),
]
Settled = Annotated[
    list[float] | None,
    typer.Option(
        "--z",
        help="Threshold whose widths are to be settled, in multiples of L. Repeatable. Default: 1.",
        rich_help_panel=AMOUNT,
    ),
]
MaxParams = Annotated[
    str | None,
    typer.Option(metavar="N|%", help="Budget of parameters: a number or a share (50%).", rich_help_panel=AMOUNT),
]
MaxFlops = Annotated[
    str | None,
    typer.Option(metavar="N|%", help="Budget of multiply-adds, for one image.", rich_help_panel=AMOUNT),
]
MaxBytes = Annotated[
    str | None, typer.Option(metavar="N|%", help="Budget of the bytes of weights.", rich_help_panel=AMOUNT)
]
MaxLatency = Annotated[
    str | None,
    typer.Option(
        "--max-latency-ms",
        metavar="MS|%",
        help="Budget of time for one image; candidates are timed.",
        rich_help_panel=AMOUNT,
    ),
]
Beta = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=β", help="Scaling factor in place of Algorithm 1. Repeatable.", rich_help_panel=AMOUNT),
]
Width = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=N", help="Width in place of a factor. Repeatable.", rich_help_panel=AMOUNT),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Width that stays: module path, regex, size, or macroblock (m3). Repeatable.",
        rich_help_panel=STAYS,
    ),
]
Opaque = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX", help="Modules to scale as a whole, by path. Repeatable.", rich_help_panel=STAYS),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Fail where channels cannot be followed.", rich_help_panel=STAYS)
]
RoundTo = Annotated[
    Any,
    typer.Option(
        parser=_multiple,
        metavar="N|auto",
        help="Widths are multiples of N where groups allow it; auto: what the device computes in one block.",
        rich_help_panel=STAYS,
    ),
]
MinWidth = Annotated[int, typer.Option(min=1, metavar="N", help="No scaled width is less.", rich_help_panel=STAYS)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.", rich_help_panel=OUTPUT)]
Backends = Annotated[
    list[str] | None, typer.Option("--backend", help="eager, compile or onnxruntime. Repeatable. Default: eager.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document in place of text.", rich_help_panel=OUTPUT)]
ShowCode = Annotated[
    bool, typer.Option("--show-code", help="Print the Python that does the same.", rich_help_panel=OUTPUT)
]


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
