"""Does a graph hold a tensor of which only its values tell the size?

Semantics
- No shapes can be inferred for such a graph (``x[x > 0]``, ``nonzero``).  Where the module that does it can be kept
  whole, as a leaf, that graph serves better; `mbs_fx.trace` asks here whether to look for it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError, SizedByValuesError
from mbs_fx.shapes.shapes import infer

_NAMES = frozenset({"argwhere", "batched_nms", "masked_select", "nms", "nonzero", "unique", "unique_consecutive"})


def sized_by_values(gm: GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether shapes cannot be inferred, since values decide on one of them."""
    if not any(map(_may_be, gm.graph.nodes)):
        return False
    try:
        infer(gm, inputs)
    except MBSError as error:
        return isinstance(error, SizedByValuesError)
    return False


def _may_be(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.target is operator.getitem:
        index = node.args[1] if isinstance(node.args[1], tuple) else node.args[1:]
        return any(isinstance(each, Node) for each in index)
    return name in _NAMES or (name == "where" and len(node.args) == 1)
