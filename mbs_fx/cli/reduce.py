"""``mbs-fx reduce``: from a trained network to a narrower one on disk.

- Without arguments: the ResNet-20 and the CIFAR-10 images that come with the package.
- Two files: the plan (JSON, keyed by module name) and the new network's weights (safetensors).  The printed
  lines of Python put them together again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbs_fx.cli import options
from mbs_fx.cli.files import outputs
from mbs_fx.cli.session import SHIPPED, Session, applied
from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from mbs_fx.results.plan import Plan


def reduce(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    density: options.DensityFile = None,
    weights: options.Weights = None,
    z: options.Z = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Apply this plan, perhaps edited, in place of Algorithm 1.")
    ] = None,
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
    init: Annotated[str, typer.Option(help="Weights: inherit or fresh.")] = "inherit",
    criterion: Annotated[str, typer.Option(help="Channels that stay: l1, l2, scale or first.")] = "l1",
    batch: options.Batch = 16,
    max_images: options.MaxImages = None,
    workers: options.Workers = 0,
    device: options.Device = None,
    out: Annotated[Path | None, typer.Option(metavar="STEM", help="Write STEM.json and STEM.safetensors.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write one page with everything.")] = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Measure densities, plan the widths by Algorithm 1, and write the narrower network."""
    import mbs_fx
    from mbs_fx.rewriting.rewrite import check_words

    check_words(init, criterion)
    asked = options.planning(
        z=z, max_params=max_params, max_flops=max_flops, max_bytes=max_bytes, max_latency_ms=max_latency_ms,
        round_to=round_to, min_width=min_width, keep=keep, betas=beta, widths=width,
    )  # fmt: skip
    refused = [*asked, *(() if images is None else ("images",))]
    if plan is not None and refused:
        raise MBSError(f"--plan decides all widths: leave out {', '.join(refused)}")
    if report is not None:
        from mbs_fx.pictures.report import report_target

        report = report_target(report)
    made = None
    if plan is not None:
        made, size = applied(plan, size)
    session = Session(model, weights, size, opaque)
    paths = outputs(out, f"{session.source.name}-mbs", (".json", ".safetensors"))
    if made is not None:
        session.say("plan", f"mbs_fx.Plan.from_json({str(plan)!r})")
        found = session.load(density)
    else:
        reading = {"batch_size": batch, "max_images": max_images, "workers": workers}
        found = session.measure(images, density, z, device, **reading)
        made = session.plan(found, asked, device)
    small = mbs_fx.rewrite(session.gm, made, init=init, criterion=criterion)
    session.say("small", f"mbs_fx.rewrite(gm, plan, init={init!r}, criterion={criterion!r})")
    mbs_fx.save(small, *paths)
    session.say("", f"mbs_fx.save(small, {str(paths[0])!r}, {str(paths[1])!r})")
    files = [*paths]
    if report is not None:
        title = session.source.name
        files.append(mbs_fx.write_report(session.analysis, found, made, report, title=title))
        given = f"{'density' if found else None}, plan, {str(report)!r}, title={title!r}"
        session.say("", f"mbs_fx.write_report(analysis, {given})")
    loading = _code(session.source.code, paths)
    document = {"plan": json.loads(small.meta["mbs"].to_json()), "files": list(map(str, files)), "code": loading}
    session.tell(_text(small.meta["mbs"], files, init, loading), document, as_json, show_code)


def _code(model: tuple[str, ...], paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Python that loads the files into the narrower network."""
    plan, weights = (str(path) for path in paths)
    return ("import mbs_fx", *model, f"small = mbs_fx.load(model, {plan!r}, {weights!r})")


def _text(plan: Plan, files: list[Path], init: str, code: tuple[str, ...]) -> str:
    """The plan, what was written, and how to load it."""
    how = "inherited" if init == "inherit" else init
    more = "".join(f", {path}" for path in files[2:])
    lines = [str(plan), "", f"Wrote {files[0]} (plan), {files[1]} (weights, {how}: retrain them){more}. In Python:", ""]
    return "\n".join([*lines, *(f"    {line}" for line in code)])
