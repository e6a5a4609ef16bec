"""``mbs-fx show``: what stands in a file that another command wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mbs_fx.cli import options
from mbs_fx.errors import MBSError


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan or a density.")],
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Print a plan or a density as its table."""
    from mbs_fx.results.density import Density
    from mbs_fx.results.plan import Plan

    try:
        kind = json.loads(file.read_text()).get("format")
    except OSError as error:
        raise MBSError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise MBSError(f"{file}: not a file of mbs-fx: {error}") from error
    if kind == "mbs_fx.plan":
        held, code = Plan.from_json(file), f"mbs_fx.Plan.from_json({str(file)!r})"
    elif kind == "mbs_fx.density":
        held, code = Density.load(file), f"mbs_fx.Density.load({str(file)!r})"
    else:
        raise MBSError(f"{file}: neither a plan nor a density, its format is {kind!r}")
    if show_code:
        print(f"import mbs_fx\nprint({code})")
    else:
        print(held.to_json() if as_json else held)
