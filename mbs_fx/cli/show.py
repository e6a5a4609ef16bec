"""``mbs-fx show``: what stands in a file that another command wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mbs_fx.errors import MBSError


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan or a density.")],
) -> None:
    """Print a plan or a density as its table."""
    from mbs_fx.measuring.result import Density
    from mbs_fx.planning.result import Plan

    try:
        kind = json.loads(file.read_text()).get("format")
    except OSError as error:
        raise MBSError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise MBSError(f"{file}: not a file of mbs-fx: {error}") from error
    if kind == "mbs_fx.plan":
        print(Plan.from_json(file))
    elif kind == "mbs_fx.measuring.measure":
        print(Density.load(file))
    else:
        raise MBSError(f"{file}: neither a plan nor a density, its format is {kind!r}")
