"""``mbs-fx retrain``: train what ``mbs-fx reduce`` wrote, on a folder of labelled images, and write it again.

- The data are ``FOLDER/CLASS/*``, or ``FOLDER/train/CLASS/*`` with ``FOLDER/val/CLASS/*`` to test on, or CSV files of
  names and labels.  Which output a class is, stands in `mbs_fx.folder`.
- With ``--teacher`` any images will do, without labels: ``--images FOLDER``.
- The fields of `mbs_fx.Recipe` are options of the same names; what is not given is the paper's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mbs_fx.cli import options
from mbs_fx.cli.evaluation import labelled_images
from mbs_fx.cli.session import INTERRUPTED, SHIPPED, applied, made_by, more, outputs, written
from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from torch import nn

    from mbs_fx.models import Source
    from mbs_fx.training.recipe import Recipe
    from mbs_fx.training.result import Training

RECIPE = "Recipe"


def _field(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=RECIPE)


def retrain(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The STEM.json that `mbs-fx reduce` wrote.")],
    model: options.Model = SHIPPED,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|CSV",
            help="Images to train on: a folder per class, or a CSV of file names and labels.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images without labels, at any depth, for --teacher.", rich_help_panel=options.INPUT
        ),
    ] = None,
    eval_: options.Eval = None,
    classes: options.Classes = None,
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights to start from. Default: STEM.safetensors beside the plan.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="The original network teaches, too.", rich_help_panel=options.INPUT)
    ] = False,
    weights: options.Weights = None,
    workers: options.Workers = None,
    device: options.Device = None,
    epochs: Annotated[int | None, _field("Passes over the training images.")] = None,
    batch: Annotated[int | None, _field("Images a step, over all processes.")] = None,
    lr: Annotated[float | None, _field("Learning rate at the start, or at the peak of one-cycle.")] = None,
    momentum: Annotated[float | None, _field("Of SGD.")] = None,
    nesterov: Annotated[bool | None, _field("Look ahead with the momentum.")] = None,
    weight_decay: Annotated[float | None, _field("On every parameter.")] = None,
    schedule: Annotated[str | None, _field("steps or one-cycle.")] = None,
    drops: Annotated[
        list[float] | None, _field("Share of the epochs after which the rate is divided by 10. Repeatable.")
    ] = None,
    label_smoothing: Annotated[float | None, _field("Share of the label spread over all classes.")] = None,
    distill: Annotated[float | None, _field("Weight of the teacher's answers, 0 to 1.")] = None,
    temperature: Annotated[float | None, _field("Of both networks' logits where the teacher is imitated.")] = None,
    average: Annotated[float | None, _field("Decay of an averaged copy of the weights.")] = None,
    precision: Annotated[str | None, _field("auto, float32 or bfloat16.")] = None,
    channels_last: Annotated[bool | None, _field("Memory order of images and weights.")] = None,
    compile_: Annotated[bool | None, _field("Train through torch.compile.", "--compile/--no-compile")] = None,
    seed: Annotated[int | None, _field("Of everything that is drawn.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Written after every epoch; the same command goes on from it.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One JSON line an epoch is appended.", rich_help_panel=options.OUTPUT),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="STEM",
            help="Write STEM.json and STEM.safetensors. Default: the plan's name with -retrained.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: options.Json = False,
    show_code: options.ShowCode = False,
) -> None:
    """Retrain a reduced network on labelled images, or by its teacher; by default as the paper does."""
    start = start or plan.with_suffix(".safetensors")
    recipe = _recipe(
        epochs=epochs, batch=batch, lr=_first_rate(lr, start), momentum=momentum, nesterov=nesterov,
        weight_decay=weight_decay, schedule=schedule, drops=tuple(drops) if drops else None,
        label_smoothing=label_smoothing, distill=distill, temperature=temperature, average=average,
        precision=precision, channels_last=channels_last, compile=compile_, seed=seed,
    )  # fmt: skip
    _check(data, images, teacher)
    paths = outputs(out or plan.with_name(f"{plan.stem}-retrained"), plan.stem, (".json", ".safetensors"))
    code = Code()
    arguments = {"device": device, "checkpoint": checkpoint, "log": log, "workers": workers}
    small, source = _network(code, model, weights if teacher else "none", plan, start)
    sets = _sets(code, small, source, data, images, eval_, classes)
    try:
        result = _trained(code, small, sets, recipe, source.model if teacher else None, **arguments)
    except KeyboardInterrupt:
        after = f"the same command goes on from {checkpoint}" if checkpoint else "with --checkpoint it could go on"
        print(f"mbs-fx: interrupted; no network was written, {after}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _finish(code, small, result, paths, as_json, show_code)


def _first_rate(lr: float | None, start: Path) -> float | None:
    """The learning rate at the start: a smaller one from reconstructed weights, where none is given."""
    from mbs_fx.rewriting.saving import is_refitted
    from mbs_fx.training.recipe import REFITTED

    return REFITTED if lr is None and is_refitted(start) else lr


def _check(data: Path | None, images: Path | None, teacher: bool) -> None:
    """Refuse images that nothing can be learned from."""
    if data is not None and images is not None:
        raise MBSError("give --data or --images, not both")
    if images is not None and not teacher:
        raise MBSError(f"--images {images}: images without labels teach nothing by themselves: add --teacher")
    if data is None and images is None:
        raise MBSError(
            "retraining needs labelled images, --data DIR with a folder per class, or any images and --teacher: "
            "--images DIR"
        )


class Code(list[str]):
    """The Python that does the same, line by line."""

    def say(self, *lines: str) -> None:
        self.extend(lines)


def _network(code: Code, model: str, weights: str | None, plan: Path, start: Path) -> tuple[nn.Module, Source]:
    """The reduced network with its weights, and the original."""
    import mbs_fx
    from mbs_fx.models import resolve

    made, size = applied(plan, None)
    source = resolve(model, weights)
    small: Any = mbs_fx.load(source.model, made, start)
    code.say(
        "import mbs_fx",
        "from mbs_fx.folder import Preparation, folder, labelled",
        "from mbs_fx.models import resolve",
        "",
        f"source = resolve({written(model, weights=weights)})",
        f"small = mbs_fx.load(source.model, {str(plan)!r}, {str(start)!r})",
    )
    return small, dataclasses.replace(source, preparation=dataclasses.replace(source.preparation, size=size))


def _sets(
    code: Code,
    small: nn.Module,
    source: Source,
    data: Path | None,
    images: Path | None,
    test: Path | None,
    classes: Path | None,
) -> tuple[Any, Any]:
    """What to train and to test on."""
    from mbs_fx.folder import folder

    if data is not None and (data / "train").is_dir():
        data, test = data / "train", test or data / "val"
    if classes is not None and data is None and test is None:
        raise MBSError(f"--classes {classes}: no effect without labelled images")
    if data is not None:
        train, call = labelled_images(data, source.preparation, classes, small, augment=True)
    else:
        train = folder(images or "", source.preparation, augment=True)
        call = f"folder({str(images)!r}, {made_by(source.preparation)}, augment=True)"
    code.say(f"train = {call}")
    tested, call = (None, "None") if test is None else labelled_images(test, source.preparation, classes, small)
    code.say(f"test = {call}")
    return train, tested


def _trained(
    code: Code, small: nn.Module, sets: tuple[Any, Any], recipe: Recipe, teacher: nn.Module | None, **arguments: Any
) -> Training:
    """Train, and note the call."""
    import mbs_fx

    arguments = {name: value for name, value in arguments.items() if value is not None}
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    taught = "" if teacher is None else ", teacher=source.model"
    code.say(f"recipe = mbs_fx.{recipe!r}", f"print(mbs_fx.retrain(small, train, test, recipe{taught}{more(**shown)}))")
    return mbs_fx.retrain(small, *sets, recipe, teacher=teacher, **arguments)


def _finish(
    code: Code, small: nn.Module, result: Training, paths: tuple[Path, ...], as_json: bool, show_code: bool
) -> None:
    """Write the network and print what came of it; under torchrun the first process does."""
    import mbs_fx

    if os.environ.get("RANK", "0") != "0":
        return
    mbs_fx.save(small, *paths)
    code.say(f"mbs_fx.save(small, {str(paths[0])!r}, {str(paths[1])!r})")
    files = [str(path) for path in paths]
    if show_code:
        print("\n".join(code))
    elif as_json:
        epochs = [dataclasses.asdict(epoch) for epoch in result.epochs]
        accuracy = dict(mbs_fx.plan_of(small).accuracy)
        print(json.dumps({"recipe": result.recipe.plain(), "epochs": epochs, "accuracy": accuracy, "files": files}))
    else:
        from mbs_fx.results.tables import accuracy_text

        accuracy = mbs_fx.plan_of(small).accuracy
        below = f"\n\naccuracy {accuracy_text(accuracy)}" if accuracy else ""
        print(f"{result}{below}\n\nWrote {files[0]} (plan), {files[1]} (weights).")


def _recipe(**given: Any) -> Recipe:
    from mbs_fx.training.recipe import Recipe

    return Recipe(**{name: value for name, value in given.items() if value is not None})
