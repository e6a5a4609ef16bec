"""Names for the numbers in which blocks of one class differ.

The widths of a block are ``in_channels``, ``out_channels`` and what lies between; ``channels`` where it gives what it
takes.  Any other number has the name that its layer has for it.
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence, Set

from mbs_fx.exporting.calls import Slot

_INPUTS = frozenset({"in_channels", "in_features", "normalized_shape"})
_OUTPUTS = frozenset({"out_channels", "out_features", "num_features", "num_channels"})


def is_width(name: str) -> bool:
    """Whether an argument has no usual value."""
    return any(word in name for word in ("channels", "width", "features", "number", "size", "shape"))


def argument_names(groups: Sequence[Sequence[Slot]], slots: Sequence[Slot], taken: Set[str]) -> list[str]:
    """One name a group: the places of a constructor and of ``forward`` that always hold equal numbers.

    ``taken`` are names that the module has for something else.
    """
    widths = [slot for slot in slots if slot.argument in _INPUTS | _OUTPUTS]
    inner = [group for group in groups if _place(group, widths) == "width"]
    names: list[str] = []
    for group in groups:
        base = _place(group, widths) or _own_name(group[0], groups)
        if base == "width" and len(inner) > 1:
            base = f"{group[0].child}_width"
        base = base if base.isidentifier() and not keyword.iskeyword(base) else f"layer{base}"
        options = (base, *(f"{base}{i}" for i in range(2, 10_000)))
        names.append(next(option for option in options if option not in taken and option not in names))
    return names


def _place(group: Sequence[Slot], widths: Sequence[Slot]) -> str:
    """What a width is to its block; empty for another number."""
    inside = [slot for slot in group if slot.argument in _INPUTS | _OUTPUTS]
    if not inside:
        return ""
    first = any(slot is widths[0] for slot in inside) and widths[0].argument in _INPUTS
    last = any(slot is widths[-1] for slot in inside)
    features = "features" if inside[0].argument.endswith("features") and "num" not in inside[0].argument else "channels"
    if first and last:
        return features
    return f"in_{features}" if first else f"out_{features}" if last else "width"


def _own_name(slot: Slot, groups: Sequence[Sequence[Slot]]) -> str:
    """The layer's own word, behind its name where several groups would have the same."""
    alike = sum(group[0].argument == slot.argument for group in groups)
    return f"{slot.child}_{slot.argument}" if alike > 1 and slot.child != slot.argument else slot.argument
