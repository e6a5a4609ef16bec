"""What a rule returns, checked where it enters the flow: a wrong rule is an error here and no wrong network later.

Semantics
- A tensor's labels are a tuple of factors: whole numbers in the tensor's rank, as long as the tensor or 1 along every
  axis, longer than 1 along one axis or more; no two of them along the same axis.
- Several results have a list of such tuples.  `FROZEN` fits everything.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mbs_fx.channels.call import ChannelCall, ChannelRule
from mbs_fx.channels.labels import FROZEN, varying
from mbs_fx.errors import MBSError
from mbs_fx.operations.call import TensorShape


def check_result(call: ChannelCall, rule: ChannelRule, labels: Any) -> None:
    """Raise where the labels that a rule returns cannot be those of what the node returns."""
    wrong = _misfit(labels, call.returned)
    if wrong:
        raise MBSError(
            f"{call.where}: the rule {rule_name(rule)} returns {wrong}. A rule returns the labels of the output as "
            "docs/rules.md says, or what call.freeze(why) returns"
        )


def rule_name(rule: ChannelRule) -> str:
    """How messages name a rule."""
    return f"{getattr(rule, '__module__', '')}.{getattr(rule, '__qualname__', repr(rule))}"


def _misfit(result: Any, value: Any) -> str:
    """What is wrong with labels, empty where they fit."""
    if isinstance(result, tuple) and result == FROZEN:
        return ""
    if isinstance(value, TensorShape):
        return _tensor_misfit(result, value.shape)
    if not isinstance(result, list) or not isinstance(value, list | tuple) or len(result) != len(value):
        return f"{_brief(result)} for {_brief(value)}"
    return next((wrong for held, part in zip(result, value, strict=True) if (wrong := _misfit(held, part))), "")


def _tensor_misfit(result: Any, shape: tuple[int, ...]) -> str:
    if not isinstance(result, tuple):
        return f"{_brief(result)} for a tensor"
    taken: set[int] = set()
    for factor in result:
        if not isinstance(factor, np.ndarray) or factor.dtype != np.int64:
            return f"{_brief(factor)} in place of an array of whole numbers"
        fits = factor.ndim == len(shape) and all(n in (1, size) for n, size in zip(factor.shape, shape, strict=True))
        axes = set(varying(factor))
        if not fits or not axes:
            return f"labels of shape {factor.shape} for a tensor of shape {shape}"
        if axes & taken:
            return f"two sets of labels along axis {min(axes & taken)}"
        taken |= axes
    return ""


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
