"""Which layers are refitted, and what stands in the way of the others.

Semantics
- A layer is a weight; calls that share it (a layer applied twice, two layers that hold one weight) are one layer.
- A layer can be refitted where its output channels are followed through the rewrite.  Its input channels need not be.
- Left alone: layers in opaque segments, weights that are computed or are no parameter, weights that the graph reads
  for something else as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from mbs_fx.reconstruction.linear_forms import LinearForm, form_of
from mbs_fx.rewriting.selection import Keep
from mbs_fx.shapes.graph_attributes import attribute

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

OPAQUE = "in an opaque segment, where channels are not followed"
COMPUTED = "its weight is computed"


@dataclass(frozen=True)
class Call:
    """One application of a layer: channels of the original in its output, and in its input where they are followed.

    ``lost``: the input has lost channels, or may have.
    """

    node: str
    form: LinearForm
    out: NDArray[np.int64]
    inp: NDArray[np.int64] | None
    lost: bool


@dataclass(frozen=True)
class Layer:
    """A weight of the small network, its bias, and the calls that share it, in order.

    ``norm``: the BatchNorm that alone reads the layer; where there is no bias its mean takes the shift.
    """

    path: str
    weight: Tensor
    bias: Tensor | None
    calls: tuple[Call, ...]
    norm: Any = None

    @property
    def free_bias(self) -> bool:
        """Whether a constant can be added to the outputs."""
        return self.bias is not None or self.norm is not None


@dataclass
class _Sharing:
    """The calls of one weight."""

    weight: Tensor
    calls: list[Call] = field(default_factory=list[Call])
    biases: list[Tensor | None] = field(default_factory=list[Tensor | None])
    nodes: list[Node] = field(default_factory=list[Node])
    paths: list[str] = field(default_factory=list[str])


def find_layers(keep: Keep, small: GraphModule) -> tuple[list[Layer], dict[str, str]]:
    """The layers to refit in the order of their first calls, and the reasons for the others by path."""
    flow = keep.facts.flow
    sharing: dict[int, _Sharing] = {}
    reasons: dict[str, str] = {}
    small_nodes = {node.name: node for node in small.graph.nodes}
    read = _read_otherwise(small)
    for original in flow.gm.graph.nodes:
        mixer = flow.mixers.get(original.name)
        if mixer is None:
            continue
        node, path = small_nodes[original.name], mixer.path or original.name
        form = form_of(flow.gm, original, flow.shapes)
        weight, bias, why = _tensors(small, node, form)
        out, inp = keep.indices(mixer.out), keep.indices(mixer.inp)
        why = why or (OPAQUE if out is None else "")
        if not why and id(weight) in read:
            why = "the graph reads its weight for something else, too"
        if why or form is None or weight is None or out is None:
            reasons[path] = why
            continue
        held = sharing.setdefault(id(weight), _Sharing(weight))
        lost = inp is None or len(inp) < len(mixer.inp)
        held.calls.append(Call(original.name, _at_width(form, node, weight), out, inp, lost))
        held.biases.append(bias)
        held.nodes.append(node)
        held.paths.append(path)
    return [_layer(small, held) for held in sharing.values()], reasons


def _at_width(form: LinearForm, node: Node, weight: Tensor) -> LinearForm:
    """The form at the small network's widths: a call's groups follow its channels."""
    if form.spec is None:
        return form
    inputs = form.spec.weight[0] if form.spec.transposed else form.spec.weight[1] * form.spec.groups
    depthwise = 1 < form.spec.groups == inputs
    groups = weight.shape[0] // max(1, form.spec.weight[0] // form.spec.groups) if depthwise else form.spec.groups
    return replace(form, spec=replace(form.spec, weight=tuple(weight.shape), groups=groups))


def _layer(small: GraphModule, held: _Sharing) -> Layer:
    bias = held.biases[0]
    alone = len({id(each) for each in held.biases}) == 1
    norm = norm_behind(small, held.nodes[0]) if len(held.nodes) == 1 and bias is None else None
    return Layer(held.paths[0], held.weight, bias if alone else None, tuple(held.calls), norm)


def norm_behind(gm: GraphModule, node: Node) -> Any:
    """The BatchNorm that alone reads a node and reads nothing else, None where there is none."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user.op != "call_module":
        return None
    module = gm.get_submodule(str(user.target))
    calls = [n for n in gm.graph.nodes if n.op == "call_module" and gm.get_submodule(str(n.target)) is module]
    return module if isinstance(module, NORMS) and module.running_mean is not None and len(calls) == 1 else None


def is_plain_norm(module: Any) -> bool:
    """Whether a module is BatchNorm in eval mode and nothing else, as those with an activation in them are not."""
    if not isinstance(module, NORMS) or module.running_mean is None or module.running_var is None:
        return False
    if type(module) in NORMS:
        return True
    spread = 4 * module.running_var.sqrt()
    shape = (2, -1, *[1] * (1 + NORMS.index(next(kind for kind in NORMS if isinstance(module, kind)))))
    value = torch.stack([module.running_mean - spread, module.running_mean + spread]).reshape(shape)
    plain = (module.running_mean, module.running_var, module.weight, module.bias, False, 0.0, module.eps)
    with torch.no_grad():
        return torch.allclose(copy.deepcopy(module).eval()(value), F.batch_norm(value, *plain), rtol=1e-4, atol=1e-4)


def argument(node: Node, position: int, name: str) -> Any:
    """An argument by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _tensors(small: GraphModule, node: Node, form: LinearForm | None) -> tuple[Tensor | None, Tensor | None, str]:
    """Weight and bias of a call, or why there are none to refit."""
    if form is None:
        return None, None, "no convolution or linear layer of torch"
    if node.op == "call_module":
        module: Any = small.get_submodule(str(node.target))
        if is_parametrized(module) or module._forward_pre_hooks:
            return None, None, COMPUTED
        return module.weight, module.bias, ""
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    held = attribute(small, str(weight.target)) if isinstance(weight, Node) and weight.op == "get_attr" else None
    if held is None or (isinstance(bias, Node) and bias.op != "get_attr"):
        return None, None, COMPUTED
    if not isinstance(held, nn.Parameter):
        return None, None, "its weight is no parameter"
    return held, attribute(small, str(bias.target)) if isinstance(bias, Node) else None, ""


def _read_otherwise(small: GraphModule) -> set[int]:
    """Tensors that the graph reads for something else than the weight of a convolution or linear layer."""
    return {
        id(attribute(small, str(node.target)))
        for node in small.graph.nodes
        if node.op == "get_attr" and not _only_weight(node, node.users)
    }


def _only_weight(node: Node, users: Iterable[Node]) -> bool:
    names = {user: str(getattr(user.target, "__name__", "")) for user in users}
    return all(argument(u, 1, "weight") is node and (n.startswith("conv") or n == "linear") for u, n in names.items())
