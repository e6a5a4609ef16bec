"""What must hold of every reduced network; used by `coverage.py` and by the tests.

- planned widths are the widths that the layers have, counted parameters are those that the plan predicts;
- at β = 1 the output is the original's, bit for bit;
- zeroing the removed channels in the original (rows, columns, statistics) gives the reduced network's output;
- forward in eval and in train mode, and backward, run;
- plan and weights, read back beside the original code, give the same network.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import mbs_fx
from mbs_fx.macroblocks.analyze import facts
from mbs_fx.planning.allocation import from_widths
from mbs_fx.rewriting.selection import restore
from mbs_fx.shapes.graph_inputs import arguments_of


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested outputs."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in tensors_in(v)]
    return []


def difference(a: Any, b: Any) -> float:
    """Largest difference over all outputs, relative to the largest magnitude."""
    pairs = list(zip(tensors_in(a), tensors_in(b), strict=True))
    floating = [(x, y) for x, y in pairs if x.is_floating_point()]
    return max(float((x - y).abs().max() / x.abs().max().clamp_min(1e-12)) for x, y in floating)


def widths_hold(small: nn.Module, plan: mbs_fx.Plan) -> str:
    """The first layer whose width is not the planned one; empty where all are."""
    for path, width in plan.widths.items():
        parent, _, name = path.rpartition(".")
        layer: Any = getattr(small.get_submodule(parent), name, None)
        if not isinstance(layer, nn.Module):
            continue
        has = getattr(layer, "out_channels", getattr(layer, "out_features", None))
        if has != width:
            return f"{path} has {has} channels, planned {width}"
    return ""


def zeroed(gm: GraphModule, plan: mbs_fx.Plan) -> GraphModule:
    """The original with everything that belongs to removed channels set to zero."""
    found = facts(gm, plan.input_shapes, plan.opaque, plan.input_types, plan.input_names)
    keep = restore(found, from_widths(found.analysis, plan.widths), plan.channels)
    big = copy.deepcopy(gm)
    rows = {f"{p}.{n}": axes for p, layer in found.flow.layers.items() for n, axes in layer.tensors.items()}
    with torch.no_grad():
        for path, axes in {**rows, **found.flow.parameters}.items():
            parent, _, name = path.rpartition(".")
            tensor = getattr(big.get_submodule(parent), name)
            for axis, labels in enumerate(axes):
                # Weight norm divides by the norm of a row, and the scale of a row is zero.
                if name in ("original1", "weight_v") and axis == 0:
                    continue
                if labels is not None and "running" not in name:
                    part = labels[0] if labels.ndim == 2 else labels
                    gone = torch.from_numpy(np.flatnonzero(~keep.stays[part]))
                    tensor.index_fill_(axis, gone, 0)
    return big


def is_exact(gm: GraphModule, plan: mbs_fx.Plan) -> bool:
    """Whether zeroing must agree: nothing opaque, no statistics over reduced channels."""
    found = facts(gm, plan.input_shapes, plan.opaque, plan.input_types, plan.input_names)
    return not found.choices.opaque.any() and not found.flow.notes


def random_inputs(gm: nn.Module, plan: mbs_fx.Plan, dtype: torch.dtype) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in plan.input_shapes]
    return arguments_of(plan.input_names, values)


def reloads(build: Any, small: GraphModule, inputs: tuple[Tensor, ...], forward: Any = None) -> bool:
    """Plan and weights on disk, beside fresh original code, give the same outputs; ``forward`` runs the original."""
    with tempfile.TemporaryDirectory() as folder:
        plan, weights = Path(folder, "plan.json"), Path(folder, "weights.safetensors")
        mbs_fx.save(small, plan, weights)
        again = mbs_fx.load(build(), plan, weights)
    again = again if forward is None else mbs_fx.with_forward(again, forward)
    with torch.no_grad():
        return difference(small.eval()(*inputs), again.eval()(*inputs)) == 0


def trains(small: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """One forward and backward pass in training mode gives finite gradients."""
    small.train()
    outputs = [t for t in tensors_in(small(*inputs)) if t.is_floating_point() and t.requires_grad]
    sum(t.square().mean() for t in outputs).backward()  # type: ignore[union-attr]
    small.eval()
    return any(p.grad is not None and bool(p.grad.isfinite().all()) for p in small.parameters())
