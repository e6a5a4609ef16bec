"""What is minimised, and what is reported: losses and accuracy of classifiers.

- The loss is cross entropy with the labels, and with ``distill`` also the teacher's softened answers
  (Hinton, Vinyals and Dean, 2015): (1 - a) CE + a T² KL(teacher/T ‖ network/T).  Images without labels have the
  second term alone.
- Accuracy is the share of images whose largest logit is the label's.
- A batch is (images, labels), a class number for each image; or a dict that holds one tensor of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from mbs_fx.errors import MBSError
from mbs_fx.rewriting.carried_plan import plan_in
from mbs_fx.runtime.ranks import Ranks
from mbs_fx.shapes.graph_inputs import noted_inputs
from mbs_fx.training.recipe import Recipe


def loss_of(recipe: Recipe, logits: Tensor, labels: Tensor | None, taught: Tensor | None) -> Tensor:
    """The loss of one batch, in float32, by its labels, by the teacher's logits (N, classes), or by both."""
    logits = logits.float()
    if taught is None:
        assert labels is not None  # `opened` sees to it
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    soft, target = (F.log_softmax(x / recipe.temperature, 1) for x in (logits, taught.float()))
    imitated = F.kl_div(soft, target, reduction="batchmean", log_target=True) * recipe.temperature**2
    if labels is None:
        return imitated
    return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing).lerp(imitated, recipe.distill)


def takes_whole_numbers(model: nn.Module) -> bool:
    """Whether a network was traced or reduced with images of whole numbers, as one is that normalises them itself."""
    made = plan_in(model)
    if made is not None or not isinstance(model, GraphModule):
        return made is not None and bool(made.input_types)
    noted = noted_inputs([node for node in model.graph.nodes if node.op == "placeholder" and not node.args])
    return noted is not None and bool(noted.types)


def without_labels(batch: Any, where: str, whole: bool = False) -> Tensor | None:
    """The images of a batch that holds nothing else; None where it does."""
    parts: Any = [batch] if isinstance(batch, Tensor) else batch.values() if isinstance(batch, Mapping) else batch
    tensors = [part for part in parts if isinstance(part, Tensor)] if isinstance(parts, Iterable) else []
    if len(tensors) != 1:
        return None
    return _checked(tensors[0], where, whole)


def _checked(images: Tensor, where: str, whole: bool) -> Tensor:
    if not images.is_floating_point() and not whole:
        raise MBSError(f"{where}: images are {images.dtype}; give floating-point images, normalised")
    return images


def opened(batch: Any, where: str, whole: bool = False) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch, the labels int64; ``whole``: images may be whole numbers."""
    if not isinstance(batch, list | tuple | Mapping):
        raise MBSError(
            f"{where}: a batch is a {type(batch).__name__}; give (images, labels), or images alone and a teacher"
        )
    parts: Any = _pair(batch, where) if isinstance(batch, Mapping) else batch
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        types = ", ".join(type(part).__name__ for part in parts)
        raise MBSError(f"{where}: a batch holds {types}; give (images, labels), two tensors")
    images, labels = parts
    _checked(images, where, whole)
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise MBSError(
            f"{where}: labels are {labels.dtype} of shape {tuple(labels.shape)} for {len(images)} images; give a "
            "class number for each image"
        )
    return images, labels.long()


def _pair(batch: Mapping[Any, Any], where: str) -> tuple[Tensor, Tensor]:
    """Images and labels of a dict: its one floating-point tensor, and its one tensor of whole numbers with one axis."""
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    images = [tensor for tensor in tensors if tensor.is_floating_point()]
    labels = [tensor for tensor in tensors if not tensor.is_floating_point() and tensor.dim() == 1]
    if len(images) != 1 or len(labels) != 1:
        raise MBSError(
            f"{where}: a batch is a dict with keys {', '.join(map(str, batch))}; give one that holds one tensor of "
            "floating-point images and one of labels, or give (images, labels)"
        )
    return images[0], labels[0]


def check_answer(logits: object, images: int, where: str, whose: str = "network") -> None:
    """Training and accuracy here are for classifiers, whose output is (images, classes)."""
    if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == images:
        return
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise MBSError(
        f"{where}: the {whose}'s output is {shape}; this takes classifiers, whose output is (images, classes). Others "
        "are trained and tested by what trained and tested the original: the small network takes the same inputs "
        "and gives the same outputs"
    )


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """All labels below the number of classes; waits for the device that holds them."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise MBSError(
            f"{where}: label {int(wrong[0])} is outside the {classes} classes that the network tells apart "
            f"(0 to {classes - 1}). Check the data set, or the width of the last layer"
        )


@torch.inference_mode()
def hits(
    net: nn.Module,
    test: Iterable[Any],
    place: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ranks: Ranks,
    whole: bool = False,
) -> tuple[int, int]:
    """Right answers and images, over all processes; batch k is read by rank k mod world."""

    def own() -> tuple[int, int]:
        right = seen = 0
        for number, batch in islice(enumerate(test), ranks.rank, None, ranks.world):
            where = f"test batch {number}"
            images, labels = place(*opened(batch, where, whole))
            logits = net(images)
            check_answer(logits, len(labels), where)
            check_labels(labels, logits.shape[1], where)
            right += int((logits.argmax(1) == labels).sum())
            seen += len(labels)
        return right, seen

    everyone = ranks.together(own)
    return sum(r for r, _ in everyone), sum(s for _, s in everyone)
