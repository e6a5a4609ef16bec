"""Both networks run side by side, node by node, and no more of them is held than what comes next needs.

Semantics
- Images are held in chunks; a chunk has the values of both networks that later nodes read.
- Memory is bounded: where values are large only the first chunks are held.  The others join where values are smaller,
  and then run through the part of the small network that is fitted by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from mbs_fx.shapes.shapes import nested

Env = dict[Node, Any]

FOLD = 5
"""One image in so many is held back."""


@dataclass(frozen=True)
class Chunk:
    """Images that run together; ``number`` is their batch's, ``first`` counts the images of the batches before.

    ``arguments``: what a graph's placeholders take, in their order; a list or dict where a placeholder takes one.
    """

    number: int
    arguments: tuple[Any, ...]
    first: int = 0

    def __len__(self) -> int:
        return len(tensors_in(self.arguments)[0])

    def copies(self) -> list[Any]:
        """The arguments in memory of their own, for layers that write into their input."""
        return [nested(argument, Tensor.clone) for argument in self.arguments]

    def only_held_back(self) -> list[Any]:
        """The arguments for the images that are held back, in memory of their own."""
        return [nested(argument, lambda tensor: tensor[self.fitted :].clone()) for argument in self.arguments]

    @property
    def fitted(self) -> int:
        """How many images are not held back."""
        return len(self) - ((self.first + len(self)) // FOLD - self.first // FOLD)

    def placed(self, first: int) -> Chunk:
        """The chunk behind ``first`` images; every fifth image is held back, and those of the chunk come last in it."""
        back = (torch.arange(len(self)) + first) % FOLD == FOLD - 1
        order = torch.argsort(back.int(), stable=True)
        arguments = tuple(nested(argument, lambda each: each[order.to(each.device)]) for argument in self.arguments)
        return Chunk(self.number, arguments, first)


@dataclass
class Held:
    """What is held of one chunk: values of the original and of the small network by node."""

    chunk: Chunk
    original: Env = field(default_factory=dict[Node, Any])
    small: Env = field(default_factory=dict[Node, Any])

    def bytes(self) -> int:
        """Memory of the values, shared storage once."""
        tensors = [value for env in (self.original, self.small) for held in env.values() for value in tensors_in(held)]
        storages = [value.untyped_storage() for value in tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Frontier:
    """Two graphs of the same nodes, run up to the same place on the first of the chunks.

    ``budget``: bytes that the values of all chunks may take.  ``also``: a node that another reads besides its operands.
    """

    def __init__(
        self,
        original: GraphModule,
        small: GraphModule,
        chunks: Sequence[Chunk],
        budget: int,
        also: Mapping[str, str],
    ) -> None:
        self.original, self.small = fx.Interpreter(original), fx.Interpreter(small)
        self.nodes = list(zip(original.graph.nodes, small.graph.nodes, strict=True))
        self.place_of = {node.name: place for place, (node, _) in enumerate(self.nodes)}
        self.inputs = [node.name for node, _ in self.nodes if node.op == "placeholder"]
        self.last = {**_last_uses(original, also), **_last_uses(small, also)}
        self.chunks, self.budget = list(chunks), budget
        self.place = 0
        self.held = [Held(chunk) for chunk in self.chunks[:1]]

    def advance(self, stop: int) -> None:
        """Run all nodes before number ``stop`` on every chunk that is held, then let others join."""
        for held in self.held:
            self._run(held, self.place, stop)
        self.place = stop
        self._fill()

    def output(self, held: Held, name: str) -> Any:
        """What the original gives at the node that comes next."""
        node = self.nodes[self.place_of[name]][0]
        if node not in held.original:
            held.original[node] = run_node(self.original, node, held.original)
        return held.original[node]

    def _run(self, held: Held, start: int, stop: int) -> None:
        for nodes in self.nodes[start:stop]:
            for node, runner, env in zip(nodes, (self.original, self.small), (held.original, held.small), strict=True):
                if node.op == "placeholder":
                    env[node] = self._input(node, held.chunk)
                elif node not in env:
                    env[node] = run_node(runner, node, env)
                for done in self.last.get(node, ()):
                    del env[done]

    def _input(self, node: Node, chunk: Chunk) -> Any:
        place = self.inputs.index(node.name)
        return nested(chunk.arguments[place], Tensor.clone) if place < len(chunk.arguments) else node.args[0]

    def _fill(self) -> None:
        """Hold as many chunks as memory allows, and images enough to hold one back."""
        images = self.budget / max(1, self.held[0].bytes()) * len(self.held[0].chunk)
        count, total = 1, len(self.chunks[0])
        while count < len(self.chunks) and (total < FOLD or total + len(self.chunks[count]) <= images):
            total += len(self.chunks[count])
            count += 1
        del self.held[count:]
        for chunk in self.chunks[len(self.held) : count]:
            joining = Held(chunk)
            self._run(joining, 0, self.place)
            self.held.append(joining)


def run_node(runner: fx.Interpreter, node: Node, env: Env) -> Any:
    """The value of one node."""
    runner.env = env
    return runner.run_node(node)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def _last_uses(gm: GraphModule, also: Mapping[str, str]) -> dict[Node, list[Node]]:
    """Values that nothing reads after a node; the network's output is kept."""
    nodes = {node.name: node for node in gm.graph.nodes}
    found: dict[Node, list[Node]] = {}
    seen: set[Node] = set()
    for node in reversed(gm.graph.nodes):
        more = [nodes[also[node.name]]] if node.name in also else []
        for source in (*node.all_input_nodes, *more, node):
            if source not in seen and node.op != "output":
                found.setdefault(node, []).append(source)
            seen.add(source)
    return found
