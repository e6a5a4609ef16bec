"""The modules of the file: what each of them holds, and one class for those that are alike.

Semantics
- A module whose steps are a chain of numbered children is an ``nn.Sequential``; one that only holds others is an
  ``nn.ModuleList`` or an ``nn.ModuleDict``; any other is a class.
- Modules of one class have equal lines and equal calls up to their numbers.  Numbers that differ become arguments of
  the constructor; numbers that are always equal to one another become one argument.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from mbs_fx.errors import MBSError
from mbs_fx.exporting.argument_names import argument_names, is_width
from mbs_fx.exporting.bodies import Body
from mbs_fx.exporting.calls import REQUIRED, Argument, Call, Slot, literal
from mbs_fx.exporting.layers import layer_call
from mbs_fx.exporting.regions import Region

Values = tuple[tuple[type, Any], ...]
"""What the modules of one class have in one place, each with its type."""

NAMES = frozenset(
    {"Any", "DTYPES", "F", "OrderedDict", "Path", "Tensor", "json", "load", "math", "nn", "operator", "read", "self"}
) | {"torch", "torchvision"}
"""What a file may mean by these names, so that nothing else has them."""

_RANK = {"channels": 0, "in_channels": 0, "in_features": 0, "out_channels": 2, "out_features": 2}
"""The order of widths in a constructor: in, inner ones, out."""


@dataclass(eq=False)
class Module:
    """A module of the file before it is a class: its children by name, and its ``forward``."""

    path: str
    kind: str = ""
    region: Region | None = None
    body: Body | None = None
    children: dict[str, Module | Call] = field(default_factory=dict[str, "Module | Call"])
    call: Call | None = None

    @property
    def height(self) -> int:
        """How many modules stand inside one another below it."""
        return 1 + max((child.height for child in self.children.values() if isinstance(child, Module)), default=0)

    def below(self) -> Iterable[Module]:
        """Itself and every module inside."""
        yield self
        for child in self.children.values():
            if isinstance(child, Module):
                yield from child.below()


@dataclass(frozen=True)
class Class:
    """One class of the file: its name, its arguments with their defaults, its children and its ``forward``.

    ``ties`` are parameters of the network that are another one.
    """

    name: str
    arguments: tuple[tuple[str, str, Any], ...]
    children: tuple[tuple[str, str], ...]
    body: Body | None
    numbers: tuple[str, ...]
    kept: tuple[str, ...]
    ties: tuple[tuple[str, str], ...] = ()


def module_tree(gm: GraphModule, root: Region, bodies: Mapping[str, Body]) -> Module:
    """The modules that the regions stand for, with the layers and tensors that each of them holds."""
    top = Module("", root.kind, root, bodies[""])
    regions = {region.path: region for region in root.regions() if region.path}
    around = {node: region.path for region in reversed([*root.regions()]) for node in region.nodes()}
    called = tuple(f"{node.target}." for node in gm.graph.find_nodes(op="call_module"))
    for node in gm.graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith(called or ("\0",)):
            continue  # the layer holds it
        if node.op in ("call_module", "get_attr"):
            target, held = str(node.target), _held(gm, str(node.target))
            owner = _owner(top, target, regions, bodies)
            made = _tensor(target, held) if isinstance(held, Tensor) else _layer(target, held)
            owner.children.setdefault(target.rpartition(".")[2], made)
        elif around.get(node):
            _owner(top, f"{around[node]}.operation", regions, bodies)
    return top


def _held(gm: GraphModule, target: str) -> Any:
    held: Any = gm
    for name in target.split("."):
        held = getattr(held, name)
    return held


def _owner(top: Module, target: str, regions: Mapping[str, Region], bodies: Mapping[str, Body]) -> Module:
    """The module that holds a layer, made together with those on the way where they are new."""
    module, path = top, ""
    for name in target.split(".")[:-1]:
        path = f"{path}.{name}".removeprefix(".")
        child = module.children.get(name)
        if not isinstance(child, Module):
            region = regions.get(path)
            child = Module(path, region.kind if region else "", region, bodies.get(path))
            module.children[name] = child
        module = child
    return module


def _layer(path: str, module: nn.Module) -> Call:
    call = layer_call(path, module)
    if call is None:
        raise MBSError(
            f"{path} ({type(module).__module__}.{type(module).__name__}) cannot be written: no layer of torch"
        )
    return call


def _tensor(target: str, tensor: Tensor) -> Call:
    """The declaration of a parameter or buffer; its numbers come with the weights."""
    name = target.rpartition(".")[2]
    sizes = [Argument("", Slot(size, REQUIRED, name, "size")) for size in tensor.shape]
    shape = sizes or [Argument("", Slot((), REQUIRED, name, "size"))]
    empty = Call("torch.empty", (*shape, Argument("dtype", Slot(_dtype(tensor), None, name, "dtype"))))
    if not isinstance(tensor, nn.Parameter):
        return Call("nn.Buffer", (Argument("", empty),))
    grad = Argument("requires_grad", Slot(tensor.requires_grad, True, name, "requires_grad"))
    return Call("nn.Parameter", (Argument("", empty), grad))


def _dtype(tensor: Tensor) -> Any:
    """The type to declare: floating point follows the network's."""
    return None if tensor.dtype.is_floating_point else tensor.dtype


def classes_of(top: Module) -> list[Class]:
    """The classes of the file, innermost first, the network itself last."""
    made: list[Class] = []
    taken: set[str] = {*NAMES, *dir(builtins), *keyword.kwlist}
    by_height: dict[int, list[Module]] = {}
    for module in top.below():
        by_height.setdefault(module.height, []).append(module)
    for height in sorted(by_height):
        alike: dict[Any, list[Module]] = {}
        for module in by_height[height]:
            held = container(module)
            if held is not None and module is not top:
                module.call = held
            else:
                alike.setdefault(_likeness(module), []).append(module)
        made += [_class(modules, taken) for modules in alike.values()]
    return made


