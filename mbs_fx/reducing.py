"""The whole of macroblock scaling in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader

from mbs_fx.analyzing import Example, analyze, input_shapes
from mbs_fx.density import measure
from mbs_fx.density_result import Density
from mbs_fx.errors import MBSError
from mbs_fx.planning import plan
from mbs_fx.resizing import Init
from mbs_fx.rewriting import rewrite
from mbs_fx.selection import Criterion
from mbs_fx.tracing import trace


def reduce(
    model: nn.Module,
    images: Any = None,
    *,
    example: Example = None,
    z: float = 1.0,
    betas: Mapping[Any, float] | None = None,
    widths: Mapping[str, int] | None = None,
    density: Density | None = None,
    init: Init = "inherit",
    criterion: Criterion = "l1",
    opaque: Iterable[str | type[nn.Module]] = (),
    **measuring: Any,
) -> GraphModule:
    """Trace, analyze, measure, plan and rewrite: a new, trainable, smaller network.

    Args:
        model: a traced graph or an ``nn.Module``, in eval mode where images are given; not changed.
        images: any iterable of batches, a ``DataLoader``, or a map-style dataset.  None takes densities as equal
            (p = 1); then the input's shape must be known from ``example`` or the graph.
        example: an input tensor or its shape.
        z: the threshold in multiples of the input size.
        betas: as for `plan`, in place of Algorithm 1.
        widths: as for `plan`.
        density: an earlier measurement of this graph.
        init: as for `rewrite`.
        criterion: as for `rewrite`.
        opaque: as for `analyze`.
        measuring: further arguments of `measure`.

    Returns:
        The small network; ``meta["mbs"]`` is its `Plan`, which prints as the paper's table.

    """
    opaque = tuple(opaque)
    if images is not None and density is not None:
        raise MBSError("reduce: give images or a density, not both")
    if images is not None and example is None:
        images, example = _peek(images)
    gm = model if isinstance(model, GraphModule) else trace(model, example)
    analysis = analyze(gm, input_shapes(gm, example), opaque=opaque)
    if images is not None and betas is None:
        density = measure(gm, images, analysis=analysis, **measuring)
    return rewrite(
        gm,
        plan(analysis, density, z, betas=betas, widths=widths),
        init=init,
        criterion=criterion,
        opaque=opaque,
    )


def _peek(images: Any) -> tuple[Any, Tensor]:
    """The images, unread, and the first of them as an example of the input."""
    if isinstance(images, Iterator):
        first = next(images, None)
        images = chain([first], images)
    elif isinstance(images, DataLoader) or not hasattr(images, "__getitem__"):
        first = next(iter(images), None)
    else:
        first = images[:2] if isinstance(images, Tensor) else images[0] if len(images) else None
    tensor = _image_in(first)
    if tensor is None:
        raise MBSError("images: nothing in there is a batch of images (a floating point tensor N x C x H x W)")
    return images, tensor if tensor.dim() > 3 else tensor.unsqueeze(0)


def _image_in(item: Any) -> Tensor | None:
    """The first floating-point tensor in a tensor, a pair, or a dict."""
    if isinstance(item, Tensor):
        return item[:2] if item.is_floating_point() and item.dim() > 2 else None
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
    return next((found for part in parts if (found := _image_in(part)) is not None), None)
