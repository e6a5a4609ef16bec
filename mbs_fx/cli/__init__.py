"""The command line: ``mbs-fx COMMAND``, one module a command, with the words of the Python calls.

- Results go to standard output, progress and errors to standard error.
- Exit codes: 0 done; 1 an `MBSError`, said in one line; 2 a wrong command line.
- Nothing heavy is imported before a command runs, so that help and shell completion answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mbs_fx.cli import analyze, draw, measure, plan, reduce, show, sweep
from mbs_fx.errors import MBSError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for _command in (analyze.analyze, measure.measure, plan.plan, sweep.sweep, reduce.reduce, draw.draw, show.show):
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
        app(args=arguments)
    except MBSError as error:
        print(f"mbs-fx: error: {error}", file=sys.stderr)
        sys.exit(1)
