"""Numbers that do not depend on the input, read while a graph is recorded on tensors without numbers.

Semantics
- A value that is read (``float(t)``, ``if t``, ``t.tolist()``) from a tensor made of parameters, buffers and constants
  alone is computed from them, and the graph holds it as a constant.  What the graph computed for it alone is taken out.
- Such a graph holds for the values that the parameters have now; ``parameters`` are those that were read.
- A function that takes a number as a tensor of one element (``x.new_full(size, self.stride[0])``) gets the number.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from mbs_fx.runtime.torch_private import FakeTensor, tree_leaves, tree_map_only
from mbs_fx.tracing.recorded_values import Traced

READS: Final = frozenset(
    {"item", "tolist", "is_nonzero", "equal", "allclose", "__bool__", "__int__", "__float__", "__index__"}
)


class DependsOnInputError(Exception):
    """The model's code reads a value that depends on its input, or on what is random."""


class ConstantValues:
    """Values of nodes that follow from the model alone.

    ``root`` holds the constants of the trace, and ``node_of`` gives the node that makes a tensor, None for a constant.
    """

    def __init__(self, model: nn.Module, root: nn.Module, node_of: Callable[[Tensor], fx.Node | None]) -> None:
        self.model, self.root, self.node_of = model, root, node_of
        self.known: dict[fx.Node, Any] = {}
        self.origins: dict[fx.Node, None] = {}

    @property
    def parameters(self) -> tuple[str, ...]:
        """Paths of the parameters whose values were read."""
        named = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return tuple(sorted({str(node.target) for node in self.origins} & named))

    def read(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a function reads from tensors; raises `DependsOnInputError` where they depend on the input."""
        given = [
            node for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and (node := self.node_of(leaf))
        ]
        before = torch.get_rng_state()
        with torch.no_grad():
            values, named = tree_map_only(Tensor, self._value, (args, kwargs))
            result = func(*values, **named)
        if not torch.equal(before, torch.get_rng_state()):
            raise DependsOnInputError("a value that the model reads is random")
        self.origins.update(dict.fromkeys(_ancestors(given)))
        return result

    def as_numbers(self, value: Any) -> Any:
        """Arguments of a call, with a number for every constant of one element."""
        return tree_map_only(Tensor, self._number, value)

    def drop_unused(self, graph: fx.Graph) -> None:
        """Take out of a graph what was computed only to be read."""
        for node in reversed(graph.nodes):
            if node in self.origins and not node.users and node.op != "placeholder":
                graph.erase_node(node)

    def _number(self, tensor: Tensor) -> Any:
        if tensor.dim() > 0:
            return tensor
        try:
            return self.read(Tensor.item, (tensor,), {})
        except DependsOnInputError:
            return tensor

    def _value(self, tensor: Tensor) -> Any:
        node = self.node_of(tensor)
        return tensor if node is None else self._of(node)

    def _of(self, node: fx.Node) -> Any:
        if node not in self.known:
            self.known[node] = self._computed(node)
        return self.known[node]

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            raise DependsOnInputError(f"the model reads a value that follows from its input ({node.name})")
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._of)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _attribute(self, path: str) -> Tensor:
        """What the model holds, or else the copy that was traced."""
        try:
            held: Any = operator.attrgetter(path)(self.model)
        except AttributeError:
            held = operator.attrgetter(path)(self.root)
        if not isinstance(held, Tensor) or held.is_meta:
            raise DependsOnInputError(f"the model reads a value of {path}, which has none")
        return held.detach().clone()


def _ancestors(nodes: Iterable[fx.Node]) -> Iterable[fx.Node]:
    """Nodes, and all that they are made of."""
    pending, seen = list(nodes), dict[fx.Node, None]()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen[node] = None
            pending += node.all_input_nodes
    return seen


def is_constant(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call takes tensors, and nothing that depends on the input or on the state of the model."""
    leaves = [part for leaf in tree_leaves((args, kwargs)) for part in _parts(leaf)]
    of_input = any(isinstance(leaf, (FakeTensor, Traced)) for leaf in leaves)
    return not of_input and any(isinstance(leaf, Tensor) for leaf in leaves)


def _parts(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, slice):
        return leaf.start, leaf.stop, leaf.step
    return tuple(leaf) if isinstance(leaf, torch.Size) else (leaf,)


def has_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or holds one."""
    if is_dataclass(value):
        return any(has_tensor(getattr(value, field.name)) for field in fields(value))
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
