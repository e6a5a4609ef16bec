"""What is minimised, and what is reported: losses and accuracy of classifiers.

- The loss is cross entropy with the labels, and with ``distill`` also the teacher's softened answers
  (Hinton, Vinyals and Dean, 2015): (1 - a) CE + a T² KL(teacher/T ‖ network/T).
- Accuracy is the share of images whose largest logit is the label's.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mbs_fx.errors import MBSError
from mbs_fx.measuring.ranks import Ranks
from mbs_fx.training.recipe import Recipe


def loss_of(recipe: Recipe, logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
    """The loss of one batch, in float32; ``taught`` holds the teacher's logits (N, classes)."""
    logits = logits.float()
    labelled = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if taught is None:
        return labelled
    soft, target = (F.log_softmax(x / recipe.temperature, 1) for x in (logits, taught.float()))
    imitated = F.kl_div(soft, target, reduction="batchmean", log_target=True) * recipe.temperature**2
    return labelled.lerp(imitated, recipe.distill)


def check_answer(logits: object, labels: Tensor, where: str) -> None:
    """Training here is for classifiers: logits (N, classes) and labels below the number of classes."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MBSError(
            f"{where}: the network's output is {shape}; retrain takes classifiers, whose output is (images, "
            "classes). For others write the loop that the original was trained with: the small network takes "
            "the same inputs and gives the same outputs"
        )
    classes = logits.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise MBSError(
            f"{where}: label {int(wrong[0])} is outside the {classes} classes that the network tells apart "
            f"(0 to {classes - 1}). Check the data set, or the width of the last layer"
        )


@torch.inference_mode()
def hits(
    net: nn.Module,
    test: Iterable[tuple[Tensor, Tensor]],
    place: object,
    ranks: Ranks,
) -> tuple[int, int]:
    """Right answers and images, over all processes; batch k is read by rank k mod world."""
    right = seen = 0
    for batch, (images, labels) in enumerate(islice(test, ranks.rank, None, ranks.world)):
        images, labels = place(images, labels)  # type: ignore[operator]
        logits = net(images)
        check_answer(logits, labels, f"test batch {batch}")
        right += int((logits.argmax(1) == labels).sum())
        seen += len(labels)
    everyone = ranks.exchange((right, seen))
    return sum(r for r, _ in everyone), sum(s for _, s in everyone)
