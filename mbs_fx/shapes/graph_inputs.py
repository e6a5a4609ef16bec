"""Shapes and types of what enters a graph: from an example, or from what the graph carries.

Semantics
- An example is an input tensor or its shape, a sequence with one of these per input, or a dict of them by name.
- Without one, every input knows its own shape, from `mbs_fx.trace` with an example or from ShapeProp, or the plan
  that the network was made by knows them.
- An input that has a default value needs no shape.  Flags and numbers that tracing fixed have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.runtime.torch_private import extract_tensor_metadata
from mbs_fx.shapes.shapes import types_of

ExampleLike = Tensor | Sequence[int] | Sequence[Tensor] | Sequence[Sequence[int]] | Mapping[str, Any] | None
Shapes = tuple[tuple[int, ...], ...]


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
        if isinstance(value, Tensor):
            node.meta["tensor_meta"] = extract_tensor_metadata(value)
    for node, value in reversed(inputs):
        if node.users or not (value is None or isinstance(value, bool | int | float | str)):
            break
        node.args = (value,)
    gm.recompile()


def inputs_of(gm: GraphModule, example: ExampleLike) -> tuple[Shapes, tuple[str, ...]]:
    """The shape of every tensor input, and its type where it is of whole numbers (`mbs_fx.shapes.shapes.types_of`)."""
    require_graph(gm)
    if example is None:
        return _carried(gm)
    values = _one_per_input(gm, example)
    given = [
        value
        for value, node in zip_longest(values, _placeholders(gm)[: len(values)])
        if node is None or not node.args or isinstance(value, Tensor | list | tuple)
    ]
    return tuple(map(_shape_of, given)), types_of(given)


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
    """The shape of a tensor; a shape as it is; what is neither is refused where shapes are inferred."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    return tuple(value) if isinstance(value, list | tuple) else value


def _placeholders(gm: GraphModule) -> list[Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def _carried(gm: GraphModule) -> tuple[Shapes, tuple[str, ...]]:
    held = [noted_on(node) for node in _placeholders(gm) if not node.args]
    if held and None not in held:
        return tuple(tuple(map(int, value.shape)) for value in held), types_of(held)
    made: Any = gm.meta.get("mbs")
    if not hasattr(made, "input_shapes"):
        raise MBSError(
            "the input shape is not known: pass an example or its shape, as analyze(gm, (1, 3, 224, 224)), or trace "
            "with one, as mbs_fx.trace(model, (1, 3, 224, 224))"
        )
    return made.input_shapes, made.input_types


def noted_on(node: Node) -> Any:
    """What this or another pass left about the tensor that enters."""
    held = (node.meta.get(key) for key in ("tensor_meta", "val", "example_value"))
    return next((value for value in held if hasattr(value, "shape")), None)
