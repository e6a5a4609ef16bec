"""Networks by name, as the command line takes them.

- ``torchvision/NAME`` and ``timm/NAME`` are built by those libraries, ``FILE.py:FACTORY`` by calling a
  function (or class) of your own without arguments, ``sample/resnet20`` is shipped with this package.
- Weights: ``None`` takes those that the publisher recommends (a factory: whatever it returns), ``"none"``
  leaves the network untrained, anything else is a file: safetensors, or a state dict that torch reads with
  ``weights_only``.
- A `Source` knows the Python that builds the same network again, which is what a saved plan is applied to.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any, cast

from torch import nn

from mbs_fx import sample
from mbs_fx.errors import MBSError
from mbs_fx.folder import Channels, Preparation
from mbs_fx.rewriting.weights import fill, read_weights

OPTIONAL = "num_batches_tracked"  # not in older files, and used only by a BatchNorm without momentum


@dataclass(frozen=True)
class Source:
    """A network in eval mode, the images it expects, and where it came from.

    ``code``: lines of Python that build the same architecture, the last of which binds ``model``.
    ``name``: what files about it are called.
    """

    model: nn.Module
    name: str
    code: tuple[str, ...]
    preparation: Preparation


def resolve(spec: str, weights: str | Path | None = None) -> Source:
    """The network that ``spec`` names, in eval mode, with its weights."""
    kind, slash, name = spec.partition("/")
    if ".py:" in spec:
        source = _from_file(spec)
    elif slash and kind in BUILDERS:
        source = BUILDERS[kind](name, weights is None)
    else:
        forms = ", ".join(f"{kind}/NAME" for kind in BUILDERS)
        raise MBSError(f"{spec!r} does not name a network{_meant(spec)}; use {forms} or path/to/file.py:factory")
    if weights is not None and str(weights) != "none":
        load_weights(source.model, weights)
    source.model.eval()
    return source


def load_weights(model: nn.Module, file: str | Path) -> None:
    """Fill ``model`` from a file of safetensors or a pickled state dict; every parameter must be there."""
    file = Path(file)
    state, own = read_weights(file), model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in state and not key.endswith(OPTIONAL)]
    wrong += [f"{key} is not part of the model" for key in state if key not in own]
    wrong += [
        f"{key} has shape {tuple(state[key].shape)}, the model's has {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise MBSError(f"{file} holds other weights than {type(model).__name__} has: {wrong[0]}{more}")
    fill(model, state)


def _from_sample(name: str, trained: bool) -> Source:
    if name != "resnet20":
        raise MBSError(f"sample/{name} is not shipped; sample/resnet20 is")
    call = "trained()" if trained else "resnet(20)"
    model = sample.trained() if trained else sample.resnet(20)
    code = ("from mbs_fx import sample", f"model = sample.{call}")
    return Source(model, name, code, Preparation(32, sample.MEAN, sample.STD))


def _from_torchvision(name: str, trained: bool) -> Source:
    from torchvision import models

    if name not in models.list_models():
        raise MBSError(
            f"torchvision has no network {name!r}{_meant('torchvision/' + name)}; torchvision.models.list_models() "
            "names them"
        )
    given: dict[str, Any] = {"weights": "DEFAULT" if trained else None}
    if not trained and "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        given["weights_backbone"] = None  # segmentation and detection fetch those of their backbone otherwise
    with _fetching(f"torchvision/{name}"):
        model = models.get_model(name, **given)
    written = "".join(f", {key}={value!r}" for key, value in given.items())
    code = ("import torchvision", f"model = torchvision.models.get_model({name!r}{written})")
    seen = models.get_model_weights(name)["DEFAULT"].transforms()
    size = getattr(seen, "crop_size", [224])[0]
    return Source(model, name, code, _prepared(size, getattr(seen, "mean", None), getattr(seen, "std", None)))


def _from_timm(name: str, trained: bool) -> Source:
    if importlib.util.find_spec("timm") is None:
        raise MBSError(f"timm/{name} needs timm: pip install timm")
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise MBSError(f"timm has no network {name!r}{_meant('timm/' + name)}; timm.list_models() names them")
    with _fetching(f"timm/{name}"):
        model = timm.create_model(name, pretrained=trained)
    code = ("import timm", f"model = timm.create_model({name!r})")
    seen = cast("Mapping[str, Any]", model.pretrained_cfg)
    return Source(model, name, code, _prepared(seen["input_size"][-1], seen["mean"], seen["std"]))


def _from_file(spec: str) -> Source:
    """``path/to/file.py:factory``: run the file, call the factory without arguments."""
    path, _, factory = spec.rpartition(":")
    file = Path(path)
    if not file.is_file():
        raise MBSError(f"there is no file {file}; a network of your own is named path/to/file.py:factory")
    with _importable(file.resolve().parent):
        with _blaming(file, str(file)):
            module = _executed(file)
        make = getattr(module, factory, None)
        if not callable(make):
            raise MBSError(f"{file} has no function or class {factory!r}")
        with _blaming(file, f"{factory}() in {file}"):
            model = make()
    if not isinstance(model, nn.Module):
        raise MBSError(f"{factory}() in {file} gave a {type(model).__name__}; it must return an nn.Module")
    code = ("from mbs_fx.models import resolve", f"model = resolve({spec!r}).model")
    return Source(model, factory.lower(), code, Preparation())


BUILDERS: Mapping[str, Callable[[str, bool], Source]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "sample": _from_sample,
}


def _meant(spec: str) -> str:
    """The known names closest to what was written, as a question; empty where none is close."""
    from torchvision import models

    known = [f"torchvision/{name}" for name in models.list_models()] + ["sample/resnet20"]
    if importlib.util.find_spec("timm") is not None:
        import timm

        known += [f"timm/{name}" for name in timm.list_models()]
    exact = [name for name in known if name.partition("/")[2] == spec]
    near = exact or get_close_matches(spec, known, 3, 0.75)
    if not near and "/" not in spec:
        names = dict.fromkeys(name.partition("/")[2] for name in known)
        near = [
            name for close in get_close_matches(spec, names, 3, 0.75) for name in known if name.endswith(f"/{close}")
        ]
    return f" ({', '.join(near[:3])}?)" if near else ""


def _prepared(size: int, mean: Any, std: Any) -> Preparation:
    default = Preparation()
    return Preparation(
        int(size), cast(Channels, tuple(mean or default.mean)), cast(Channels, tuple(std or default.std))
    )


@contextmanager
def _fetching(spec: str) -> Generator[None]:
    """Says in one line that weights were out of reach; both libraries raise OSError or RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise MBSError(
            f"the weights of {spec} could not be fetched ({_line(error)}); name a file of weights, "
            "or 'none' for fresh ones"
        ) from error


def _line(error: Exception) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _importable(directory: Path) -> Generator[None]:
    """Modules beside a file can be imported by it."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))


@contextmanager
def _blaming(file: Path, what: str) -> Generator[None]:
    """Says in one line what failed in somebody's file, and in which of its lines."""
    try:
        yield
    except Exception as error:
        frames = [frame for frame in extract_tb(error.__traceback__) if Path(frame.filename).name == file.name]
        where = f" in line {frames[-1].lineno}" if frames else ""
        raise MBSError(f"{what} failed{where}: {type(error).__name__}: {_line(error)}") from error


def _executed(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise MBSError(f"{file} cannot be imported; it must be a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as import does: dataclasses and torch.fx look modules up by name
    spec.loader.exec_module(module)
    return module
