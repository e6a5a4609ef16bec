"""Makes the small copy of a module compute what the rewritten graphs compute.

Semantics
- By its own code where that gives what the graphs give, on random inputs: with attributes that count channels counted
  anew, or left as they were.
- Where its code counts channels, the modules that do so run their part of the graph (`mbs_fx.rewriting.traced_parts`),
  or else the whole copy runs the graph's code (`mbs_fx.rewriting.traced_forward`); the plan's notes say so.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from mbs_fx.channels.kept_outputs import kept_values
from mbs_fx.errors import MBSError
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.graph_constants import apply_edits
from mbs_fx.rewriting.inputs import example_inputs
from mbs_fx.rewriting.recorded_steps import recorded
from mbs_fx.rewriting.selection import Keep
from mbs_fx.rewriting.traced_forward import Code, run_traced, traced_code
from mbs_fx.rewriting.traced_parts import Parts, run_parts, traced_parts
from mbs_fx.rewriting.width_attributes import width_attributes
from mbs_fx.shapes.shapes import shapes_of, tensors_in
from mbs_fx.tracing.check import RunError, copied, disagreement, run
from mbs_fx.tracing.example import example_of, place_and_dtype
from mbs_fx.tracing.given_forward import has_given_forward

Attributes = Mapping[tuple[str, str], Any]


class Agreement:
    """Makes the copy compute what the rewritten graphs compute: by its own code, or else by theirs."""

    def __init__(
        self, small: nn.Module, plan: Plan, graphs: Mapping[bool, GraphModule], keeps: Mapping[bool, Keep]
    ) -> None:
        self.small, self.plan, self.graphs = small, plan, graphs
        counted = {mode: _counted_anew(graphs[mode], keep) for mode, keep in keeps.items()}
        self.keeps, self.counted = keeps, {mode: graph for mode, (graph, _) in counted.items()}
        self.code = {mode: traced_code(graphs[mode], graph) for mode, graph in self.counted.items()}
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
        return (*self._notes(), self._traced())

    def _traced(self) -> str:
        """Let the copy run traced code in as few modules as it takes; the note on it."""
        parts = traced_parts(self.small, self.counted, self.keeps)
        if parts and self._agrees({}, parts):
            run_parts(self.small, parts)
            first, more = next(iter(parts)), f" and {len(parts) - 1} more" if len(parts) > 1 else ""
            kind = type(self.small.get_submodule(first)).__name__
            return f"{first} ({kind}){more}: the code counts channels, so the small one {_TRACED}"
        if has_given_forward(self.small):
            raise MBSError(
                f"the forward given for {type(self.small).__name__} counts channels: rewrite the traced graph instead, "
                "mbs_fx.rewrite(mbs_fx.trace(model, example), plan)"
            )
        run_traced(self.small, self.code, self.graphs)
        self._require_run()
        return f"{type(self.small).__name__} counts channels in its code: the small one {_TRACED}"

    def _notes(self, computed: Attributes | None = None) -> tuple[str, ...]:
        """What is left as it was: attributes that may count channels, and those that the outputs are computed with."""
        unsure, owners = self.found.undecided, computed or {}
        held = [f"{p}.{n}".removeprefix(".") + f" = {vars(self.small.get_submodule(p))[n]}" for p, n in owners]
        notes = (
            ("attributes that may count channels stay as they were", unsure),
            ("attributes that count channels stay as they were, since the code computes with them", held),
        )
        return tuple(f"{text}: {', '.join(names)}" for text, names in notes if names)

    def _twin(
        self, attributes: Attributes, code: Mapping[bool, Code] | None = None, parts: Parts | None = None
    ) -> nn.Module:
        twin = copied(self.small)
        _set(twin, attributes)
        run_parts(twin, parts or {})
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

    def _agrees(self, attributes: Attributes, parts: Parts | None = None) -> bool:
        """Whether the copy's own code gives what the graphs' code gives, in every mode."""
        return all(self._agrees_in(mode, attributes, parts) for mode in self.code)

    def _agrees_in(self, mode: bool, attributes: Attributes, parts: Parts | None) -> bool:
        try:
            own = run(self._twin(attributes, parts=parts).train(mode), self.example)
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
        if found != self.expected and not self._sized_by_values():
            raise MBSError(
                f"the reduced module gives outputs of shape {found}, the original {self.expected}, the batch aside: "
                "keep the widths behind them (keep= of mbs_fx.plan)"
            )

    def _sized_by_values(self) -> bool:
        """Whether the original's outputs have other sizes on other images: one for every point that it finds."""
        original = copied(next(iter(self.graphs.values())))
        images = (self.example, self.example.map(torch.zeros_like))
        try:
            return any(self._sizes(shapes_of(run(original, image))) != self.expected for image in images)
        except RunError:
            return False

    def _require_run(self) -> None:
        try:
            self._require_sizes(run(self._twin({}).train(next(iter(self.code))), self.example))
        except RunError as error:
            raise MBSError(
                f"the reduced module does not run ({error}): its code counts channels where replacing layers does "
                "not reach. Rewrite the traced graph instead: mbs_fx.rewrite(mbs_fx.trace(model, example), plan)"
            ) from error


_TRACED = "runs traced code instead, and cannot be pickled"


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
