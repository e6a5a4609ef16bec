"""The same plan on a copy of the original ``nn.Module``.

Semantics
- The copy keeps its class, its module paths and its own control flow: what depends on the training mode
  (auxiliary heads, functional dropout) stays alive.  Layers are replaced at the same paths.
- Hooks stay with the copy.  They are not called here, unless the network does not run without them (one that collects
  hidden states by hooks of its own).
- The module is traced in both modes, so that layers which only one of them uses are resized too.  Where it cannot be
  traced in training mode the plan's notes say so: layers that only training uses keep their width.
- A constant in the code of ``forward`` that counts channels (``x.view(-1, 512 * 7 * 7)``) cannot be reached by
  replacing layers.  Then the copy runs the traced and rewritten code of its own mode, and the plan's notes say so.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import Facts, facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.graph_constants import apply_edits, counted_constants
from mbs_fx.rewriting.graphs import decide
from mbs_fx.rewriting.resizing import Resizer
from mbs_fx.rewriting.selection import Criterion, Keep, restore
from mbs_fx.shapes.fake_interpreter import HOOKS
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.shapes.graph_inputs import packed
from mbs_fx.shapes.shapes import random_inputs, shapes_of, tensors_in
from mbs_fx.tracing.check import copied
from mbs_fx.tracing.example import place_and_dtype
from mbs_fx.tracing.trace import trace


def rewrite_module(model: nn.Module, plan: Plan, criterion: Criterion) -> tuple[nn.Module, Keep, Resizer]:
    """A resized deep copy of a module, the decision behind it, and what was initialised fresh."""
    small = copied(model)
    hooks = _taken_hooks(small)
    needs_hooks = any(hooks.values()) and not _runs(small, plan)
    if needs_hooks:
        _give_hooks(small, hooks)
    modes = {path: module.training for path, module in small.named_modules()}
    graphs, keeps, notes = _decisions(small, plan, criterion)
    first = keeps[False]
    resizers = {mode: Resizer(keep) for mode, keep in keeps.items()}
    resizers[False].notes += notes
    code = {mode: _rewritten_graph(graphs[mode], keep) for mode, keep in keeps.items()}
    new: dict[str, nn.Module | Tensor] = {}
    for mode, keep in keeps.items():
        new = {**_resized(keep.facts, resizers[mode]), **new}
    for path, held in new.items():
        _replace(small, path, held)
    if any(graph is not None for graph in code.values()):
        _override_forward(small, {m: code[m] if code[m] is not None else graphs[m].graph for m in code}, graphs)
    for path, module in small.named_modules():
        module.training = modes[path]
    if needs_hooks:
        _give_hooks(small, hooks)
    _check_runs(small, plan, first.facts)
    _give_hooks(small, hooks)
    return small, first, resizers[False]


def _taken_hooks(small: nn.Module) -> dict[str, dict[str, Any]]:
    """The hooks of every module by path, which are taken off: they are for the user's calls, not for ours."""
    taken: dict[str, dict[str, Any]] = {}
    for path, module in small.named_modules():
        taken[path] = {name: held for name, held in vars(module).items() if name in HOOKS and held}
        vars(module).update({name: type(held)() for name, held in taken[path].items()})
    return taken


def _give_hooks(small: nn.Module, hooks: Mapping[str, dict[str, Any]]) -> None:
    for path, module in small.named_modules():
        vars(module).update(hooks.get(path, {}))


def _runs(small: nn.Module, plan: Plan) -> bool:
    """Whether a copy runs as it is, without its hooks."""
    twin, inputs = copied(small).eval(), example_inputs(small, plan)
    try:
        with torch.no_grad():
            twin(**inputs) if isinstance(inputs, dict) else twin(*inputs)
    except Exception:  # noqa: BLE001 whatever a network raises whose hooks are missing
        return False
    return True


def _decisions(
    small: nn.Module, plan: Plan, criterion: Criterion
) -> tuple[dict[bool, GraphModule], dict[bool, Keep], list[str]]:
    """The graph of each mode that can be traced, which channels stay there, and notes."""
    notes: list[str] = []
    graphs: dict[bool, GraphModule] = {}
    keeps: dict[bool, Keep] = {}
    inputs = example_inputs(small, plan)
    for mode in (False, True):
        small.train(mode)
        try:
            graphs[mode] = trace(small, inputs, leaves=plan.leaves)
        except MBSError as error:
            if not mode:
                raise
            notes.append(f"not traced in training mode, so layers that only training uses keep their width: {error}")
            continue
        found = facts(graphs[mode], _shapes(plan), plan.opaque, plan.input_types, plan.input_names)
        if not mode:
            keeps[mode] = decide(found, plan, criterion)
        else:
            counts = from_widths(found.analysis, plan.widths)
            keeps[mode] = restore(found, counts, keeps[False].channels())
    return graphs, keeps, notes


