"""Images with what is known of them, and the loss of a network on them.

- A batch is a pair (images, targets), or a dict; of a dict the targets are the dict.
- Without a ``loss`` the network is a classifier and the targets are a class number for each image.
- A loss gives a mean over the batch, as torch's do, or a number for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from mbs_fx.density.batches import Signature
from mbs_fx.density.images import Request
from mbs_fx.errors import MBSError
from mbs_fx.shapes.graph_inputs import Name, arguments_of
from mbs_fx.shapes.shapes import nested

Loss = Callable[[Any, Any], Tensor]

WANTED = 'criterion "taylor" needs batches (images, labels)'


def labelled_batches(
    gm: GraphModule,
    images: Any,
    signature: Signature,
    names: Sequence[Name],
    request: Request,
    device: torch.device,
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """A graph's arguments and the targets of batches, on a device, until there are enough images."""
    like = next((tensor for tensor in (*gm.parameters(), *gm.buffers()) if tensor.is_floating_point()), torch.empty(0))
    seen = 0
    for number, item in enumerate(_loaded(images, request)):
        place = f"batch {number}"
        if signature.is_single(item):
            raise MBSError(f"{place} is a single image: {WANTED}, or a data set of (image, label)")
        inputs = signature.inputs(item, place)
        target = item if isinstance(item, Mapping) else _second(item, place)
        moved = [t.to(device, like.dtype if t.is_floating_point() else t.dtype, copy=True) for t in inputs]
        yield arguments_of(names, moved), nested(target, lambda tensor: tensor.to(device))
        seen += len(inputs[0])
        if request.limit is not None and seen >= request.limit:
            return
    if not seen:
        raise MBSError(f"there are no images: {WANTED}")


def _second(item: Any, place: str) -> Any:
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise MBSError(f"{place} holds no labels: {WANTED}")
    return item[1]


def _loaded(images: Any, request: Request) -> Any:
    """Batches: of a data set in random order, of anything else as they come."""
    batches = isinstance(images, DataLoader | IterableDataset | list | tuple | Tensor)
    if batches or not hasattr(images, "__getitem__"):
        return images
    order = torch.Generator().manual_seed(request.seed)
    loader: Any = DataLoader(images, request.batch_size, True, num_workers=request.workers, generator=order)
    return loader


def per_image(loss: Loss | None, output: Any, target: Any, arguments: Sequence[Any], place: str) -> Tensor:
    """The loss of every image, or as many equal parts of the batch's."""
    images = len(next(value for value in arguments if isinstance(value, Tensor)))
    found: Any = _cross_entropy(output, target, place) if loss is None else loss(output, target)
    if not isinstance(found, Tensor) or found.numel() not in (1, images):
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise MBSError(f"{place}: the loss is a {kind}: give one number for the batch, or one for each image")
    if not bool(torch.isfinite(found).all()):
        raise MBSError(f"{place}: the loss is not finite")
    return found.reshape(-1).expand(images) if found.numel() == 1 else found.reshape(-1)


def _cross_entropy(output: Any, target: Any, place: str) -> Tensor:
    if isinstance(target, Mapping):
        whole = [t for t in target.values() if isinstance(t, Tensor) and t.dim() == 1 and not t.is_floating_point()]
        target = whole[0] if len(whole) == 1 else None
    logits = isinstance(output, Tensor) and output.dim() == 2
    if not logits or not isinstance(target, Tensor) or target.shape != output.shape[:1] or target.is_floating_point():
        raise MBSError(
            f"{place}: without a loss the network gives (images, classes) and the targets are a class number for each "
            "image; for anything else give loss=, a function of outputs and targets"
        )
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < output.shape[1]:
        raise MBSError(f"{place}: labels are outside the {output.shape[1]} classes of the network")
    return F.cross_entropy(output, target.long(), reduction="none")
