"""The plan that a reduced network carries, in ``meta["mbs"]``.

Semantics
- In the process that reduced the network it is a `Plan`.  A pickle holds the same plan as plain containers, so that
  a network is unpickled where mbs_fx is not installed; `plan_of` reads either form.
- What else of this package stands in ``meta`` (a density of the original) is left out of a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from mbs_fx.errors import MBSError
from mbs_fx.results.plan import FORMAT, Plan

KEY = "mbs"
REPORTS = ("mbs_reconstruction", "mbs_steps")
"""What else a ``meta`` may hold that is said of one network, and not of one that is made from it."""


class CarriedMeta(dict[str, Any]):
    """A ``meta`` whose pickle needs nothing but Python; copies keep the `Plan`, which is immutable."""

    def __reduce__(self) -> tuple[Any, ...]:
        plain = {key: held.to_dict() if isinstance(held, Plan) else held for key, held in self.items()}
        return dict, ({key: held for key, held in plain.items() if not type(held).__module__.startswith("mbs_fx")},)

    def __copy__(self) -> CarriedMeta:
        return CarriedMeta(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> CarriedMeta:
        return CarriedMeta(self)


def carry_plan(small: nn.Module, original: nn.Module, plan: Plan) -> None:
    """Let a reduced network carry its plan, beside what the original's ``meta`` holds but for `REPORTS` of that."""
    found: Any = small
    found.meta = CarriedMeta({**{k: held for k, held in _meta(original).items() if k not in REPORTS}, KEY: plan})


def carry_accuracy(small: nn.Module, accuracy: Mapping[str, float]) -> None:
    """Let the plan that a reduced network carries say what a test said; nothing for an original."""
    made = plan_in(small)
    if made is not None:
        found: Any = small
        found.meta = CarriedMeta({**_meta(small), KEY: replace(made, accuracy=dict(accuracy))})


def plan_in(model: Any) -> Plan | None:
    """The plan that a network was made by, None for an original."""
    held = getattr(model, "meta", None)
    found = held.get(KEY) if isinstance(held, Mapping) else None
    if isinstance(found, Mapping) and found.get("format") == FORMAT:
        return Plan.from_dict(found)
    return found if isinstance(found, Plan) else None


def plan_of(small: nn.Module) -> Plan:
    """The `Plan` that a reduced network was made by, also where the network was pickled since.

    Raises:
        MBSError: the network carries none.

    """
    found = plan_in(small)
    if found is None:
        raise MBSError(f"{type(small).__name__} carries no plan: it was not made by mbs_fx.rewrite or mbs_fx.reduce")
    return found


def _meta(model: nn.Module) -> Mapping[str, Any]:
    held = getattr(model, "meta", {})
    if not isinstance(held, Mapping):
        raise MBSError(
            f"{type(model).__name__}.meta is a {type(held).__name__} of the model's own, and a reduced network keeps "
            "its plan in a dict of that name: rename the attribute"
        )
    return held
