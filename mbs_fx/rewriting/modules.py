"""The same plan on a copy of the original ``nn.Module``.

Semantics
- The copy keeps its class, its module paths and its own control flow: what depends on the training mode
  (auxiliary heads, functional dropout) stays alive.  Layers are replaced at the same paths.
- Hooks stay with the copy.  They are not called here, unless the network does not run without them (one that collects
  hidden states by hooks of its own).
- The graphs of both modes are followed where they differ (`mbs_fx.rewriting.modes`), so that layers which only one of
  them uses are resized too.
- Attributes that count channels are counted anew (`mbs_fx.rewriting.width_attributes`).
- A configuration that the class builds itself from is counted, too (`mbs_fx.rewriting.configuration`).
- The copy must then give what the rewritten graph gives (`mbs_fx.rewriting.agreement`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from mbs_fx.channels.kept_outputs import Name
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import Facts, facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.agreement import Agreement
from mbs_fx.rewriting.configuration import count_configuration
from mbs_fx.rewriting.graph_constants import counted_constants
from mbs_fx.rewriting.graphs import decide
from mbs_fx.rewriting.inputs import example_inputs
from mbs_fx.rewriting.modes import graphs_of, unused
from mbs_fx.rewriting.resizing import Resizer
from mbs_fx.rewriting.selection import Criterion, Keep, restore
from mbs_fx.rewriting.traced_forward import require_own_forward
from mbs_fx.runtime.weight_hooks import weight_hooks
from mbs_fx.shapes.fake_interpreter import HOOKS
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.shapes.graph_inputs import inputs_of
from mbs_fx.tracing.check import RunError, copied, run
from mbs_fx.tracing.example import example_of

Attributes = Mapping[tuple[str, str], Any]


def rewrite_module(
    model: nn.Module, plan: Plan, criterion: Criterion, traced: GraphModule | None = None
) -> tuple[nn.Module, Keep, Resizer, tuple[str, ...]]:
    """A resized deep copy of a module, the decision behind it, what was initialised fresh, and notes.

    ``traced`` is the graph that the plan was made for, where it is at hand.
    """
    require_own_forward(model)
    small = copied(model)
    hooks = _taken_hooks(small)
    needs_hooks = any(hooks.values()) and not _runs(small, plan)
    if needs_hooks:
        _give_hooks(small, hooks)
    graphs, untraced = graphs_of(small, plan, traced)
    keeps, unfit = _decisions(graphs, plan, criterion)
    first = next(iter(keeps.values()))
    resizers = {mode: Resizer(keep) for mode, keep in keeps.items()}
    places = _places(small)
    for mode, keep in reversed(keeps.items()):
        for path, held in _resized(keep.facts, resizers[mode]).items():
            if isinstance(held, Tensor):
                _replace_tensor(small, path, held)
                continue
            for place in places[path]:
                small.set_submodule(place, held)
    if needs_hooks:
        _give_hooks(small, hooks)
    unsaid = count_configuration(small, first)
    notes = (*untraced, *unfit, *unsaid, *Agreement(small, plan, graphs, keeps).reached())
    _give_hooks(small, hooks)
    return small, first, next(iter(resizers.values())), notes


def _taken_hooks(small: nn.Module) -> dict[str, dict[str, Any]]:
    """The hooks by path of module, taken off: they are for the user's calls, not for ours.  Weights need theirs."""
    taken: dict[str, dict[str, Any]] = {}
    for path, module in small.named_modules():
        if weight_hooks(module):
            continue
        taken[path] = {name: held for name, held in vars(module).items() if name in HOOKS and held}
        vars(module).update({name: type(held)() for name, held in taken[path].items()})
    return taken


def _give_hooks(small: nn.Module, hooks: Mapping[str, dict[str, Any]]) -> None:
    for path, module in small.named_modules():
        vars(module).update(hooks.get(path, {}))


def _runs(small: nn.Module, plan: Plan) -> bool:
    """Whether a copy runs as it is, without its hooks."""
    example = example_of(small, example_inputs(small, plan))
    assert example is not None
    try:
        run(copied(small).eval(), example)
    except RunError:
        return False
    return True


def _decisions(
    graphs: Mapping[bool, GraphModule], plan: Plan, criterion: Criterion
) -> tuple[dict[bool, Keep], tuple[str, ...]]:
    """Which channels stay in the graph of each mode, and notes; the plan's own mode decides."""
    keeps: dict[bool, Keep] = {}
    notes: list[str] = []
    for mode, gm in graphs.items():
        if not keeps:
            keeps[mode] = decide(_facts_of(gm, plan, plan.outputs), plan, criterion)
            continue
        try:
            found = _facts_of(gm, plan, None if plan.outputs is None else ())
        except MBSError as error:  # an auxiliary head may not take the size that the plan was made for
            notes.append(unused(mode, error))
            continue
        counts = from_widths(found.analysis, plan.widths)
        keeps[mode] = restore(found, counts, next(iter(keeps.values())).channels())
    return keeps, tuple(notes)


def _facts_of(gm: GraphModule, plan: Plan, outputs: tuple[Name, ...] | None) -> Facts:
    return facts(gm, inputs_of(gm, None).shapes, plan.opaque, plan.input_types, plan.input_names, outputs)


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


def _places(small: nn.Module) -> dict[str, list[str]]:
    """Every path at which a module stands, by each of them."""
    paths: dict[int, list[str]] = {}
    for path, module in small.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    return {path: same for same in paths.values() for path in same}


def _replace_tensor(small: nn.Module, path: str, held: Tensor) -> None:
    """Put a resized parameter, buffer or attribute in the place of the original."""
    parent, _, name = path.rpartition(".")
    owner = small.get_submodule(parent)
    tables: tuple[Any, ...] = (owner._parameters, owner._buffers)
    table = next((table for table in tables if name in table), None)
    if table is not None:
        table[name] = held
    else:
        setattr(owner, name, held)
