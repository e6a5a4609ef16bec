"""``mbs-fx reduce``: from a trained network to a narrower one on disk.

- Without arguments: the ResNet-20 and the CIFAR-10 images that come with the package.
- Two files: the plan (JSON, keyed by module name) and the new network's weights (safetensors).  The printed
  lines of Python put them together again.
- Where nothing can be reduced no file is written, and the exit code is 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mbs_fx.cli import options
from mbs_fx.cli.evaluation import evaluate, requested
from mbs_fx.cli.session import SHIPPED, Session, applied, check_reading, more, outputs, partial, require_free
from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from torch import nn

    from mbs_fx.results.density import Density
    from mbs_fx.results.plan import Plan
    from mbs_fx.results.reconstruction import Reconstruction
    from mbs_fx.results.speed import Bench

SUFFIXES = (".json", ".safetensors")
NOTHING = 3
"""The exit code where every width stays."""


def reduce(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    density: options.DensityFile = None,
    weights: options.Weights = None,
    size: options.Size = None,
    batch: options.Batch = None,
    max_images: options.MaxImages = None,
    workers: options.Workers = None,
    on_bad_image: options.BadImage = None,
    eval_: options.Eval = None,
    classes: options.Classes = None,
    device: options.Device = None,
    z: options.Z = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Apply this plan, perhaps edited, in place of Algorithm 1.",
            rich_help_panel=options.AMOUNT,
        ),
    ] = None,
    max_params: options.MaxParams = None,
    max_flops: options.MaxFlops = None,
    max_bytes: options.MaxBytes = None,
    max_latency_ms: options.MaxLatency = None,
    beta: options.Beta = None,
    width: options.Width = None,
    keep: options.Keep = None,
    round_to: options.RoundTo = 1,
    min_width: options.MinWidth = 1,
    opaque: options.Opaque = None,
    init: Annotated[str, typer.Option(help="Weights: inherit or fresh.", rich_help_panel=options.STAYS)] = "inherit",
    criterion: Annotated[
        str | None,
        typer.Option(
            help="Channels that stay: l1, l2, scale, first; by images readers (default), activation; without them l1.",
            rich_help_panel=options.STAYS,
        ),
    ] = None,
    reconstruct: Annotated[
        bool, typer.Option(help="Refit inherited weights on the images.", rich_help_panel=options.STAYS)
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(metavar="STEM", help="Write STEM.json and STEM.safetensors.", rich_help_panel=options.OUTPUT),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write one page with everything.", rich_help_panel=options.OUTPUT),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.py",
            help="Write the network as Python that needs torch alone.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Time it beside the original.", rich_help_panel=options.OUTPUT)
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Measure densities, plan the widths by Algorithm 1, and write the narrower network."""
    import mbs_fx

    asked = options.planning(
        z=z, max_params=max_params, max_flops=max_flops, max_bytes=max_bytes, max_latency_ms=max_latency_ms,
        round_to=round_to, min_width=min_width, keep=keep, betas=beta, widths=width,
    )  # fmt: skip
    reading: dict[str, Any] = {"max_images": max_images, "workers": workers, "on_bad_image": on_bad_image}
    _check(init, criterion, plan, {**asked, "images": images, "device": device, "batch": batch, **reading})
    report = _report_target(report)
    made, size = (None, size) if plan is None else applied(plan, size)
    if made is None:
        check_reading(model, images, density, device, asked, batch=batch, **reading)
    exported = _export_target(export, force)
    session = Session(model, weights, size, opaque, device=device)
    test = requested(session, eval_, classes)
    wanted = Wanted(outputs(out, f"{session.source.name}-mbs", SUFFIXES, force), report, exported, force, bench)
    if made is None:
        beside = partial(wanted.paths[0].parent, f"{session.source.name}-density")
        found = session.measure(images, density, z, beside, batch_size=batch, **reading)
        made = session.plan(found, asked)
    else:
        session.say("plan", f"mbs_fx.Plan.from_json({str(plan)!r})")
        found = session.load(density)
    networks = session.reduced(made, init, criterion, reconstruct, workers)
    made = mbs_fx.plan_of(list(networks.values())[-1])
    if all(made.widths.get(path, width) == width for path, width in made.before.items()):
        _nothing(session, made, as_json)
    if test is not None:
        evaluate(session, test, networks)
    text, document = _written(session, networks, found, wanted, "" if test is None else test.words)
    session.tell(text, document, as_json, show_code)


@dataclass(frozen=True)
class Wanted:
    """What is written and measured once the network is there."""

    paths: tuple[Path, ...]
    report: Path | None
    exported: tuple[Path, ...]
    force: bool
    bench: bool


