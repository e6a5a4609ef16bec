"""`mbs_fx.export_python`: a network as one Python file that needs torch alone.

Semantics
- The file holds the layers with their widths under their own names, in classes that mirror the modules they were
  traced in; blocks that are alike share a class.
- It is written for evaluation.  What only training runs (dropout by function, auxiliary heads) is left out; layers
  that know their mode (BatchNorm, ``nn.Dropout``) are what they were, so the file can be trained.
- Nothing of it comes from this package, nor from the library that the network came from, torchvision's operations
  aside.  What cannot be written so is named.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from mbs_fx.errors import MBSError
from mbs_fx.exporting.blocks import NAMES, Class, classes_of, module_tree
from mbs_fx.exporting.bodies import Body, body_of, relative
from mbs_fx.exporting.regions import Region, grouped
from mbs_fx.exporting.source import source
from mbs_fx.exporting.steps import chains, written_graph
from mbs_fx.exporting.trial import require_same
from mbs_fx.results.files import write_atomically, write_text
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.carried_plan import plan_in
from mbs_fx.rewriting.modes import planned_graph
from mbs_fx.rewriting.weights import unwrapped
from mbs_fx.shapes.graph_attributes import attribute
from mbs_fx.shapes.graph_inputs import ExampleLike, Shapes, inputs_of
from mbs_fx.tracing.check import copied
from mbs_fx.tracing.trace import trace


def export_python(
    small: nn.Module,
    file: str | Path,
    weights: str | Path | None = None,
    *,
    example: ExampleLike = None,
    force: bool = False,
) -> Path:
    """Write a network as one Python file of plain torch layers, with a ``load()`` of its own.

    Args:
        small: a reduced network, or any network that can be traced.
        file: where to; ``.py``.
        weights: where the weights go, ``.safetensors`` or ``.pt``.  The file looks for them beside itself.  None writes
            none: then ``load`` takes a state dict.
        example: an input or its shape, where the network does not carry it as a reduced one does.
        force: overwrite what is there.

    Returns:
        The path of the file.

    Raises:
        MBSError: a path that is taken, or a step that is neither torch's nor torchvision's; it is named.  Also where
            the file would not give what the network gives on random inputs: nothing is written then.

    """
    path, network = Path(file), unwrapped(small)
    target = _target(path, weights, force)
    gm, shapes, types = _graph(network, example)
    classes, state = _written(gm, shapes, types, type(network).__name__)
    about = _about(type(network).__name__, shapes, plan_in(network))
    require_same(source(classes, about, None, state), state, gm, shapes, types)
    text = source(classes, about, target and target.name, state)
    if target is not None:
        write_atomically(target, lambda to: _write_state(state, to, target.suffix))
    write_text(path, text)
    return path


def _written(
    gm: GraphModule, shapes: Shapes, types: tuple[str, ...], name: str
) -> tuple[list[Class], dict[str, Tensor]]:
    """The classes of the file, and the tensors that belong to it."""
    written, seen = written_graph(gm, shapes, types)
    root, bodies = _regions(written, seen, name)
    classes = classes_of(module_tree(written, root, bodies))
    classes[-1] = replace(classes[-1], ties=_ties(written))
    return classes, _state(written)


def _regions(gm: GraphModule, seen: dict[str, Any], name: str) -> tuple[Region, dict[str, Body]]:
    """The network as regions, and what each of them does; calls of one module that differ dissolve it."""
    chain_of = chains(gm)
    nodes = [node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    result: Any = next(node for node in gm.graph.nodes if node.op == "output").args[0]
    names = {n: _input_name(str(n.target).lstrip("*")) for n in gm.graph.nodes if n.op == "placeholder"}
    listed = _lists(gm)
    dissolved: set[str] = set()
    while True:
        root = grouped(nodes, chain_of, name, dissolved)
        bodies = {"": body_of(root, seen, listed, result, names)}
        different: set[str] = set()
        for region in root.regions():
            if region is not root:
                body = body_of(region, seen, listed)
                if bodies.setdefault(region.path, body) != body:
                    different.add(region.path)
        if not different:
            return root, bodies
        dissolved |= different


def _input_name(name: str) -> str:
    """The name of an input, unless the file means something else by it."""
    return f"{name}_" if name in NAMES else name


def _lists(gm: GraphModule) -> frozenset[str]:
    """Paths whose children are numbered from 0 without a gap."""
    children: dict[str, set[str]] = {}
    for node in gm.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            parts = str(node.target).split(".")
            for i in range(len(parts)):
                children.setdefault(".".join(parts[:i]), set()).add(parts[i])
    return frozenset(path for path, names in children.items() if names == {str(i) for i in range(len(names))})


def _state(gm: GraphModule) -> dict[str, Tensor]:
    """Every tensor that the file declares, by its name there."""
    state: dict[str, Tensor] = {}
    for node in gm.graph.nodes:
        target = str(node.target)
        if node.op == "call_module":
            state |= {f"{target}.{name}": held for name, held in gm.get_submodule(target).state_dict().items()}
        elif node.op == "get_attr":
            held: Any = gm
            for part in target.split("."):
                held = getattr(held, part)
            state[target] = held
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _ties(gm: GraphModule) -> tuple[tuple[str, str], ...]:
    """Parameters that are another one, and that one, as the network refers to them."""
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for node in gm.graph.nodes:
        target = str(node.target)
        held: Any = None if node.op not in ("call_module", "get_attr") else attribute(gm, target)
        inside = held.named_parameters(remove_duplicate=False) if isinstance(held, nn.Module) else (("", held),)
        for name, tensor in inside:
            path = f"{target}.{name}".removesuffix(".")
            if isinstance(tensor, nn.Parameter) and first.setdefault(id(tensor), path) != path:
                ties[path] = first[id(tensor)]
    listed = _lists(gm)
    return tuple((relative("", path, listed), relative("", of, listed)) for path, of in ties.items())


def _write_state(state: dict[str, Tensor], path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
        return
    import torch

    torch.save(state, path)


def _graph(network: nn.Module, example: ExampleLike) -> tuple[GraphModule, Shapes, tuple[str, ...]]:
    """The graph to write, in eval mode where it is traced here, and what goes in."""
    made = plan_in(network)
    if isinstance(network, GraphModule):
        gm = network
    elif made is not None and example is None:
        gm = planned_graph(copied(network).eval(), made)
    else:
        gm = trace(copied(network).eval(), example)
    given = inputs_of(gm, example if isinstance(network, GraphModule) else None)
    return gm, given.shapes, given.types


def _target(path: Path, weights: str | Path | None, force: bool) -> Path | None:
    """Where the weights go; raises `MBSError` for a path that is taken or of the wrong kind."""
    target = None if weights is None else Path(weights)
    if path.suffix != ".py":
        raise MBSError(f"{path}: the exported file is Python, so its name ends in .py")
    if target is not None and target.suffix not in (".safetensors", ".pt"):
        raise MBSError(f"{target}: weights are written as .safetensors or .pt")
    taken = next((p for p in (path, target) if p is not None and p.exists()), None)
    if taken is not None and not force:
        raise MBSError(f"{taken} exists: give another name, or force=True (--force) to overwrite it")
    return target


def _about(name: str, shapes: Shapes, plan: Plan | None) -> str:
    inputs = ", ".join(f"({', '.join(['N', *map(str, shape[1:])])})" for shape in shapes)
    less = "" if plan is None else f", {plan.reduction:.1%} of its parameters removed by macroblock scaling"
    return f"{name}{less}.\n\nWritten by mbs_fx.export_python for evaluation; input {inputs}.\n"
