"""Which modules the caller wants scaled as a whole: classes and patterns to module paths, and to convolutions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import nn
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.resolve import operation_of


def opaque_paths(gm: GraphModule, wanted: Iterable[str | type[nn.Module]]) -> tuple[str, ...]:
    """The outermost modules that hold a convolution and match a class or a regular expression."""
    found: set[str] = set()
    for each in (wanted,) if isinstance(wanted, str | type) else wanted:
        new = {path for node in gm.graph.nodes for path, kind in _around(gm, node) if _matches(each, path, kind)}
        if not new:
            raise MBSError(f"opaque: {each}: no convolution lies in such a module")
        found |= new
    return tuple(sorted(path for path in found if not any(path.startswith(f"{other}.") for other in found)))


def _around(gm: GraphModule, node: Node) -> list[tuple[str, str]]:
    """Path and class name of every module around a convolution, itself included."""
    target = str(node.target)
    operation = operation_of(gm, node)
    if operation not in v.CONVOLUTIONS and (operation is not v.LINEAR or node.op != "call_module"):
        return []
    stack = node.meta.get("nn_module_stack") or {}
    held = [(path, kind if isinstance(kind, str) else kind.__name__) for path, kind in stack.values()]
    if node.op == "call_module":
        parts = target.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        held += [(path, type(gm.get_submodule(path)).__name__) for path in above]
    return [(path, kind) for path, kind in held if path]


def _matches(wanted: str | type[nn.Module], path: str, kind: str) -> bool:
    if isinstance(wanted, type):
        return kind.rpartition(".")[2] == wanted.__name__
    try:
        return re.fullmatch(wanted, path) is not None
    except (TypeError, re.error) as error:
        raise MBSError(f"opaque: {wanted!r} is neither a module class nor a regular expression ({error})") from error


def forced(gm: GraphModule, opaque: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a convolution, by node name, lies in one of the modules."""
    inside = {n.name for n in gm.graph.nodes if any(path in opaque for path, _ in _around(gm, n))}
    return inside.__contains__
