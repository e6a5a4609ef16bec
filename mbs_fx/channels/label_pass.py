"""The label pass: run a graph once on labels in place of numbers.

Semantics
- Layers that mix channels (convolutions, linear layers) read the labels on their input axis and make new ones;
  everything that moves data moves labels as it moves data; elementwise operations tie their operands.
- An operation without a rule *freezes* the labels that enter it, and what leaves it is `FROZEN`.
- What a rule returns is checked where it enters the flow (`mbs_fx.channels.checking`).  Where no label leaves a node
  and its rule recorded nothing about those that enter, they are frozen.
- A rule that fails on a form of its operation that it did not foresee freezes what enters.
- A dataclass object or named tuple that the graph makes (torch.fx records the class as a function) holds the labels
  of its fields.
- Rules are attached to operations in `mbs_fx.channels.rules`; docs/rules.md shows how to add one.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from mbs_fx.channels.call import ChannelCall
from mbs_fx.channels.checking import check_result, rule_name
from mbs_fx.channels.flow import Flow, factors_in
from mbs_fx.channels.kept_outputs import Name, kept_factors
from mbs_fx.channels.labels import FROZEN, Factor, shrinking_axis, varying
from mbs_fx.channels.records import LabelResult
from mbs_fx.channels.rules.padding import READS_NO_CHANNELS
from mbs_fx.channels.shape_numbers import counts_channels, fixed_counts
from mbs_fx.errors import MBSError
from mbs_fx.operations.call import holds_tensor
from mbs_fx.operations.register import channels
from mbs_fx.operations.resolve import of_module, of_target
from mbs_fx.runtime.torch_private import ASSERT
from mbs_fx.shapes.graph_attributes import attribute

Axes = tuple[Factor | None, ...]


def run(gm: GraphModule, shapes: Mapping[str, Any], outputs: tuple[Name, ...] | None = None) -> Flow:
    """Propagate labels through a graph whose shapes are known; ``outputs`` are those that stay, None for all."""
    flow = Flow(weakref.ref(gm), shapes, outputs=outputs)
    for node in gm.graph.nodes:
        flow.labels[node.name] = _labels(flow, node)
    _join_parameters(flow)
    _join_shared(flow)
    _keep_boxes(flow)
    return flow


def _labels(flow: Flow, node: Node) -> Any:
    """Labels of what a node returns."""
    if node.op == "placeholder":
        return FROZEN
    if node.op == "get_attr":
        held = attribute(flow.gm, str(node.target))
        return flow.parameter(str(node.target), held) if isinstance(held, torch.Tensor) else FROZEN
    if node.op == "output":
        for factor in kept_factors(flow, node, flow.outputs):
            flow.ties.freeze(factor, "network output")
        return FROZEN
    call = _call(flow, node)
    if not holds_tensor(flow.shapes[node.name]):
        if flow.shapes[node.name] is None and node.target is not ASSERT:
            flow.freeze(node, "writes into a tensor, or returns nothing")
        elif not _is_plain(flow.shapes[node.name]):
            flow.freeze(node, f"returns an object of the class {type(flow.shapes[node.name]).__name__}")
        flow.labels[node.name] = FROZEN
        flow.counting[node.name] = counts_channels(call)
        return FROZEN
    if node.op == "call_function" and (is_dataclass(node.target) or hasattr(node.target, "_fields")):
        return _gathered(flow, node.args or node.kwargs)
    result = _by_rule(flow, call)
    flow.record(node, result)
    flow.edits += fixed_counts(call, result.edits)
    return result.labels


def _gathered(flow: Flow, arg: Any) -> Any:
    """Labels of what an object is made of: of a node, or of containers of nodes."""
    if isinstance(arg, list | tuple):
        return [_gathered(flow, item) for item in arg]
    if isinstance(arg, dict):
        return {key: _gathered(flow, item) for key, item in arg.items()}
    return flow.labels[arg.name] if isinstance(arg, Node) else FROZEN


def _call(flow: Flow, node: Node) -> ChannelCall:
    module = flow.modules[str(node.target)] if node.op == "call_module" else None
    operation = of_target(node) if module is None else of_module(type(module))
    return ChannelCall(
        flow.gm, node, operation, module, flow.shapes, flow.labels, flow.counting, flow.layers, flow.ties
    )


def _by_rule(flow: Flow, call: ChannelCall) -> LabelResult:
    rule = channels.of(call.operation)
    if rule is None:
        return call.freeze("no rule for this operation")
    before = flow.ties.records()
    try:
        found = rule(call)
    except MBSError:
        raise
    except Exception as error:
        if call.operation in channels.rules and call.operation.added:
            raise MBSError(
                f"{call.where}: the rule {rule_name(rule)} fails: {type(error).__name__}: {error}"
            ) from error
        return call.freeze("this form of the operation is not followed")
    result = found if isinstance(found, LabelResult) else LabelResult(found)
    check_result(call, rule, result.labels)
    if factors_in(result.labels) or result.refused or result.notes or result.mixer:
        return result
    of_several = isinstance(call.source, Node) and isinstance(flow.labels.get(call.source.name), list)
    if of_several or call.operation in READS_NO_CHANNELS or flow.ties.records() > before:
        return result  # one of several results: the others leave by other nodes
    return replace(result, labels=FROZEN, refused="its rule says nothing about the channels that enter")


def _join_parameters(flow: Flow) -> None:
    """A layer's tensor that the graph also reads by itself has one set of labels, the layer's."""
    for target, axes in flow.parameters.items():
        path, _, name = target.rpartition(".")
        layer = flow.layers.get(path)
        if layer is None or name not in layer.tensors:
            continue
        reason = f"{target} is also read where it cannot be reduced"
        for mine, held in zip(axes, layer.tensors[name], strict=True):
            if mine is not None and held is None:
                flow.ties.freeze(mine, reason)
            elif mine is not None and held is not None:
                flow.ties.tie(np.broadcast_to(mine, held.shape), held, reason)
        flow.parameters[target] = layer.tensors[name]


def _join_shared(flow: Flow) -> None:
    """A tensor that several hold is cut once: it has one set of labels, and stays where one of them knows none."""
    first: dict[int, tuple[str, Axes]] = {}
    for place, tensor, axes in _holders(flow):
        known, others = first.setdefault(id(tensor), (place, axes))
        if known == place:
            continue
        reason = f"{place} and {known} are one tensor"
        for mine, other in zip(axes, others, strict=True):
            if mine is not None and other is not None and mine.shape == other.shape:
                flow.ties.tie(mine, other, reason)
                continue
            for each in (mine, other):
                if each is not None:
                    flow.ties.freeze(each, reason)


def _holders(flow: Flow) -> Iterator[tuple[str, torch.Tensor, Axes]]:
    """Every tensor that the graph uses, by path, with the labels of its axes; those inside of leaves have none."""
    for path, layer in flow.layers.items():
        module = flow.modules[path]
        for name, axes in layer.tensors.items():
            yield f"{path}.{name}", attribute(module, name), axes
    for target, axes in flow.parameters.items():
        yield target, attribute(flow.gm, target), axes
    for path in dict.fromkeys(str(node.target) for node in flow.gm.graph.nodes if node.op == "call_module"):
        module = flow.modules[path]
        if path not in flow.layers or module._modules:
            for name, tensor in chain(module.named_parameters(), module.named_buffers()):
                if path not in flow.layers or name not in flow.layers[path].tensors:
                    yield f"{path}.{name}", tensor, (None,) * tensor.dim()


def _keep_boxes(flow: Flow) -> None:
    """Factors along several axes stay boxes: what is left along the shrinking axis is balanced over the others."""
    seen: set[int] = set()
    for labels in flow.labels.values():
        for factor in factors_in(labels):
            if len(varying(factor)) > 1 and id(factor) not in seen:
                seen.add(id(factor))
                axis = shrinking_axis(factor)
                parts = factor.size // factor.shape[axis]
                flow.ties.balance(np.moveaxis(factor, axis, -1).reshape(-1), parts)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a size, or the like, also in containers: nothing that could hold a tensor."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    kinds = (int, float, complex, str, slice, torch.dtype, torch.device, torch.layout, torch.memory_format, type)
    return value is None or value is ... or isinstance(value, kinds)
