"""Attributes of a user's modules that count channels, counted anew.

Semantics
- Layers of torch.nn have rules for their attributes.  A module that is no layer may hold a width of its own
  (``num_features`` of timm, ``self.channels`` that a block asserts): a whole number, a list of them, or entries of
  ``feature_info``.
- The evidence is the widths of the layers inside the module, before and after.  A number that equals a width which
  changed becomes the new width where all layers of that width agree; where they do not, the name decides: ``in`` is
  the first of them, ``out`` and ``features`` the last.  What stays undecided is named.
- A number that the module's own code uses as a constant, and that counts channels there, is better evidence
  (``self.head_dim``, which is the width of no layer).
- A module that is not called, and whose weight a function convolves with, counts the channels of that function.
- A name says whether a number is a width at all.  `Found.unnamed` holds what only equals one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mbs_fx.rewriting.graph_constants import counted_in
from mbs_fx.rewriting.selection import Keep
from mbs_fx.tracing.leaves import is_layer

_WIDTH = re.compile(r"chan|chs|feature|width|plane|dim|hidden|filter|embed|conv_head|(^|_)(nc|ch|c|C)\d*($|_)")
_NO_WIDTH = re.compile(r"class|size|group|head(s|_dim)|num_layers|depth|resolution|img|image|ratio")
_FIRST = re.compile(r"(^|_)(in|input|inp|from)(_|$|c|p|planes)")
_LAST = re.compile(r"(^|_)(out|output|last|head)|num_features|hidden_size|num_chs")

Pairs = list[tuple[int, int]]


@dataclass
class Found:
    """New values by (module path, attribute): those whose name says width, and those that only equal one."""

    named: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    unnamed: dict[tuple[str, str], Any] = field(default_factory=dict[tuple[str, str], Any])
    undecided: list[str] = field(default_factory=list[str])


def width_attributes(model: nn.Module, keep: Keep) -> Found:
    """What the attributes of ``model``'s own modules become under a decision; the model is not changed."""
    borrowed = _borrowed(keep)
    counted = {**counted_widths(keep), **borrowed}
    found, code = Found(), counted_in(keep)
    if not any(old != new for pairs in counted.values() for old, new in pairs):
        return found
    inside = _inside(counted)
    for path, module in model.named_modules():
        if (is_layer(type(module)) or path in counted) and path not in borrowed:
            continue
        for name, held in vars(module).items():
            if not name.startswith("_") and name != "training":
                _decide(found, path, name, held, inside.get(path, []), code.get(path, []), counted)
    found.named.update(_borrowed_groups(model, keep))
    return found


def _inside(counted: Mapping[str, Pairs]) -> dict[str, Pairs]:
    """The widths of all layers inside of a module, by its path, in the order of the graph."""
    found: dict[str, Pairs] = {}
    for layer, pairs in counted.items():
        names = layer.split(".")
        for end in range(len(names) + 1):
            found.setdefault(".".join(names[:end]), []).extend(pairs)
    return found


def _borrowed(keep: Keep) -> dict[str, Pairs]:
    """Widths of modules that are not called, and whose weight a function convolves with, inputs first."""
    flow = keep.facts.flow
    return {
        mixer.path.removesuffix(".weight"): [(len(of), keep.extent(of)) for of in (mixer.inp, mixer.out)]
        for mixer in flow.mixers.values()
        if mixer.path.endswith(".weight")
    }


def _borrowed_groups(model: nn.Module, keep: Keep) -> Iterator[tuple[tuple[str, str], int]]:
    """The groups of depthwise convolutions among these, which are their channels."""
    for mixer in keep.facts.flow.mixers.values():
        path, _, name = mixer.path.rpartition(".")
        if mixer.depthwise and name == "weight" and vars(model.get_submodule(path)).get("groups") == mixer.groups:
            yield (path, "groups"), keep.extent(mixer.inp)


def counted_widths(keep: Keep) -> dict[str, Pairs]:
    """Widths of every layer, before and after, inputs first; by path in the order of the graph."""
    flow = keep.facts.flow
    result: dict[str, Pairs] = {}
    for path, layer in flow.layers.items():
        pairs = [(getattr(flow.modules[path], name), keep.evaluate(to)) for name, to in layer.attributes.items()]
        widths = [(old, new) for old, new in pairs if type(old) is int and type(new) is int]
        result[path] = [*widths, (layer.out.shape[-1], keep.extent(layer.out))]
    return result


def _decide(
    found: Found, path: str, name: str, held: Any, pairs: Pairs, code: Pairs, counted: Mapping[str, Pairs]
) -> None:
    """Record the new value of one attribute where it holds widths that changed."""
    if name == "feature_info" and isinstance(held, list):
        new: Any = [_entry(each, counted) for each in held]
    elif isinstance(held, list | tuple) and held and all(type(each) is int for each in held):
        each = [_number(name, value, pairs) for value in held]
        new = None if None in each else type(held)(each)
    elif type(held) is int and held > 1:
        new = _number(name, held, code if any(old == held for old, _ in code) else pairs)
    else:
        return
    named = bool(_WIDTH.search(name)) and not _NO_WIDTH.search(name)
    named = named or any(old == held and old != each for old, each in code)
    if new is None:
        if named:
            found.undecided.append(f"{path}.{name}".removeprefix(".") + f" = {held}")
    elif new != held:
        (found.named if named else found.unnamed)[path, name] = new


def _number(name: str, value: int, pairs: Pairs) -> int | None:
    """The new value of a number; itself where it equals no width, None where layers of that width disagree."""
    options = [new for old, new in pairs if old == value]
    if len(set(options)) < 2:
        return options[0] if options else value
    if _FIRST.search(name):
        return options[0]
    return options[-1] if _LAST.search(name) else None


def _entry(entry: Any, counted: Mapping[str, Pairs]) -> Any:
    """An entry of timm's ``feature_info``: the width of the module that it names."""
    if not isinstance(entry, dict) or not isinstance(entry.get("num_chs"), int):
        return entry
    module, width = str(entry.get("module", "")), entry["num_chs"]
    inside = [pair for path, pairs in counted.items() if f"{path}.".startswith(f"{module}.") for pair in pairs]
    everywhere = [pair for pairs in counted.values() for pair in pairs]
    new = _number("num_chs", width, inside or list(_until_wider(everywhere, width)))
    return {**entry, "num_chs": new}


def _until_wider(pairs: Pairs, width: int) -> Iterator[tuple[int, int]]:
    """Widths of a network up to the last of the first run that has this width."""
    seen = False
    for old, new in pairs:
        if seen and old != width:
            return
        seen = seen or old == width
        yield old, new
