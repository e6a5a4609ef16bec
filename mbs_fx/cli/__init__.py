"""The command line: ``mbs-fx COMMAND``, with the words of the Python calls.

- Results go to standard output; progress, notices and errors to standard error.
- Exit codes: 0 done; 1 an `MBSError`, in one line; 2 a wrong command line; 3 nothing to reduce; 130 interrupted.
- Nothing heavy is imported before a command runs: help and shell completion do not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mbs_fx.cli import bench, commands, reduce, retrain
from mbs_fx.errors import MBSError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for _command in (
    commands.analyze,
    commands.measure,
    commands.plan,
    commands.sweep,
    reduce.reduce,
    retrain.retrain,
    bench.bench,
    commands.draw,
    commands.show,
):
    app.command()(_command)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("mbs-fx"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Macroblock scaling: find out where a trained CNN is too wide, and make it narrower there."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always leaves by `SystemExit`."""
    try:
        app(args=arguments, prog_name="mbs-fx")
    except MBSError as error:
        print(f"mbs-fx: error: {error}", file=sys.stderr)
        sys.exit(1)
