"""``mbs-fx retrain``: train what ``mbs-fx reduce`` wrote, on a folder of labelled images, and write it again.

- The data are ``FOLDER/CLASS/*``, or ``FOLDER/train/CLASS/*`` with ``FOLDER/val/CLASS/*`` to test on.  Classes are
  numbered in the order of their names, which must be the order of the network's outputs.
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
from mbs_fx.cli.session import INTERRUPTED, SHIPPED, applied, more, outputs, written
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
        typer.Option(metavar="DIR", help="Images to train on, a folder per class.", rich_help_panel=options.INPUT),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images to test on, a folder per class.", rich_help_panel=options.INPUT),
    ] = None,
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
    """Retrain a reduced network on labelled images; by default as the paper does."""
    recipe = _recipe(
        epochs=epochs, batch=batch, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay,
        schedule=schedule, drops=tuple(drops) if drops else None, label_smoothing=label_smoothing, distill=distill,
        temperature=temperature, average=average, precision=precision, channels_last=channels_last,
        compile=compile_, seed=seed,
    )  # fmt: skip
    if data is None:
        raise MBSError("retraining needs labelled images: name a folder that has a folder per class with --data DIR")
    start = start or plan.with_suffix(".safetensors")
    paths = outputs(out or plan.with_name(f"{plan.stem}-retrained"), plan.stem, (".json", ".safetensors"))
    code = Code()
    arguments = {"device": device, "checkpoint": checkpoint, "log": log, "workers": workers}
    small, sets, source = _network(code, model, weights if teacher else "none", plan, start, data, test)
    try:
        result = _trained(code, small, sets, recipe, source.model if teacher else None, **arguments)
    except KeyboardInterrupt:
        after = f"the same command goes on from {checkpoint}" if checkpoint else "with --checkpoint it could go on"
        print(f"mbs-fx: interrupted; no network was written, {after}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    _finish(code, small, result, paths, as_json, show_code)


class Code(list[str]):
    """The Python that does the same, line by line."""

    def say(self, *lines: str) -> None:
        self.extend(lines)


def _network(
    code: Code, model: str, weights: str | None, plan: Path, start: Path, data: Path, test: Path | None
) -> tuple[nn.Module, tuple[Any, Any], Source]:
    """The reduced network with its weights, the images, and the original."""
    import mbs_fx
    from mbs_fx.folder import labelled
    from mbs_fx.models import load_weights, resolve

    made, size = applied(plan, None)
    source = resolve(model, weights)
    preparation = dataclasses.replace(source.preparation, size=size)
    small: Any = mbs_fx.rewrite(source.model, made)
    load_weights(small, start)
    train, test = (data / "train", test or data / "val") if (data / "train").is_dir() else (data, test)
    sets = labelled(train, preparation, augment=True), None if test is None else labelled(test, preparation)
    code.say(
        "from dataclasses import replace",
        "import mbs_fx",
        "from mbs_fx.folder import labelled",
        "from mbs_fx.models import load_weights, resolve",
        "",
        f"source = resolve({written(model, weights=weights)})",
        f"preparation = replace(source.preparation, size={size})",
        f"small = mbs_fx.rewrite(source.model, mbs_fx.Plan.from_json({str(plan)!r}))",
        f"load_weights(small, {str(start)!r})",
        f"train = labelled({str(train)!r}, preparation, augment=True)",
        "test = None" if test is None else f"test = labelled({str(test)!r}, preparation)",
    )
    return small, sets, source


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
        print(json.dumps({"recipe": result.recipe.plain(), "epochs": epochs, "files": files}))
    else:
        print(f"{result}\n\nWrote {files[0]} (plan), {files[1]} (weights).")


def _recipe(**given: Any) -> Recipe:
    from mbs_fx.training.recipe import Recipe

    return Recipe(**{name: value for name, value in given.items() if value is not None})
