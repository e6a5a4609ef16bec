"""Shapes, types and names of what enters a graph: from an example, or from what the graph carries.

Semantics
- An example is an input tensor or its shape, a sequence with one of these per input, or a dict of them by name.
- An input may itself be a list, tuple or dict of tensors or shapes.  Every tensor in it counts as an input of its own,
  named by the way to it: ``("views", 0)``, ``("views", 1)``.
- Without one, every input knows its own shape, from `mbs_fx.trace` with an example or from ShapeProp, or the plan
  that the network was made by knows them.
- An input that has a default value needs no shape.  Flags and numbers that tracing fixed have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.runtime.torch_private import extract_tensor_metadata
from mbs_fx.shapes.fake_interpreter import contains_tensor, mapped
from mbs_fx.shapes.shapes import types_of

ExampleLike = Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]] | Mapping[str, Any] | None
Shapes = tuple[tuple[int, ...], ...]
Name = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Every tensor that enters: its shape, its type where it is of whole numbers (`types_of`), and its name."""

    shapes: Shapes
    types: tuple[str, ...] = ()
    names: tuple[Name, ...] = ()


def require_graph(gm: Any) -> None:
    """Raise `MBSError` for what is not a traced graph."""
    if not isinstance(gm, GraphModule):
        raise MBSError(
            f"{type(gm).__name__} is not a traced graph: trace the model first, mbs_fx.trace(model, example)"
        )


def carry_inputs(gm: GraphModule, values: Sequence[Any]) -> None:
    """Leave the shapes of ``values`` on the inputs of a graph; constants at the end become defaults."""
    inputs = list(zip(_placeholders(gm), values, strict=True))
    for node, value in inputs:
        if contains_tensor(value):
            node.meta["tensor_meta"] = mapped(value, extract_tensor_metadata)
    for node, value in reversed(inputs):
        if node.users or not (value is None or isinstance(value, bool | int | float | str)):
            break
        node.args = (value,)
        gm.recompile()


def inputs_of(gm: GraphModule, example: ExampleLike) -> Inputs:
    """What enters a graph, by an example or by what the graph carries."""
    require_graph(gm)
    if example is None:
        return _carried(gm)
    given = _one_per_input(gm, example)
    nodes = _placeholders(gm)
    # Where an input has a default value, the example's number or None is left out.
    held = [(n, v) for n, v in zip_longest(nodes[: len(given)], given) if n is None or not n.args or _is_given(v)]
    return _named([(str(node.target) if node is not None else "", value) for node, value in held])


def packed(names: Sequence[Name], values: Sequence[Any]) -> dict[str, Any]:
    """One value per input, by name: lists and dicts are put together again."""
    groups: dict[str, list[tuple[Name, Any]]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(str(name[0]), []).append((name[1:], value))
    return {head: _together(items) for head, items in groups.items()}


def arguments_of(names: Sequence[Name], values: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of a graph; ``names`` may be () where each value is one."""
    return tuple(packed(names, values).values()) if names else tuple(values)


def _together(items: list[tuple[Name, Any]]) -> Any:
    if not items[0][0]:
        return items[0][1]
    groups: dict[str | int, list[tuple[Name, Any]]] = {}
    for name, value in items:
        groups.setdefault(name[0], []).append((name[1:], value))
    parts = {key: _together(inner) for key, inner in groups.items()}
    return list(parts.values()) if all(isinstance(key, int) for key in parts) else parts


def _is_given(value: Any) -> bool:
    return isinstance(value, Tensor | list | tuple | Mapping)


def _named(held: Sequence[tuple[str, Any]]) -> Inputs:
    """Inputs by the name of their placeholder; names are left out where nobody gave any."""
    flat = [((head, *rest), leaf) for head, value in held for rest, leaf in _leaves(value)]
    named = all(name[0] and not str(name[0]).startswith("*") for name, _ in flat)
    return Inputs(
        tuple(_shape_of(leaf) for _, leaf in flat),
        types_of(leaf for _, leaf in flat),
        tuple(name for name, _ in flat) if named else (),
    )


def _leaves(value: Any) -> Iterator[tuple[Name, Any]]:
    """Every tensor or shape in an input, with the way to it."""
    if hasattr(value, "shape"):
        yield (), value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (((key, *rest), leaf) for rest, leaf in _leaves(item))
    elif isinstance(value, tuple | list) and not all(isinstance(v, int) for v in value):
        for index, item in enumerate(value):
            yield from (((index, *rest), leaf) for rest, leaf in _leaves(item))
    else:
        yield (), value


def _one_per_input(gm: GraphModule, example: Any) -> tuple[Any, ...]:
    if isinstance(example, Mapping):
        return tuple(example[node.target] for node in _placeholders(gm) if node.target in example)
    if isinstance(example, Tensor):
        return (example,)
    if not isinstance(example, list | tuple):
        raise MBSError(
            f"the example is a {type(example).__name__}; give an input tensor, its shape as a tuple of ints, or one of "
            "these per input in a tuple or a dict"
        )
    is_shape = len(example) > 0 and all(isinstance(size, int) for size in example)
    return (example,) if is_shape else tuple(example)


def _shape_of(value: Any) -> tuple[int, ...]:
    """The shape of a tensor, or of what is known of one; a shape as it is; what is neither is refused later."""
    if hasattr(value, "shape"):
        return tuple(map(int, value.shape))
    return tuple(value) if isinstance(value, list | tuple) else value


def _placeholders(gm: GraphModule) -> list[Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def _carried(gm: GraphModule) -> Inputs:
    noted = noted_inputs([node for node in _placeholders(gm) if not node.args])
    if noted is not None:
        return noted
    made: Any = gm.meta.get("mbs")
    if not hasattr(made, "input_shapes"):
        raise MBSError(
            "the input shape is not known: pass an example or its shape, as analyze(gm, (1, 3, 224, 224)), or trace "
            "with one, as mbs_fx.trace(model, (1, 3, 224, 224))"
        )
    return Inputs(made.input_shapes, made.input_types, made.input_names)


def noted_inputs(placeholders: Sequence[Node]) -> Inputs | None:
    """What this or another pass left about the inputs, None where it is not known of all of them."""
    held = [(str(node.target), noted_on(node)) for node in placeholders]
    return _named(held) if held and all(value is not None for _, value in held) else None


def noted_on(node: Node) -> Any:
    """What this or another pass left about the tensor that enters, or about the tensors in a container."""
    held = (node.meta.get(key) for key in ("tensor_meta", "val", "example_value"))
    return next((value for value in held if _is_noted(value)), None)


def _is_noted(value: Any) -> bool:
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return len(value) > 0 and all(map(_is_noted, value))
    if isinstance(value, Mapping):
        return len(value) > 0 and all(map(_is_noted, value.values()))
    return hasattr(value, "shape")
