"""``mbs-fx reduce``: from a trained network to a narrower one on disk.

- Without arguments: the ResNet-20 and the CIFAR-10 images that come with the package.
- Two files: the plan (JSON, keyed by module name) and the new network's weights (safetensors).  The printed
  lines of Python put them together again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mbs_fx.cli import options
from mbs_fx.cli.files import outputs
from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mbs_fx.folder import ImageFolder, Preparation
    from mbs_fx.plan_result import Plan

SHIPPED = "sample/resnet20"


def reduce(
    model: options.Model = SHIPPED,
    images: options.Images = None,
    weights: options.Weights = None,
    z: options.Z = 1.0,
    size: options.Size = None,
    batch: options.Batch = 16,
    max_images: options.MaxImages = None,
    workers: options.Workers = 0,
    device: options.Device = None,
    out: Annotated[Path | None, typer.Option(metavar="STEM", help="Write STEM.json and STEM.safetensors.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure densities, plan the widths by Algorithm 1, and write the narrower network."""
    import mbs_fx
    from mbs_fx.models import resolve

    source = resolve(model, weights)
    paths = outputs(out, f"{source.name}-mbs", (".json", ".safetensors"))
    preparation = replace(source.preparation, size=size or source.preparation.size)
    seen = _image_set(model, images, preparation)
    shape = (1, 3, preparation.size, preparation.size)

    gm = mbs_fx.trace(source.model, shape)
    analysis = mbs_fx.analyze(gm, shape)
    density = None
    if seen is not None:
        measure = partial(mbs_fx.measure, analysis=analysis, z=z, device=_device(device))
        density = measure(gm, seen, batch_size=batch, max_images=max_images, workers=workers)
    small = mbs_fx.rewrite(gm, mbs_fx.plan(analysis, density, z=z))
    mbs_fx.save(small, *paths)
    _tell(small.meta["mbs"], paths, _code(source.code, paths), as_json)


def _image_set(model: str, images: Path | None, preparation: Preparation) -> ImageFolder | Tensor | None:
    """What densities are measured on; None where nothing was given."""
    from mbs_fx import sample
    from mbs_fx.folder import folder

    if images is not None:
        return folder(images, preparation)
    if model != SHIPPED:
        return None
    shipped = sample.images()
    if shipped.shape[-1] != preparation.size:
        raise MBSError(f"the shipped images are 32 x 32, not {preparation.size}: name others with --images DIR")
    return shipped


def _device(name: str | None) -> torch.device:
    import torch

    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise MBSError(f"{name!r} is no device: {str(error).splitlines()[0]}") from error


def _code(model: tuple[str, ...], paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Python that loads the files into the narrower network."""
    plan, weights = (str(path) for path in paths)
    return ("import mbs_fx", *model, f"small = mbs_fx.load(model, {plan!r}, {weights!r})")


def _tell(plan: Plan, paths: tuple[Path, ...], code: tuple[str, ...], as_json: bool) -> None:
    """The plan, what was written, and how to load it."""
    if as_json:
        files = [str(path) for path in paths]
        print(json.dumps({"plan": json.loads(plan.to_json()), "files": files, "code": code}))
        return
    print(plan)
    print(f"\nWrote {paths[0]} (plan) and {paths[1]} (weights, inherited: retrain them). In Python:\n")
    print("\n".join(f"    {line}" for line in code))
