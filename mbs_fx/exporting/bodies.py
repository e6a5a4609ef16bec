"""The ``forward`` of a region as lines, with marks for numbers.

- A value takes the name of one that nobody reads any more, as a person writes ``x = self.bn1(x)``.
- A number that is computed and read once stands where it is read: ``x.shape[0]``.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from mbs_fx.exporting.expressions import IN_PLACE, Fragment, expression, joined, value
from mbs_fx.exporting.regions import Region
from mbs_fx.shapes.shapes import TensorShape

_TENSORS = ("x", "y", "z", "u", "v", "w")
_NUMBERS = ("n", "c", "h", "w", "m", "k")


@dataclass(frozen=True, slots=True)
class Body:
    """Lines with marks, the numbers in them, and the signature."""

    lines: tuple[str, ...]
    numbers: tuple[Any, ...]
    inputs: tuple[str, ...]
    given: str

    @property
    def structure(self) -> tuple[Any, ...]:
        """What two blocks of one class have in common."""
        return self.lines, self.inputs, self.given


def body_of(
    region: Region,
    seen: Mapping[str, Any],
    listed: Set[str],
    returned: Any = None,
    names: Mapping[Node, str] | None = None,
) -> Body:
    """What a region does; the root gives ``returned`` and has names for its inputs."""
    return _Writer(region, seen, listed, dict(names or {})).write(returned)


def relative(path: str, target: str, listed: Set[str]) -> str:
    """How a class refers to what stands at a path below its own; ``listed`` are the paths of lists."""
    prefix, *parts = target[len(path) :].lstrip(".").split(".")
    text = f"self.{prefix}" if prefix.isidentifier() else f'getattr(self, "{prefix}")'
    prefix = f"{path}.{prefix}".removeprefix(".")
    for part in parts:
        index = part if prefix in listed else f'"{part}"'
        text += f".{part}" if part.isidentifier() else f"[{index}]"
        prefix = f"{prefix}.{part}"
    return text


@dataclass
class _Writer:
    region: Region
    seen: Mapping[str, Any]
    listed: Set[str]
    names: dict[Node, str]
    inside: set[Node] = field(default_factory=set[Node])
    unpacked: set[Node | Region] = field(default_factory=set["Node | Region"])
    inlined: dict[Node, Fragment] = field(default_factory=dict[Node, Fragment])
    written: list[Fragment] = field(default_factory=list[Fragment])

    def write(self, returned: Any) -> Body:
        region = self.region
        inputs = region.inputs() if not self.names else [*self.names]
        self.last: dict[Node, int] = {}
        for node in inputs:
            self.names[node] = self.names.get(node) or self._fresh(node, -1)
        arguments = tuple(f"{self.names[node]}: {self._type(node)}" for node in inputs)
        outputs = region.outputs()
        self.result: Any = returned if returned is not None else outputs[0] if len(outputs) == 1 else tuple(outputs)
        self.last = self._last_reads()
        self._find_inlined()
        for index, item in enumerate(region.items):
            self._item(index, item)
        self._finish(value(self.result, self._name))
        made = joined(self.written, "\n")
        return Body(tuple(made.text.split("\n")), made.numbers, arguments, self._given())

    def _given(self) -> str:
        if isinstance(self.result, Node):
            return self._type(self.result)
        if isinstance(self.result, tuple) and all(isinstance(each, Node) for each in self.result):
            return f"tuple[{', '.join(self._type(each) for each in self.result)}]"
        return "dict[str, Tensor]" if isinstance(self.result, dict) else "Any"

    def _type(self, node: Node) -> str:
        held = self.seen[node.name]
        if isinstance(held, TensorShape):
            return "Tensor"
        if isinstance(held, tuple) and held and all(isinstance(each, TensorShape) for each in held):
            return "tuple[Tensor, ...]"
        return "int" if type(held) is int else "Any"

    def _last_reads(self) -> dict[Node, int]:
        """For every value the item that reads it last; what is returned is read at the end."""
        last: dict[Node, int] = {}
        for index, item in enumerate(self.region.items):
            reads = item.inputs() if isinstance(item, Region) else item.all_input_nodes
            last.update(dict.fromkeys(reads, index))
        ends: list[Node] = []
        _ = value(self.result, lambda node: (ends.append(node), Fragment(""))[1])
        last.update(dict.fromkeys(ends, len(self.region.items)))
        return last

    def _find_inlined(self) -> None:
        """The numbers that are written where they are read; what they are made of is then read there."""
        for item in reversed(self.region.items):
            if isinstance(item, Region) or not self._stands_inside(item):
                continue
            if item.target is operator.getitem and self._parts(item.all_input_nodes[0]):
                continue
            (user,) = item.users
            place = self.last[user] if user in self.inside else self.last[item]
            self.inside.add(item)
            for node in (item, *item.all_input_nodes):
                self.last[node] = max(self.last.get(node, place), place)

    def _item(self, index: int, item: Node | Region) -> None:
        if item in self.unpacked:
            return
        if isinstance(item, Node) and (parts := self._parts(item)):
            self.unpacked |= set(parts)
            self._assign(index, item.all_input_nodes, parts, self._computed(item))
        elif isinstance(item, Region):
            reads, made = item.inputs(), item.outputs()
            call = joined([Fragment(self._ref(item.path)), self._arguments(reads)], "")
            self._assign(index, reads, made, call)
        elif item in self.inside:
            self.inlined[item] = expression(item, self._name)
        elif not self._written_in_place(index, item):
            self._assign(index, item.all_input_nodes, [item], self._computed(item))

    def _computed(self, node: Node) -> Fragment:
        """What a step computes: a call of a layer, or an operation."""
        if node.op != "call_module":
            return expression(node, self._name)
        parts = [value(each, self._name) for each in node.args]
        parts += [joined([Fragment(k), value(each, self._name)], "=") for k, each in node.kwargs.items()]
        return joined([Fragment(self._ref(str(node.target))), joined(parts, before="(", after=")")], "")

    def _parts(self, node: Node) -> list[Node]:
        """The parts of a tuple that is only taken apart, all of them in this region; else none."""
        held, own = self.seen[node.name], set(self.region.items)
        if not isinstance(held, tuple) or len(node.users) != len(held) or len(held) < 2:
            return []
        taken = {user.args[1]: user for user in node.users if user.target is operator.getitem and user in own}
        parts = [taken.get(index) for index in range(len(held))]
        read = [part for part in parts if part is not None and part in self.last and part not in self.inside]
        return read if len(read) == len(held) else []

    def _ref(self, path: str) -> str:
        return relative(self.region.path, path, self.listed)

    def _arguments(self, nodes: list[Node]) -> Fragment:
        return joined([self._name(node) for node in nodes], before="(", after=")")

    def _stands_inside(self, node: Node) -> bool:
        """Whether a number is written where its only reader is."""
        held = self.seen[node.name]
        plain = type(held) in (int, float) or (node.target in (getattr, "size") and isinstance(held, tuple))
        if not plain or len(node.users) != 1 or node not in self.last or self.last[node] == len(self.region.items):
            return False
        return isinstance(self.region.items[self.last[node]], Node)

    def _written_in_place(self, index: int, node: Node) -> bool:
        """``x += y`` where the sum has the name of its first part."""
        target: Any = node.target
        sign = IN_PLACE.get(getattr(target, "__name__", ""))
        if sign is None or getattr(operator, target.__name__, None) is not target:
            return False
        first, second = node.args
        if not isinstance(first, Node) or first not in self.names or self.last.get(first) != index:
            return False
        self.names[node] = self.names[first]
        self.written.append(joined([self._name(first), value(second, self._name)], f" {sign} "))
        return True

    def _assign(self, index: int, reads: list[Node], made: list[Node], text: Fragment) -> None:
        if made and not any(node in self.last for node in made):
            self.written.append(text)
            return
        free = [node for node in reads if self.last.get(node) == index and node in self.names]
        for node in made:
            same = next((old for old in free if self._type(old) == self._type(node)), None)
            if same is not None:
                free.remove(same)
                self.names[node] = self.names[same]
            else:
                self.names[node] = self._fresh(node, index)
        names = ", ".join(self.names[node] for node in made)
        self.written.append(joined([Fragment(names), text], " = "))

    def _finish(self, result: Fragment) -> None:
        """The last line; what it would only name is computed in it."""
        last = self.written[-1] if self.written else Fragment("")
        if last.text.startswith(f"{result.text} = "):
            self.written[-1] = Fragment("return " + last.text[len(result.text) + 3 :], last.numbers)
            return
        self.written.append(Fragment(f"return {result.text}", result.numbers))

    def _name(self, node: Node) -> Fragment:
        if node.op == "get_attr":
            return Fragment(self._ref(str(node.target)))
        return self.inlined.get(node) or Fragment(self.names[node])

    def _fresh(self, node: Node, index: int) -> str:
        """A name that no value has which is read after an item."""
        taken = {name for held, name in self.names.items() if index < 0 or self.last.get(held, -1) > index}
        kind = self._type(node)
        pool = _TENSORS if kind == "Tensor" else _NUMBERS if kind == "int" else ("parts",)
        names = (base if not number else f"{base}{number + 1}" for number in range(10_000) for base in pool)
        return next(name for name in names if name not in taken)
