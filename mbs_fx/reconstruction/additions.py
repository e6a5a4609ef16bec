"""What a layer is matched against: its own output, or the sum that it enters.

Semantics
- From a layer through BatchNorm, dropout and additions, as long as each value has one reader, everything is
  affine in the layer's output y, channel by channel: s y + t.
- Where an addition is among them and the other operand is known by then, the layer that comes last is matched against
  the original's sum: y = (sum - t) / s.  It takes back what the other operand lost, so that errors do not pile up
  along residual connections (He et al. 2017, section 3.3).
- s counts as the weight of an error: what BatchNorm makes small matters little.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node

from mbs_fx.operations import vocabulary as v
from mbs_fx.operations.resolve import of_target
from mbs_fx.reconstruction.layers import is_plain_norm

PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Path:
    """Nodes after a layer that are affine in its output; ``adds`` where there is an addition among them."""

    nodes: tuple[str, ...] = ()
    adds: bool = False


def path_behind(gm: GraphModule, name: str, shapes: Mapping[str, Any], layers: Set[str]) -> Path:
    """The longest affine path behind a node, up to its last addition; only BatchNorm where there is none.

    ``layers`` are the nodes that are refitted: an operand behind one of those that are still to come is not known yet.
    """
    order = {node.name: place for place, node in enumerate(gm.graph.nodes)}
    node = next(node for node in gm.graph.nodes if node.name == name)
    nodes: list[str] = []
    last = norms = 0
    while len(node.users) == 1:
        user = next(iter(node.users))
        passes = _passes(gm, user, node)
        before = [] if passes else _operand(user, node, order, order[name], layers)
        if before is None or not (passes or _same_shape(user, shapes)):
            break
        nodes += [*before, user.name]
        if not passes:
            last = len(nodes)
        elif not last:
            norms = len(nodes)
        node = user
    return Path(tuple(nodes[: last or norms]), bool(last))


def _passes(gm: GraphModule, user: Node, node: Node) -> bool:
    if user.op != "call_module" or user.args != (node,):
        return False
    module = gm.get_submodule(str(user.target))
    return type(module) in PASSING or is_plain_norm(module)


def _same_shape(user: Node, shapes: Mapping[str, Any]) -> bool:
    """Whether nothing is broadcast in an addition."""
    found = [getattr(shapes.get(node.name), "shape", None) for node in (user, *user.all_input_nodes)]
    return all(shape == found[0] for shape in found)


def adds(node: Node) -> bool:
    """Whether a node is the plain sum of two others."""
    return (
        of_target(node) is v.ADD
        and not node.kwargs
        and len(node.args) == 2
        and all(isinstance(arg, Node) for arg in node.args)
    )


def _operand(user: Node, node: Node, order: Mapping[str, int], now: int, layers: Set[str]) -> list[str] | None:
    """What has to run for the other operand of an addition; None where it is no addition or not known yet."""
    if not adds(user):
        return None
    waiting = [arg for arg in user.all_input_nodes if arg is not node and order[arg.name] > now]
    found: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source.name in layers:
            return None
        found.add(source.name)
        waiting += [arg for arg in source.all_input_nodes if order[arg.name] > now and arg.name not in found]
    return sorted(found, key=lambda each: order[each])


def follow(interpreter: fx.Interpreter, path: Path, name: str, value: Tensor, env: Mapping[Node, Any]) -> Tensor:
    """The value at the end of a path when the layer's output is ``value``; nothing in ``env`` is changed."""
    graph: fx.Graph = interpreter.graph  # pyright: ignore[reportAssignmentType]
    nodes = {node.name: node for node in graph.nodes}
    held: dict[Node, Any] = {nodes[name]: value}
    for step in path.nodes:
        node = nodes[step]
        for source in node.all_input_nodes:
            if source not in held:
                kept = env[source]
                held[source] = kept.clone() if isinstance(kept, Tensor) else kept
        interpreter.env = held
        held[node] = interpreter.run_node(node)
    return held[nodes[path.nodes[-1]]] if path.nodes else value
