"""``mbs-fx bench``: the original and the network that a plan makes, timed side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mbs_fx.cli import options
from mbs_fx.cli.session import Session, applied


def bench(
    model: options.Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="What `mbs-fx plan` or `mbs-fx reduce` wrote.")],
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images in a batch. Repeatable. Default: 1, 16.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on the CPU. Default: as torch has it.")] = None,
    backend: options.Backends = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Turns; more until the ratio is settled.")] = 15,
    device: Annotated[str | None, typer.Option(help="Where. Default: cpu.")] = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Time a network before and after; its weights do not matter."""
    import mbs_fx

    made, size = applied(plan, None)
    session = Session(model, "none", size)
    session.say("small", f"mbs_fx.rewrite(source.model, mbs_fx.Plan.from_json({str(plan)!r}))")
    small = mbs_fx.rewrite(session.source.model, made)
    asked: dict[str, Any] = {
        "batch_sizes": tuple(batch or (1, 16)),
        "threads": threads,
        "device": device,
        "backends": tuple(backend or ("eager",)),
        "repetitions": repetitions,
    }
    written = "".join(f", {name}={value!r}" for name, value in asked.items() if value is not None)
    session.say("", f"print(mbs_fx.bench(source.model, small{written}))")
    found = mbs_fx.bench(session.source.model, small, **asked)
    session.tell(str(found), found.to_json(), as_json, show_code)
