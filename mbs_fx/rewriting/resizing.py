"""Layers at their new widths: attributes recounted, tensors sliced by the labels of their axes.

Semantics
- A layer is copied, never changed.  Tensors that are shared in the original are shared in the copy.
- Where an axis belongs to an opaque segment there is no slice to take: the layer starts fresh.
- A fresh start: convolutions as He et al. (normal, fan out), every other layer by its ``reset_parameters``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mbs_fx.channels.labels import Factor
from mbs_fx.channels.records import Layer
from mbs_fx.rewriting.selection import Keep
from mbs_fx.runtime.torch_private import ConvNd
from mbs_fx.runtime.weight_hooks import compute_weights
from mbs_fx.shapes.graph_attributes import shallow_copy

Init = str | Callable[[nn.Module], object]


class Resizer:
    """Copies modules and tensors of one network at the widths of one decision.

    ``fresh`` are the layers that were initialised anew, ``notes`` what a reader of the plan has to know.
    """

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.fresh: list[str] = []
        self.notes: list[str] = []
        self._done: dict[int, Any] = {}

    def tensor(self, tensor: Tensor, axes: tuple[Factor | None, ...]) -> Tensor:
        """A slice of a parameter or buffer; parameters stay parameters."""
        known = self._done.get(id(tensor))
        if known is not None:
            return known
        new = tensor.detach()
        for axis, vector in enumerate(axes):
            if vector is None:
                continue
            indices = self.keep.indices(vector)
            if indices is None:
                new = new.narrow(axis, 0, self.keep.extent(vector))
            elif len(indices) < new.shape[axis]:
                new = new.index_select(axis, torch.from_numpy(indices).to(new.device))
        if new.data_ptr() == tensor.data_ptr() or not new.is_contiguous():
            new = new.clone(memory_format=torch.contiguous_format) if new.dim() != 4 else new.clone()
        if new.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
            new = new.contiguous(memory_format=torch.channels_last)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, requires_grad=tensor.requires_grad)
        self._done[id(tensor)] = new
        return new

    def module(self, path: str, module: nn.Module, layer: Layer | None) -> nn.Module:
        """A copy of a leaf module at its new widths."""
        known = self._done.get(id(module))
        if known is not None:
            return known
        new = shallow_copy(module)
        axes: dict[str, tuple[Factor | None, ...]] = layer.tensors if layer is not None else {}
        tables: tuple[Any, ...] = (new._parameters, new._buffers)
        for held in tables:
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = self.tensor(tensor, axes.get(name) or (None,) * tensor.dim())
        inside: dict[int, Any] = {
            id(tensor): self.tensor(tensor, axes.get(name) or (None,) * tensor.dim())
            for prefix, child in module.named_children()
            for name, tensor in (*child.named_parameters(prefix), *child.named_buffers(prefix))
        }
        for name, child in new._modules.items():
            new._modules[name] = copy.deepcopy(child, inside)
        compute_weights(new)
        if layer is not None:
            for name, template in layer.attributes.items():
                setattr(new, name, self.keep.evaluate(template))
            if self._is_opaque(layer):
                self.fresh.append(path)
                start_fresh(new)
        self._done[id(module)] = new
        return new

    def _is_opaque(self, layer: Layer) -> bool:
        if not self.keep.facts.choices.opaque_cells:
            return False
        vectors = [v for axes in layer.tensors.values() for v in axes if v is not None]
        changed = any(self.keep.extent(v) != v.shape[-1] for v in vectors)
        return changed and any(self.keep.indices(v) is None for v in vectors)


def start_fresh(module: nn.Module) -> None:
    """Initialise a layer as at the start of training."""
    if isinstance(module, ConvNd) and "weight" in module._parameters:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()


def initialise(root: nn.Module, init: Init) -> None:
    """Apply ``init="fresh"`` or a callable to every layer; "inherit" leaves the slices as they are."""
    if init == "inherit":
        return
    for module in root.modules():
        if callable(init):
            init(module)
        else:
            start_fresh(module)