def example_inputs(model: nn.Module, plan: Plan) -> tuple[Any, ...] | dict[str, Any]:
    """Random inputs that a plan was made for; by name where ``forward`` cannot take all of them by position."""
    device, dtype = place_and_dtype(model)
    values = [value.to(device) for value in random_inputs(_shapes(plan), plan.input_types, dtype)]
    parameters = inspect.signature(model.forward).parameters.values()
    if plan.input_names:
        given = packed(plan.input_names, values)
        by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        first = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        in_order = list(given) == first[: len(given)] or not by_name.issuperset(given)
        return tuple(given.values()) if in_order else given
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not named:
        return tuple(values)
    first = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return dict(zip([*first[: len(values) - len(named)], *named], values, strict=True))


def _shapes(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """The inputs that a plan was made for, at least two images each."""
    return tuple((max(2, shape[0]), *shape[1:]) for shape in plan.input_shapes)


def _resized(found: Facts, resizer: Resizer) -> dict[str, nn.Module | Tensor]:
    """Layers and directly used parameters whose size changes, by path."""
    flow, keep = found.flow, resizer.keep
    result: dict[str, nn.Module | Tensor] = {}
    for path, layer in flow.layers.items():
        vectors = [layer.out, *(v for axes in layer.tensors.values() for v in axes if v is not None)]
        if any(keep.extent(v) != v.shape[-1] for v in vectors):
            result[path] = resizer.module(path, flow.modules[path], layer)
    result.update(counted_constants(flow.gm, keep))
    for path, axes in flow.parameters.items():
        if any(v is not None and keep.extent(v) != v.shape[-1] for v in axes):
            result[path] = resizer.tensor(attribute(flow.gm, path), axes)
    return result


def _replace(small: nn.Module, path: str, held: nn.Module | Tensor) -> None:
    """Put a resized layer or tensor at every path where the original stands."""
    parent, _, name = path.rpartition(".")
    owner = small.get_submodule(parent)
    if isinstance(held, Tensor):
        (owner._parameters if name in owner._parameters else owner._buffers)[name] = held  # type: ignore[index]
        return
    original = small.get_submodule(path)
    aliases = [p for p, m in small.named_modules(remove_duplicate=False) if m is original]
    for alias in aliases:
        small.set_submodule(alias, held)


def _rewritten_graph(gm: GraphModule, keep: Keep) -> Any:
    """The graph with its constants counted anew, None where no constant changes."""
    graph = copy.deepcopy(gm.graph)
    nodes: dict[str, Node] = {node.name: node for node in graph.nodes}
    before = {name: (repr(node.args), repr(node.kwargs)) for name, node in nodes.items()}
    apply_edits(nodes, keep)
    changed = any(before[name] != (repr(node.args), repr(node.kwargs)) for name, node in nodes.items())
    return graph if changed else None


def _override_forward(small: nn.Module, code: Mapping[bool, Any], graphs: Mapping[bool, GraphModule]) -> None:
    """Let the module run traced code, that of its mode, on its own layers."""
    functions: dict[bool, Any] = {}
    for mode, graph in code.items():
        functions[mode] = type(GraphModule(graphs[mode], graph)).forward
        for node in graph.nodes:
            owner, _, name = str(node.target).rpartition(".")
            if node.op == "get_attr" and not hasattr(small.get_submodule(owner), name):
                setattr(small.get_submodule(owner), name, getattr(graphs[mode].get_submodule(owner), name))

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return functions.get(self.training, functions[False])(self, *args, **kwargs)

    small.forward = types.MethodType(forward, small)


def _check_runs(small: nn.Module, plan: Plan, found: Facts) -> None:
    """Run the copy once, in eval mode, its modes put back: it must give outputs of the original's shapes."""
    modes = {module: module.training for module in small.modules()}
    small.eval()
    try:
        with torch.no_grad():
            inputs = example_inputs(small, plan)
            outputs = small(**inputs) if isinstance(inputs, dict) else small(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise MBSError(
            f"the reduced module does not run ({error}): its code counts channels where replacing layers does not "
            "reach. Rewrite the traced graph instead: mbs_fx.rewrite(mbs_fx.trace(model, example), plan)"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    name = next(node.name for node in found.flow.gm.graph.nodes if node.op == "output")
    before, after = (
        [tensor.shape for tensor in tensors_in(value)] for value in (found.flow.shapes[name], shapes_of(outputs))
    )
    if before != after:
        raise MBSError(
            f"the reduced module gives outputs of shape {after}, the original {before}: keep the widths behind them "
            "(keep= of mbs_fx.plan)"
        )
