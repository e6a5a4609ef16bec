"""The same plan on a copy of the original ``nn.Module``.

Semantics
- The copy keeps its class, its module paths and its own control flow: what depends on the training mode
  (auxiliary heads, functional dropout) stays alive.  Layers are replaced at the same paths.
- Hooks stay with the copy.  They are not called here, unless the network does not run without them (one that collects
  hidden states by hooks of its own).
- The graphs of both modes are followed where they differ (`mbs_fx.rewriting.modes`), so that layers which only one of
  them uses are resized too.
- Attributes that count channels are counted anew (`mbs_fx.rewriting.width_attributes`).
- The copy's own code must then give what the rewritten graph gives, on random inputs.  Where it does not, since its
  code counts channels, the copy runs the graph's code (`mbs_fx.rewriting.traced_forward`), and the plan's notes say so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from mbs_fx.channels.kept_outputs import Name, kept_values
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.analyze import Facts, facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.graph_constants import apply_edits, counted_constants
from mbs_fx.rewriting.graphs import decide
from mbs_fx.rewriting.inputs import example_inputs
from mbs_fx.rewriting.modes import graphs_of, unused
from mbs_fx.rewriting.recorded_steps import recorded
from mbs_fx.rewriting.resizing import Resizer
from mbs_fx.rewriting.selection import Criterion, Keep, restore
from mbs_fx.rewriting.traced_forward import Code, require_own_forward, run_traced, traced_code
from mbs_fx.rewriting.width_attributes import width_attributes
from mbs_fx.shapes.fake_interpreter import HOOKS
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.shapes.graph_inputs import inputs_of
from mbs_fx.shapes.shapes import shapes_of, tensors_in
from mbs_fx.tracing.check import RunError, copied, disagreement, run
from mbs_fx.tracing.example import example_of, place_and_dtype

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
    for mode, keep in reversed(keeps.items()):
        for path, held in _resized(keep.facts, resizers[mode]).items():
            _replace(small, path, held)
    if needs_hooks:
        _give_hooks(small, hooks)
    notes = (*untraced, *unfit, *_Agreement(small, plan, graphs, keeps).reached())
    _give_hooks(small, hooks)
    return small, first, next(iter(resizers.values())), notes


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


def _replace(small: nn.Module, path: str, held: nn.Module | Tensor) -> None:
    """Put a resized layer or tensor at every path where the original stands."""
    parent, _, name = path.rpartition(".")
    owner = small.get_submodule(parent)
    if isinstance(held, Tensor):
        tables: tuple[Any, ...] = (owner._parameters, owner._buffers)
        table = next((table for table in tables if name in table), None)
        if table is not None:
            table[name] = held
        else:
            setattr(owner, name, held)
        return
    original = small.get_submodule(path)
    aliases = [p for p, m in small.named_modules(remove_duplicate=False) if m is original]
    for alias in aliases:
        small.set_submodule(alias, held)


class _Agreement:
    """Makes the copy compute what the rewritten graphs compute: by its own code, or else by theirs."""

    def __init__(
        self, small: nn.Module, plan: Plan, graphs: Mapping[bool, GraphModule], keeps: Mapping[bool, Keep]
    ) -> None:
        self.small, self.plan, self.graphs = small, plan, graphs
        counted = {mode: _counted_anew(graphs[mode], keep) for mode, keep in keeps.items()}
        self.code = {mode: traced_code(graphs[mode], graph) for mode, (graph, _) in counted.items()}
        self.constants = any(changed for _, changed in counted.values())
        first = next(iter(keeps.values()))
        self.found = width_attributes(small, first)
        flow = first.facts.flow
        self.expected = self._sizes(flow.shapes[next(iter(flow.gm.graph.find_nodes(op="output"))).name])
        example = example_of(small, example_inputs(small, plan))
        assert example is not None
        self.example = example

    def reached(self) -> tuple[str, ...]:
        """Notes on what was done; raises `MBSError` where the copy runs neither code."""
        named, every = self.found.named, {**self.found.named, **self.found.unnamed}
        if not self.constants and not self.found.unnamed and self._runs(named):
            _set(self.small, named)
            return self._notes()
        for attributes in (named, *([every] if every != named else [])):
            if self._agrees(attributes):
                _set(self.small, attributes)
                return self._notes()
        if named and self._agrees({}):
            return self._notes(named)
        _set(self.small, named)
        run_traced(self.small, self.code, self.graphs)
        self._require_run()
        return (
            *self._notes(),
            f"{type(self.small).__name__} counts channels in its code: the small one runs traced code instead, and "
            "cannot be pickled",
        )

    def _notes(self, computed: Attributes | None = None) -> tuple[str, ...]:
        """What is left as it was: attributes that may count channels, and those that the outputs are computed with."""
        unsure, owners = self.found.undecided, computed or {}
        held = [f"{p}.{n}".removeprefix(".") + f" = {vars(self.small.get_submodule(p))[n]}" for p, n in owners]
        notes = (
            ("attributes that may count channels stay as they were", unsure),
            ("attributes that count channels stay as they were, since the code computes with them", held),
        )
        return tuple(f"{text}: {', '.join(names)}" for text, names in notes if names)

    def _twin(self, attributes: Attributes, code: Mapping[bool, Code] | None = None) -> nn.Module:
        twin = copied(self.small)
        _set(twin, attributes)
        if code is not None:
            run_traced(twin, code, self.graphs)
        return twin

    def _runs(self, attributes: Attributes) -> bool:
        """Whether the copy's own code does what the graphs' code does: by its steps where they tell, else by numbers.

        No constant of the graphs changed, but the code may compute with a width, or decide by one.
        """
        example = self.example.map(lambda tensor: tensor.to("meta"))
        try:
            for mode, code in self.code.items():
                given, steps = recorded(self._twin(attributes).train(mode).to("meta"), example)
                if steps != recorded(self._twin(attributes, {mode: code}).train(mode).to("meta"), example)[1]:
                    return self._agrees(attributes)
                if mode == next(iter(self.code)):
                    self._require_sizes(given)
        except RunError:
            return self._agrees(attributes)
        return True

    def _agrees(self, attributes: Attributes) -> bool:
        """Whether the copy's own code gives what the graphs' code gives, in every mode."""
        return all(self._agrees_in(mode, attributes) for mode in self.code)

    def _agrees_in(self, mode: bool, attributes: Attributes) -> bool:
        try:
            own = run(self._twin(attributes).train(mode), self.example)
            expected = run(self._twin(attributes, {mode: self.code[mode]}).train(mode), self.example)
        except RunError:
            return False
        if mode == next(iter(self.code)):
            self._require_sizes(own)
        if place_and_dtype(self.small)[0].type == "meta":
            return True
        return not disagreement(expected, own)

    def _sizes(self, shapes: Any) -> list[tuple[int, ...]]:
        """Sizes of the outputs that stay, the batch aside."""
        return [tensor.shape[1:] for tensor in tensors_in(kept_values(shapes, self.plan.outputs))]

    def _require_sizes(self, given: Any) -> None:
        """Raise `MBSError` where the network's outputs are no longer of the original's sizes, the batch aside."""
        found = self._sizes(shapes_of(given))
        if found != self.expected:
            raise MBSError(
                f"the reduced module gives outputs of shape {found}, the original {self.expected}, the batch aside: "
                "keep the widths behind them (keep= of mbs_fx.plan)"
            )

    def _require_run(self) -> None:
        try:
            self._require_sizes(run(self._twin({}).train(next(iter(self.code))), self.example))
        except RunError as error:
            raise MBSError(
                f"the reduced module does not run ({error}): its code counts channels where replacing layers does "
                "not reach. Rewrite the traced graph instead: mbs_fx.rewrite(mbs_fx.trace(model, example), plan)"
            ) from error


def _counted_anew(gm: GraphModule, keep: Keep) -> tuple[Graph, bool]:
    """The graph with its constants counted anew, and whether any changed."""
    graph = copy.deepcopy(gm.graph)
    nodes: dict[str, Node] = {node.name: node for node in graph.nodes}
    before = {name: (repr(node.args), repr(node.kwargs)) for name, node in nodes.items()}
    apply_edits(nodes, keep)
    return graph, any(before[name] != (repr(node.args), repr(node.kwargs)) for name, node in nodes.items())


def _set(module: nn.Module, attributes: Attributes) -> None:
    for (path, name), value in attributes.items():
        setattr(module.get_submodule(path), name, value)
