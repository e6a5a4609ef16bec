"""The configuration that a network's class builds it from (``model.config``), counted anew with the layers.

Semantics
- A class with a ``config_class``, as those of Hugging Face's transformers, is built from a configuration alone: so are
  the layers that ``from_pretrained`` fills.
- Numbers of the configuration that equal widths are counted anew, where the class then builds exactly the tensors that
  the small network has.  Otherwise the configuration stays as it was, and a note says so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import torch
from torch import nn

from mbs_fx.rewriting.selection import Keep
from mbs_fx.rewriting.width_attributes import Pairs, counted_widths

TRIES = 32
"""Configurations to build at the most; each is built without memory for its tensors."""


def count_configuration(small: nn.Module, keep: Keep) -> tuple[str, ...]:
    """Count a network's configuration anew, in place; a note where that is not possible."""
    config = vars(small).get("config")
    kind = getattr(type(small), "config_class", None)
    if not isinstance(kind, type) or not isinstance(config, kind):
        return ()
    pairs = [pair for of in counted_widths(keep).values() for pair in of]
    if all(old == new for old, new in pairs):
        return ()
    wanted = _tensors(small)
    for entries in islice(_candidates(config, pairs), TRIES):
        if _built(type(small), config, entries) == wanted:
            for name, value in entries.items():
                setattr(config, name, value)
            return ()
    return (
        f"config has the original's widths, since no {kind.__name__} says those of the small one: mbs_fx.save and "
        "mbs_fx.load keep it, save_pretrained and from_pretrained do not",
    )


def _candidates(config: Any, pairs: Pairs) -> Iterator[dict[str, Any]]:
    """What the entries that equal changed widths may become, the likeliest first."""
    options = {name: list(_options(held, pairs)) for name, held in vars(config).items() if not name.startswith("_")}
    options = {name: each for name, each in options.items() if len(each) > 1}
    for chosen in product(*options.values()):
        yield dict(zip(options, chosen, strict=True))


def _options(held: Any, pairs: Pairs) -> Iterator[Any]:
    if type(held) is int:
        yield from dict.fromkeys([*(new for old, new in pairs if old == held), held])
    elif isinstance(held, list | tuple) and held and all(type(each) is int for each in held):
        for chosen in product(*(_options(each, pairs) for each in held)):
            yield type(held)(chosen)
    else:
        yield held


def _built(kind: Any, config: Any, entries: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of the tensors that a class builds from a changed configuration.

    None where it refuses, since those widths do not go together.
    """
    changed = copy.deepcopy(config)
    for name, value in entries.items():
        setattr(changed, name, value)
    try:
        with torch.device("meta"):
            return _tensors(kind(changed))
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        return None


def _tensors(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
