"""Numbers that do not depend on the input, read while a graph is recorded on tensors without numbers.

Semantics
- A value that is read (``float(t)``, ``if t``, ``t.tolist()``) from a tensor made of parameters, buffers and constants
  alone is computed from them, and the graph holds it as a constant.
- Such a graph holds for the values that the parameters have now; a note names those that went in.
- A function that takes a number as a tensor of one element (``x.new_full(size, self.stride[0])``) gets the number.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import fx, nn

READS: Final = frozenset(
    {"item", "tolist", "is_nonzero", "equal", "allclose", "__bool__", "__int__", "__float__", "__index__"}
)


class DataDependentError(Exception):
    """A value that the model's code reads depends on the input."""


class ConstantValues:
    """Values of the nodes of a graph that follow from the model alone."""

    def __init__(self, model: nn.Module, root: nn.Module) -> None:
        self.model, self.root = model, root
        self.known: dict[fx.Node, Any] = {}
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    def of(self, node: fx.Node) -> Any:
        """The value of a node; raises `DataDependentError` where it depends on the input or on what is random."""
        if node not in self.known:
            with torch.no_grad():
                self.known[node] = self._value(node)
        return self.known[node]

    def depends_on_input(self, node: fx.Node) -> bool:
        """Whether a node is made of more than the model."""
        return not all(each.op == "get_attr" for each in _origins([node]))

    def parameters_in(self, nodes: Sequence[fx.Node]) -> list[str]:
        """Paths of the parameters that nodes are made of."""
        return sorted({str(node.target) for node in _origins(nodes)} & self.parameters)

    def _value(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            raise DataDependentError(node.name)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.of)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _attribute(self, path: str) -> Any:
        """What the model holds; constants of the trace are held by its copy."""
        try:
            held = operator.attrgetter(path)(self.model)
        except AttributeError:
            held = operator.attrgetter(path)(self.root)
        if not isinstance(held, torch.Tensor) or held.is_meta:
            raise DataDependentError(path)
        return held.detach().clone()


def _origins(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes without inputs that nodes are made of."""
    pending, seen = list(nodes), dict[fx.Node, None]()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen[node] = None
            pending += node.all_input_nodes
    return [node for node in seen if not node.all_input_nodes]
