"""Which outputs of a network keep their widths.

Semantics
- Someone reads the outputs, so the channels that leave the network stay.  All outputs count, unless some are named;
  then the others may get fewer channels.
- An output is named by its position or key in what the network returns, or by a tuple of these for a nested one:
  ``0``, ``"logits"``, ``("features", 2)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.fx import Node

from mbs_fx.channels.flow import Flow, factors_in
from mbs_fx.channels.labels import FROZEN, Factor
from mbs_fx.errors import MBSError

Name = tuple[str | int, ...]
Output = str | int | Name
Outputs = Output | Iterable[Output] | None


def names_of(outputs: Outputs) -> tuple[Name, ...] | None:
    """The caller's ``outputs=`` as ways into what the network returns; None for all outputs."""
    if outputs is None:
        return None
    each = tuple(outputs) if isinstance(outputs, Iterable) and not isinstance(outputs, str) else (outputs,)
    ways = tuple(way if isinstance(way, tuple) else (way,) for way in each)
    if not all(way and all(isinstance(key, str | int) for key in way) for way in ways):
        raise MBSError(
            f"outputs: {outputs!r} names no outputs: give positions or keys of what the network returns, as 0, "
            "'logits' or ('features', 2), or a list of these"
        )
    return ways


def kept_factors(flow: Flow, node: Node, names: tuple[Name, ...] | None) -> list[Factor]:
    """Labels of the outputs that are named, or of all."""
    if names is None:
        return flow.entering(node)
    whole = _labels(flow, node.args[0])
    return [factor for name in names for factor in factors_in(picked(whole, name))]


def picked(value: Any, name: Name) -> Any:
    """What a name stands for in nested lists and dicts; raises `MBSError` where there is no such entry."""
    for key in name:
        if isinstance(value, dict) and isinstance(key, int) and key not in value:
            value = list(value.values())
        if value == FROZEN:  # of what a leaf returns, nothing is known, and all of it stays
            return FROZEN
        entries: dict[Any, Any] = (
            value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) else {}
        )
        if key not in entries:
            raise MBSError(f"outputs: the network has no output {name!r}: {_entries(value)}")
        value = entries[key]
    return value


def _entries(value: Any) -> str:
    if isinstance(value, dict):
        return f"the keys are {', '.join(map(repr, value))}"
    return f"the positions are 0 to {len(value) - 1}" if isinstance(value, list) else "there is a single tensor"


def _labels(flow: Flow, arg: Any) -> Any:
    """Labels of what is returned, in nested lists and dicts."""
    if isinstance(arg, list | tuple):
        return [_labels(flow, each) for each in arg]
    if isinstance(arg, dict):
        return {key: _labels(flow, each) for key, each in arg.items()}
    return flow.labels[arg.name] if isinstance(arg, Node) else FROZEN


def kept_values(value: Any, names: tuple[Name, ...] | None) -> Any:
    """The named outputs in what a network returns, or all of it."""
    return value if names is None else [picked(_plain(value), name) for name in names]


def _plain(value: Any) -> Any:
    """Containers as lists and dicts."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
