"""Traced code for the modules inside a network whose own code counts channels, so that the rest keeps its own.

Semantics
- A module counts channels where a constant of the graph that stands in it changed.  Its part of the rewritten graph
  takes the place of its ``forward``: what the network does around it (a loss, hooks, keywords) stays alive.
- A part is a module that is called once on one tensor, reads nothing else from outside but that tensor's sizes, and
  gives one tensor.  Where the innermost module is no part, the module around it may be one; the whole network is
  none (`mbs_fx.rewriting.traced_forward` has it).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from mbs_fx.rewriting.graph_constants import counted_in
from mbs_fx.rewriting.selection import Keep
from mbs_fx.rewriting.traced_forward import Code, replace_forward, traced_code
from mbs_fx.shapes.shapes import TensorShape

Parts = Mapping[str, Mapping[bool, Code]]


class _NoPartError(Exception):
    """A module is no part of its network's graph."""


def traced_parts(small: nn.Module, graphs: Mapping[bool, Graph], keeps: Mapping[bool, Keep]) -> Parts:
    """Code by module path and mode for all modules that count channels; empty where one of them is in no part.

    ``graphs`` are rewritten ones, ``small`` has the layers that they call.
    """
    counting = {path for keep in keeps.values() for path, pairs in counted_in(keep).items() if _changes(pairs)}
    found: dict[str, Mapping[bool, Code]] = {}
    for innermost in sorted(counting):
        path, code = innermost, dict[bool, Code]()
        while path and not code:
            code = _codes(small, path, graphs, keeps)
            path = path if code else path.rpartition(".")[0]
        if not path:
            return {}
        found[path] = code
    return {path: code for path, code in found.items() if not _inside(path, found)}


def run_parts(small: nn.Module, parts: Parts) -> None:
    """Let the modules at these paths run traced code."""
    for path, code in parts.items():
        replace_forward(small.get_submodule(path), code)


def _changes(pairs: list[tuple[int, int]]) -> bool:
    return any(old != new for old, new in pairs)


def _inside(path: str, others: Mapping[str, Any]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def _codes(small: nn.Module, path: str, graphs: Mapping[bool, Graph], keeps: Mapping[bool, Keep]) -> dict[bool, Code]:
    """The code of one module in every mode, empty where it is no part in one of them."""
    module = small.get_submodule(path)
    names = list(inspect.signature(module.forward).parameters)
    try:
        return {
            mode: traced_code(GraphModule(module, part), part)
            for mode, graph in graphs.items()
            for part in [_Part(graph, path, names[0] if names else "", keeps[mode]).graph]
        }
    except (_NoPartError, AttributeError):  # torch.fx finds no layer at a path
        return {}


class _Part:
    """The nodes of one module as a graph of their own."""

    def __init__(self, graph: Graph, path: str, name: str, keep: Keep) -> None:
        self.path, self.shapes = path, keep.facts.flow.shapes
        self.within = {node for node in graph.nodes if self._calls(node) == [path]}
        given = {node: None for node in graph.nodes if node in self.within for node in node.all_input_nodes}
        tensors = [node for node in given if node not in self.within and self._is_tensor(node)]
        results = [node for node in graph.nodes if node in self.within and not self.within.issuperset(node.users)]
        if len(tensors) != 1 or len(results) != 1 or not self._is_tensor(results[0]):
            raise _NoPartError
        self.graph = Graph()
        self.copies: dict[Node, Node] = {tensors[0]: self.graph.placeholder(name)}
        for node in graph.nodes:
            if node in self.within:
                self._copy(node)
        self.graph.output(self.copies[results[0]])

    def _calls(self, node: Node) -> list[str]:
        """Calls of the module, or of one around or inside it under the same path, that a node was traced in."""
        stack = node.meta.get("nn_module_stack") or {}
        return [str(key) for key, (path, _) in stack.items() if path == self.path]

    def _is_tensor(self, node: Node) -> bool:
        return node.op != "get_attr" and isinstance(self.shapes[node.name], TensorShape)

    def _copy(self, node: Node) -> Node:
        if node not in self.copies:
            if node.op == "placeholder" or (node not in self.within and self._is_tensor(node)):
                raise _NoPartError
            copy = self.copies[node] = self.graph.node_copy(node, lambda each: self._copy(each))
            if node.op in ("get_attr", "call_module"):
                copy.target = self._relative(str(node.target))
        return self.copies[node]

    def _relative(self, target: str) -> str:
        if not target.startswith(f"{self.path}."):
            raise _NoPartError
        return target.removeprefix(f"{self.path}.")
