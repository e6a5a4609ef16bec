"""The small commands: ``analyze``, ``measure``, ``plan``, ``sweep``, ``draw`` and ``show``.

Each calls the Python function of its name and prints or writes what that gives back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mbs_fx.cli import options
from mbs_fx.cli.evaluation import PlanTest, requested
from mbs_fx.cli.session import SHIPPED, Session, applied, check_reading, expect, held, more, needed, outputs, partial
from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from mbs_fx.results.analysis import Analysis


def analyze(
    model: options.Model = SHIPPED,
    size: options.Size = None,
    opaque: options.Opaque = None,
    strict: options.Strict = False,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Show what the analysis finds out about a network; its weights do not matter."""
    session = Session(model, "none", size, opaque, strict)
    session.say("", "print(analysis)")
    session.tell(str(session.analysis), _document(session.analysis), as_json, show_code)


def _document(analysis: Analysis) -> dict[str, Any]:
    fields = ("name", "target", "spatial_size", "stride", "receptive_field", "flops", "width", "macroblock", "counted")
    return {
        "input_shapes": analysis.input_shapes,
        "macroblocks": [
            {
                "index": m.index,
                "spatial_size": m.spatial_size,
                "convs": m.convs,
                "segments": [s.name for s in m.segments],
            }
            for m in analysis.macroblocks
        ],
        "convs": [{name: getattr(conv, name) for name in fields} for conv in analysis.convs],
        "kept": dict(analysis.kept),
        "notes": analysis.notes,
    }


def measure(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    weights: options.Weights = None,
    z: options.Settled = None,
    size: options.Size = None,
    opaque: options.Opaque = None,
    batch: options.Batch = None,
    max_images: options.MaxImages = None,
    workers: options.Workers = None,
    on_bad_image: options.BadImage = None,
    device: options.Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write. Default: NAME-density.json.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Measure densities on images; plans of any threshold can be made from the file."""
    if images is None and model != SHIPPED:
        raise MBSError("measuring needs images: name a folder with --images DIR")
    session = Session(model, weights, size, opaque, device=device)
    (path,) = outputs(out, f"{session.source.name}-density", (".json",), force)
    zs = tuple(z) if z and len(z) > 1 else z[0] if z else None
    reading = {"batch_size": batch, "max_images": max_images, "workers": workers}
    density = session.measure(images, None, zs, partial(path.parent, path.stem), on_bad_image, **reading)
    assert density is not None
    session.say("", f"density.save({str(path)!r})")
    density.save(path)
    session.tell(f"{density}\n\nWrote {path}.", density.to_json(), as_json, show_code)


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
    batch: options.Batch = None,
    on_bad_image: options.BadImage = None,
    device: options.Device = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write. Default: NAME-plan.json.", rich_help_panel=options.OUTPUT),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Plan the widths by Algorithm 1; `mbs-fx reduce --plan FILE` applies them."""
    asked = options.planning(
        z=z, max_params=max_params, max_flops=max_flops, max_bytes=max_bytes, max_latency_ms=max_latency_ms,
        round_to=round_to, min_width=min_width, keep=keep, betas=beta, widths=width,
    )  # fmt: skip
    check_reading(model, images, density, device, asked, batch=batch, on_bad_image=on_bad_image)
    session = Session(model, needed(weights, model, images, density), size, opaque, device=device)
    (path,) = outputs(out, f"{session.source.name}-plan", (".json",), force)
    beside = partial(path.parent, f"{session.source.name}-density")
    found = session.measure(images, density, z, beside, on_bad_image, batch_size=batch)
    made = session.plan(found, asked)
    session.say("", f"plan.to_json({str(path)!r})")
    made.to_json(path)
    session.tell(f"{made}\n\nWrote {path}.", made.to_json(), as_json, show_code)


def sweep(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    density: options.DensityFile = None,
    weights: options.Weights = None,
    size: options.Size = None,
    opaque: options.Opaque = None,
    round_to: options.RoundTo = 1,
    min_width: options.MinWidth = 1,
    keep: options.Keep = None,
    batch: options.Batch = None,
    on_bad_image: options.BadImage = None,
    eval_: options.Eval = None,
    classes: options.Classes = None,
    device: options.Device = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all plans as JSON.", rich_help_panel=options.OUTPUT)
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Show parameters, flops, bytes, and accuracy with --eval, for every threshold that makes a difference."""
    import mbs_fx

    asked = options.planning(round_to=round_to, min_width=min_width, keep=keep)
    check_reading(model, images, density, device, asked, batch=batch, on_bad_image=on_bad_image)
    given = weights if eval_ is not None else needed(weights, model, images, density)
    session = Session(model, given, size, opaque, device=device)
    asked = session.rounded(asked)
    test = None if eval_ is None and classes is None else requested(session, eval_, classes)
    paths = outputs(out, f"{session.source.name}-sweep", (".json",), force) if out is not None else ()
    beside = partial(paths[0].parent if paths else Path(), f"{session.source.name}-density")
    found = session.measure(images, density, None, beside, on_bad_image, batch_size=batch)
    tested = None if test is None else PlanTest(session, test)
    made = mbs_fx.sweep(session.analysis, found, evaluate=tested, **asked)
    for line in () if tested is None else tested.code():
        session.say("", line)
    how = more(**asked) + ", evaluate=tested" * (tested is not None)
    session.say("plans", f"mbs_fx.sweep(analysis, density{how})")
    for path in paths:
        made.to_json(path)
        session.say("", f"plans.to_json({str(path)!r})")
    session.say("", "print(plans)")
    below = "" if test is None else f"\n\nAccuracy is {test.words}."
    session.tell(f"{made}{below}", made.to_json(), as_json, show_code)


def draw(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to: .svg, .html, .png or .dot.")],
    model: options.Model = SHIPPED,
    density: options.DensityFile = None,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Widths before and after, by a plan.", rich_help_panel=options.INPUT),
    ] = None,
    size: options.Size = None,
    opaque: options.Opaque = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Draw a network, one frame per macroblock; its weights do not matter."""
    import mbs_fx

    extra = ""
    found = made = None
    if plan is not None:
        made, size = applied(plan, size)
        extra = f", plan=mbs_fx.Plan.from_json({str(plan)!r})"
    session = Session(model, "none", size, opaque)
    if density is not None:
        expect(density, "mbs_fx.density")
        found = mbs_fx.Density.load(density)
        extra += f", density=mbs_fx.Density.load({str(density)!r})"
    path = str(mbs_fx.draw(session.analysis, out, density=found, plan=made, title=session.source.name))
    session.say("", f"mbs_fx.draw(analysis, {path!r}{extra}, title={session.source.name!r})")
    session.tell(f"Wrote {path}.", {"files": [path]}, as_json, show_code)


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plan or a density.")],
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Print a plan or a density as its table."""
    from mbs_fx.results.density import Density
    from mbs_fx.results.plan import Plan

    kind = held(file)
    if kind == "mbs_fx.plan":
        found, code = Plan.from_json(file), f"mbs_fx.Plan.from_json({str(file)!r})"
    elif kind == "mbs_fx.density":
        found, code = Density.load(file), f"mbs_fx.Density.load({str(file)!r})"
    else:
        raise MBSError(f"{file}: neither a plan nor a density, its format is {kind!r}")
    if show_code:
        print(f"import mbs_fx\nprint({code})")
    else:
        print(found.to_json() if as_json else found)