def _written(
    session: Session, networks: Mapping[str, nn.Module], density: Density | None, wanted: Wanted, tested: str
) -> tuple[str, dict[str, Any]]:
    """Write the files; what there is to say about them, as text and as JSON."""
    import mbs_fx

    weights, small = list(networks.items())[-1]
    paths = wanted.paths
    mbs_fx.save(small, *paths)
    session.say("", f"mbs_fx.save(small, {str(paths[0])!r}, {str(paths[1])!r})")
    found: Any = small
    plan, refit = mbs_fx.plan_of(small), found.meta.get("mbs_reconstruction")
    files, loading = [*paths], _code(session.source.code, paths)
    timings = _timed(session, small) if wanted.bench else None
    if wanted.report is not None:
        files.append(_reported(session, density, small, wanted.report, loading, timings))
    files += _exported(session, small, wanted.exported, wanted.force)
    document: dict[str, Any] = {"plan": json.loads(plan.to_json()), "files": list(map(str, files)), "code": loading}
    document["accuracy"] = {"is": tested, **plan.accuracy} if tested else None
    document["reconstruction"] = None if refit is None else refit.to_dict()
    text = _text(plan, refit, files, weights, loading, tested)
    if timings is not None:
        document["bench"], text = json.loads(timings.to_json()), f"{text}\n\n{timings}"
    return text, document


def _check(init: str, criterion: str | None, plan: Path | None, given: dict[str, Any]) -> None:
    """Refuse words that mean nothing before anything is loaded."""
    from mbs_fx.rewriting.rewrite import check_words

    check_words(init, criterion or "l1")
    refused = [name for name, value in given.items() if value is not None]
    if plan is not None and refused:
        raise MBSError(f"--plan decides all widths: leave out {', '.join(refused)}")


def _report_target(report: Path | None) -> Path | None:
    """The page that is asked for, if it can be made at all."""
    if report is None:
        return None
    from mbs_fx.pictures.report import report_target

    return report_target(report)


def _reported(
    session: Session,
    density: Density | None,
    small: Any,
    report: Path,
    loading: tuple[str, ...],
    timings: Bench | None,
) -> Path:
    """Write one page with everything; its path."""
    import mbs_fx

    title = session.source.name
    held, words = "density" if density else None, f"title={title!r}, code={loading!r}"
    refit = small.meta.get("mbs_reconstruction")
    more = ', reconstruction=small.meta["mbs_reconstruction"]' if refit is not None else ""
    more += ", bench=timings" if timings is not None else ""
    session.say("", f"mbs_fx.write_report(analysis, {held}, mbs_fx.plan_of(small), {str(report)!r}, {words}{more})")
    plan = mbs_fx.plan_of(small)
    given: dict[str, Any] = {"title": title, "code": loading, "reconstruction": refit, "bench": timings}
    return mbs_fx.write_report(session.analysis, density, plan, report, **given)


def _exported(session: Session, small: Any, paths: tuple[Path, ...], force: bool) -> tuple[Path, ...]:
    """Write the network as Python, where a path was given; the paths."""
    if paths:
        import mbs_fx

        mbs_fx.export_python(small, *paths, force=force)
        session.say("", f"mbs_fx.export_python(small, {str(paths[0])!r}, {str(paths[1])!r}{', force=True' * force})")
    return paths


def _timed(session: Session, small: Any) -> Bench:
    """The original and the small network side by side."""
    import mbs_fx

    session.say("timings", f"mbs_fx.bench(source.model, small{more(device=session.device)})")
    session.say("", "print(timings)")
    return mbs_fx.bench(session.source.model, small, device=session.device)


def _export_target(export: Path | None, force: bool) -> tuple[Path, ...]:
    """The Python file and its weights; raises `MBSError` where one of them is taken."""
    paths = () if export is None else (export, export.with_suffix(".safetensors"))
    require_free(paths, force, "--export")
    return paths


def _nothing(session: Session, plan: Plan, as_json: bool) -> None:
    """Say why every width stays, and leave."""
    if plan.z is not None and all(m.base == m.convs for m in plan.macroblocks):
        why = (
            f"every receptive field stays within z = {plan.z:g} times the input size. `mbs-fx sweep {session.spec}` "
            "lists the thresholds that remove something, if any does"
        )
    else:
        why = "no macroblock is redundant, or its widths are kept or rounded back; the lines above say which"
    document = {"plan": json.loads(plan.to_json()), "files": [], "code": []}
    session.tell(f"{plan}\n\nNothing can be reduced: {why}. No file was written.", document, as_json, show_code=False)
    raise typer.Exit(NOTHING)


def _code(model: tuple[str, ...], paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Python that loads the files into the narrower network."""
    plan, weights = (str(path) for path in paths)
    return ("import mbs_fx", *model, f"small = mbs_fx.load(model, {plan!r}, {weights!r})")


def _text(
    plan: Plan, refit: Reconstruction | None, files: list[Path], weights: str, code: tuple[str, ...], tested: str
) -> str:
    """The plan, how well the weights were reconstructed, what was written, and how to load it."""
    others = "".join(f", {path}" for path in files[2:])
    lines = [
        str(plan),
        "",
        *([f"Accuracy is {tested}.", ""] if tested else []),
        *([] if refit is None else [refit.summary(), f"largest held-back errors: {refit.worst()}", ""]),
        f"Wrote {files[0]} (plan), {files[1]} (weights, {weights}: retrain them){others}. In Python:",
        "",
    ]
    return "\n".join([*lines, *(f"    {line}" for line in code)])
