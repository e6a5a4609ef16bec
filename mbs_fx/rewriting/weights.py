"""Weights as they come: a file or a mapping, bare or inside a checkpoint, with the prefixes of wrappers.

Semantics
- A file is safetensors, or a ``torch.save`` read with ``weights_only``: nothing in it is executed.
- A checkpoint's state dict is looked for under the names that training loops give it, one level deep or more.
- ``module.`` (DataParallel, DistributedDataParallel, AveragedModel) and ``_orig_mod.`` (torch.compile) are no part of
  a name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbs_fx.errors import MBSError

NESTED = ("state_dict", "model", "model_state_dict", "model_state", "net", "ema", "model_ema", "state_dict_ema")
WRAPPERS = ("module.", "_orig_mod.")


def read_weights(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by their names in the network."""
    path = Path(file)
    if not path.is_file():
        raise MBSError(f"there is no weights file {path}")
    try:
        held = _read(path)
    except Exception as error:  # safetensors and torch raise a dozen kinds for a file that is not theirs
        raise MBSError(f"{path} is neither safetensors nor a state dict (weights_only): {_line(error)}") from error
    if not isinstance(held, Mapping):
        raise MBSError(f"{path} holds a {type(held).__name__}; save model.state_dict() instead")
    return state_of(held, str(path))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import pickle

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to load what is not safe
        raise ValueError("save model.state_dict() instead of what it holds") from error


def state_of(held: Mapping[str, Any], name: str = "the weights") -> dict[str, Tensor]:
    """The state dict in a mapping, without the prefixes of wrappers; ``name`` is what errors call it."""
    saw = list(held)
    while not any(isinstance(value, Tensor) for value in held.values()):
        inner = next((held[key] for key in NESTED if isinstance(held.get(key), Mapping)), None)
        if inner is None:
            if not held:
                return {}
            raise MBSError(
                f"{name}: no state dict among {', '.join(map(repr, saw[:8]))}; it is looked for under "
                f"{', '.join(map(repr, NESTED))}"
            )
        held = inner
    tensors = {key: value for key, value in held.items() if isinstance(value, Tensor)}
    return {unwrapped_name(key, tensors): value for key, value in tensors.items() if key != "n_averaged"}


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the tensors that are there.

    The versions of the layers, which some read, are the model's own: files of tensors have none.
    """
    own: Any = model.state_dict()
    versioned = OrderedDict(state)
    versioned._metadata = own._metadata  # type: ignore[attr-defined] # where torch keeps them
    model.load_state_dict(versioned, strict=False)


def unwrapped_name(name: str, state: Mapping[str, Any]) -> str:
    """A name without ``_orig_mod.`` anywhere, and without ``module.`` in front where all names have it."""
    name = name.replace("_orig_mod.", "")
    wrapped = all(key.startswith(WRAPPERS) for key in state if key != "n_averaged")
    while wrapped and name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DataParallel, DistributedDataParallel or AveragedModel."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel

    held: Any = model
    while True:
        if isinstance(held, DataParallel | DistributedDataParallel | AveragedModel):
            held = held.module
        elif isinstance(getattr(held, "_orig_mod", None), nn.Module):
            held = held._orig_mod
        else:
            return held


def _line(error: Exception) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
