"""The graph that is written: layers that torch has, operations, and the modules that each step stands in.

Semantics
- A leaf of another library is traced and written as what it does.
- A layer whose weights are computed (``weight_norm``, ``spectral_norm``) is written as a plain one with those weights.
- Checks of the original's code (``torch._assert``) and what nobody reads are left out.
- Every step knows the chain of modules that it was traced in, outermost first, without the layer itself.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.utils import parametrize

from mbs_fx.errors import MBSError
from mbs_fx.exporting.layers import layer_call
from mbs_fx.operations.resolve import is_in_place
from mbs_fx.runtime.weight_hooks import remove_weight_hooks, weight_hooks
from mbs_fx.shapes.graph_inputs import Shapes
from mbs_fx.shapes.shapes import TensorShape, infer, typed
from mbs_fx.tracing.check import copied
from mbs_fx.tracing.example import place_and_dtype
from mbs_fx.tracing.trace import trace

Chain = tuple[tuple[str, str, str], ...]
"""For each module around a step: key of the call, path, name of the class."""

STACK = "nn_module_stack"


def written_graph(gm: GraphModule, shapes: Shapes, types: tuple[str, ...]) -> tuple[GraphModule, dict[str, Any]]:
    """A copy of a graph without foreign leaves, and the value of each of its nodes by name."""
    inputs = typed(shapes, types)
    seen = infer(gm, inputs)
    modules = dict(gm.named_modules(remove_duplicate=False))
    plain = _without_parametrizations(gm, modules)
    modules |= plain
    graph = Graph()
    known: dict[Node, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "call_module":
            _require_no_hooks(str(node.target), modules[str(node.target)])
        if node.op == "call_module" and layer_call(str(node.target), modules[str(node.target)]) is None:
            known[node] = _inlined(graph, node, modules[str(node.target)], seen, known)
        elif not _is_check(node):
            known[node] = graph.node_copy(node, lambda argument: known[argument])
    _drop_unread(graph, modules)
    graph.lint()
    written = GraphModule(gm, graph, type(gm).__name__)
    for path, layer in plain.items():
        written.set_submodule(path, layer)
    return written, infer(written, inputs)


def _without_parametrizations(gm: GraphModule, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Layers of torch whose weights are computed (``weight_norm``), as plain layers with the weights that they have."""
    plain: dict[str, nn.Module] = {}
    made: dict[int, nn.Module] = {}
    for node in gm.graph.find_nodes(op="call_module"):
        path, layer = str(node.target), modules[str(node.target)]
        if parametrize.is_parametrized(layer) or weight_hooks(layer):
            plain[path] = made.get(id(layer)) or made.setdefault(id(layer), _plain(layer))
    return plain


def _plain(layer: nn.Module) -> nn.Module:
    """A layer as its class was before the parametrization; torch's way back would change the class of the original."""
    source: Any = copied(layer).eval()
    remove_weight_hooks(source)
    if not parametrize.is_parametrized(layer):
        return source
    plain: Any = object.__new__(type(layer).__bases__[0])
    vars(plain).update(vars(source))
    plain._modules = {name: module for name, module in source._modules.items() if name != "parametrizations"}
    weights = {name: nn.Parameter(getattr(source, name).detach()) for name in source.parametrizations}
    plain._parameters = {**weights, **source._parameters}
    return plain


def _require_no_hooks(path: str, layer: nn.Module) -> None:
    if any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules()):
        raise MBSError(
            f"{path} ({type(layer).__name__}) cannot be written: it has forward hooks, and a file holds none; remove "
            "them, or put what they do into the module around it"
        )


def _is_check(node: Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "_assert"


def _drop_unread(graph: Graph, modules: Mapping[str, nn.Module]) -> None:
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output") and not _writes(node, modules):
            graph.erase_node(node)


def _writes(node: Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a step changes a tensor in place, so that it counts though nobody reads what it gives."""
    if node.op == "call_module":
        return any(getattr(module, "inplace", False) for module in modules[str(node.target)].modules())
    if node.op not in ("call_function", "call_method"):
        return False
    given = bool(node.kwargs.get("inplace")) or node.kwargs.get("out") is not None
    return given or is_in_place(node) or node.target is operator.setitem


def _inlined(graph: Graph, node: Node, leaf: nn.Module, seen: Mapping[str, Any], known: Mapping[Node, Node]) -> Any:
    """The steps of a leaf in place of its node; gives what the leaf gives."""
    path = str(node.target)
    inner = _traced_leaf(path, leaf, node, seen)
    placeholders = [each for each in inner.graph.nodes if each.op == "placeholder"]
    given = [*node.args, *(node.kwargs[p.target] for p in placeholders[len(node.args) :] if p.target in node.kwargs)]
    values: dict[Node, Any] = {
        p: known[each] if isinstance(each, Node) else each for p, each in zip(placeholders, given, strict=False)
    }
    outer = node.meta.get(STACK, {})
    key = next(reversed(outer), path)
    for each in inner.graph.nodes:
        if each.op == "placeholder" or _is_check(each):
            continue
        if each.op == "output":
            return map_arg(each.args[0], lambda n: values[n])
        made = values[each] = graph.node_copy(each, lambda n: values[n])
        if each.op in ("call_module", "get_attr"):
            made.target = f"{path}.{each.target}"
        inside = {f"{key}.{k}": (f"{path}.{held[0]}", held[1]) for k, held in each.meta.get(STACK, {}).items()}
        made.meta[STACK] = {**(outer or {path: (path, type(leaf))}), **inside}
    raise AssertionError("a graph has an output")


def _traced_leaf(path: str, leaf: nn.Module, node: Node, seen: Mapping[str, Any]) -> GraphModule:
    given: list[Any] = [seen[n.name] if isinstance(n, Node) else n for n in (*node.args, *node.kwargs.values())]
    kind = f"{path} ({type(leaf).__module__}.{type(leaf).__name__})"
    if not given or not all(isinstance(each, TensorShape) for each in given):
        raise MBSError(f"{kind} cannot be written: it is no layer of torch, and takes something else than tensors")
    place, _ = place_and_dtype(leaf)
    example = tuple(torch.randn(each.shape, device=place).to(each.dtype) for each in given)
    try:
        return trace(copied(leaf).eval(), example)
    except MBSError as error:
        reason = str(error).splitlines()[0]
        raise MBSError(f"{kind} cannot be written: it is no layer of torch, and its code: {reason}") from error


def chains(gm: GraphModule) -> dict[Node, Chain]:
    """The modules around every step."""
    return {node: tuple(_around(node)) for node in gm.graph.nodes}


def _around(node: Node) -> Iterator[tuple[str, str, str]]:
    for key, (path, kind) in node.meta.get(STACK, {}).items():
        if node.op != "call_module" or path != node.target:
            name = kind if isinstance(kind, str) else kind.__name__
            yield key, path, name.rpartition(".")[2]