def container(module: Module) -> Call | None:
    """A container of torch where it does what the module does."""
    numbers = [str(i) for i in range(len(module.children))]
    listed = sorted(module.children) == sorted(numbers)
    if listed and module.body is None:
        module.children = {number: module.children[number] for number in numbers}
    names = list(module.children)
    calls = [_call(child) for child in module.children.values()]
    if module.body is None:
        if listed:
            return Call("nn.ModuleList", tuple(Argument("", call) for call in calls))
        return None if all(name.isidentifier() for name in names) else _dictionary(names, calls)
    if not _is_chain(module) or any(call.name.startswith(("nn.Parameter", "nn.Buffer")) for call in calls):
        return None
    if names == numbers:
        return Call("nn.Sequential", tuple(Argument("", call) for call in calls))
    if module.kind == "Sequential" and all(name.isidentifier() for name in names):
        named = Call("OrderedDict", tuple(Argument(name, call) for name, call in zip(names, calls, strict=True)))
        return Call("nn.Sequential", (Argument("", named),))
    return None


def _dictionary(names: Sequence[str], calls: Sequence[Call]) -> Call:
    return Call("nn.ModuleDict", tuple(Argument(name, call) for name, call in zip(names, calls, strict=True)))


def _is_chain(module: Module) -> bool:
    """Whether a module gives its input to its first child, and so on, and gives back what the last one gives."""
    region = module.region
    assert region is not None
    paths: list[str] = []
    before = region.inputs()
    for item in region.items:
        if isinstance(item, Node) and (item.op != "call_module" or item.kwargs or len(item.args) != 1):
            return False
        reads = item.inputs() if isinstance(item, Region) else item.all_input_nodes
        if reads != before or len(before) != 1:
            return False
        before = item.outputs() if isinstance(item, Region) else [item]
        paths.append(item.path if isinstance(item, Region) else str(item.target))
    own = [f"{module.path}.{name}".removeprefix(".") for name in module.children]
    return paths == own and region.outputs() == before


def _call(child: Module | Call) -> Call:
    held = child if isinstance(child, Call) else child.call
    assert held is not None
    return held


def _likeness(module: Module) -> Any:
    body = module.body.structure if module.body else None
    return module.kind, body, tuple((name, _call(child).structure) for name, child in module.children.items())


def _slots(module: Module) -> list[Slot]:
    """Every number of a module: those of its children's calls, then those in its ``forward``."""
    held = [slot for child in module.children.values() for slot in _call(child).slots()]
    return [*held, *(Slot(number, REQUIRED, "", "number") for number in (module.body.numbers if module.body else ()))]


def _class(modules: Sequence[Module], taken: set[str]) -> Class:
    """One class for modules that are alike; each of them gets the call that makes it."""
    first = modules[0]
    columns = [_slots(module) for module in modules]
    values = [tuple((type(c[i].value), c[i].value) for c in columns) for i in range(len(columns[0]))]
    varied: dict[Values, list[Slot]] = {}
    for held, slot in zip(values, columns[0], strict=True):
        if len(set(held)) > 1:
            varied.setdefault(held, []).append(slot)
    held_names = {*first.children, *vars(nn.Module), *vars(nn.Module()), *NAMES}
    name_of = dict(zip(varied, argument_names([*varied.values()], columns[0], held_names), strict=True))
    name = _class_name(first, taken)
    defaults = {held: _usual(held, name_of[held]) for held in varied}
    order = sorted(varied, key=lambda held: (defaults[held] is not REQUIRED, _RANK.get(name_of[held], 1)))
    for number, module in enumerate(modules):
        module.call = Call(name, tuple(_argument(held[number][1], name_of[held], defaults[held]) for held in order))
    texts = iter(values)

    def write(slot: Slot) -> str | None:
        held = next(texts)
        if held in name_of:
            return name_of[held]
        return None if slot.default is not REQUIRED and slot.value == slot.default else literal(slot.value)

    children = tuple((attribute, _call(child).text(write)) for attribute, child in first.children.items())
    rest = [(held, name_of.get(held)) for held in texts]
    numbers = tuple(f"self.{name}" if name else literal(held[0][1]) for held, name in rest)
    kept = tuple(dict.fromkeys(name for _, name in rest if name))
    signature = tuple((name_of[held], _type_name(held), defaults[held]) for held in order)
    return Class(name, signature, children, first.body, numbers, kept)


def _argument(value: Any, name: str, default: Any) -> Argument:
    return Argument("" if default is REQUIRED else name, Slot(value, default, name, name))


def _class_name(module: Module, taken: set[str]) -> str:
    """The original's name, with a number where another class has it."""
    base = module.kind.lstrip("_")
    if not base or hasattr(nn, base):
        base = module.path.rpartition(".")[2].title().replace("_", "") or "Network"
    base = base if base.isidentifier() else f"Block{re.sub(r'[^0-9A-Za-z_]', '', base)}"
    name = next(n for n in (base, *(f"{base}{i}" for i in range(2, 10_000))) if n not in taken)
    taken.add(name)
    return name


def _type_name(held: Sequence[tuple[type, Any]]) -> str:
    kinds = [*dict.fromkeys("None" if kind is type(None) else kind.__name__ for kind, _ in held)]
    return " | ".join("tuple[int, ...]" if kind == "tuple" else kind for kind in kinds)


def _usual(held: Values, name: str) -> Any:
    """The default of an argument: its most frequent value, none for a width or a size."""
    if is_width(name):
        return REQUIRED
    return Counter(value for _, value in held).most_common(1)[0][0]
