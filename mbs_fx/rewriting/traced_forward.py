"""A module that runs traced code in place of its class's ``forward``.

Semantics
- The code of a class counts channels in numbers of its own (``x.view(-1, 512 * 7 * 7)``), which replacing layers does
  not reach.  Then the copy runs the code of the rewritten graph, that of its mode, on its own layers.
- Copies run it as well.  A pickle would lose it, and the class's own code would come back with the wrong numbers: so
  such a module refuses to be pickled.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule

from mbs_fx.errors import MBSError

Code = Callable[..., Any]


class _NotPickled:
    """Stands in a module and says why it cannot be pickled."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __deepcopy__(self, memo: dict[int, Any]) -> _NotPickled:
        return self

    def __reduce__(self) -> Any:
        raise MBSError(
            f"{self.kind} cannot be pickled: its forward counts channels in numbers of its own, so the reduced one "
            "runs traced code, which a pickle would lose; use mbs_fx.save and mbs_fx.load, its state_dict, or "
            "mbs_fx.export_python"
        )


def traced_code(gm: GraphModule, graph: Graph) -> Code:
    """The ``forward`` of a graph as a function of the module that owns the layers."""
    return type(GraphModule(gm, graph)).forward


def run_traced(small: nn.Module, code: Mapping[bool, Code], graphs: Mapping[bool, GraphModule]) -> None:
    """Let a module run traced code by its mode; constants and functions of the traces become its own."""
    for gm in graphs.values():
        for node in (*gm.graph.find_nodes(op="get_attr"), *gm.graph.find_nodes(op="call_module")):
            owner, _, name = str(node.target).rpartition(".")
            if not hasattr(small.get_submodule(owner), name):
                setattr(small.get_submodule(owner), name, getattr(gm.get_submodule(owner), name))
    replace_forward(small, code)


def replace_forward(module: nn.Module, code: Mapping[bool, Code]) -> None:
    """Let one module run code by its mode in place of its class's, and refuse to be pickled."""
    functions = dict(code)
    default = next(iter(functions.values()))

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return functions.get(self.training, default)(self, *args, **kwargs)

    signed: Any = forward
    signed.__signature__ = inspect.signature(type(module).forward)
    vars(module)["forward"] = types.MethodType(forward, module)
    vars(module)["_mbs_traced_forward"] = _NotPickled(type(module).__name__)


def require_own_forward(model: nn.Module) -> None:
    """Raise `MBSError` for a module whose ``forward`` was replaced by one that a copy would not take along."""
    for path, module in model.named_modules():
        held = vars(module).get("forward")
        if held is not None and getattr(held, "__self__", None) is not module:
            place = f"{path} ({type(module).__name__})" if path else type(module).__name__
            raise MBSError(
                f"the forward of {place} was replaced by {getattr(held, '__qualname__', held)!s}, which a copy of the "
                "module would not run on its own layers: put it into the class, or rewrite the traced graph"
            )
