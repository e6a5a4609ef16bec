"""``--eval``: labelled images on which networks are tested, before and after.

- A folder per class, or a CSV of file names and labels; which output a class is, stands in `mbs_fx.folder`.
- The shipped network is tested on the shipped test images where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbs_fx.cli.session import SHIPPED, made_by, more
from mbs_fx.errors import MBSError

if TYPE_CHECKING:
    from torch import nn

    from mbs_fx.cli.session import Session
    from mbs_fx.folder import LabelledImages, Preparation
    from mbs_fx.results.plan import Plan


@dataclass(frozen=True)
class Test:
    """Labelled images, what they are in words, and the Python that binds them to ``test``."""

    data: Any
    words: str
    code: tuple[str, ...]


def labelled_images(
    source: Path, preparation: Preparation, classes: Path | None, model: nn.Module, augment: bool = False
) -> tuple[LabelledImages, str]:
    """Labelled images for a network, and the Python that makes them."""
    from mbs_fx.folder import labelled

    given: dict[str, Any] = {"augment": augment or None, "classes": None if classes is None else str(classes)}
    outputs = _outputs(model, preparation.size)
    data = labelled(source, preparation, augment=augment, classes=classes, outputs=outputs)
    return data, f"labelled({str(source)!r}, {made_by(preparation)}{more(**given, outputs=outputs)})"


def requested(session: Session, images: Path | None, classes: Path | None) -> Test | None:
    """What ``--eval`` names; None where there is nothing to test on."""
    if images is None and classes is not None:
        raise MBSError(f"--classes {classes}: no effect without --eval")
    if images is not None:
        data, call = labelled_images(images, session.preparation, classes, session.source.model)
        words = f"top-1 on {len(data):,} images of {images}, classes {data.order}"
        return Test(data, words, ("from mbs_fx.folder import Preparation, labelled", f"test = {call}"))
    if session.spec != SHIPPED or session.preparation.size != 32:
        return None
    from torch.utils.data import TensorDataset

    from mbs_fx import sample

    data = TensorDataset(sample.test_images(), sample.labels())
    code = ("from mbs_fx import sample", "from torch.utils.data import TensorDataset")
    words = f"top-1 on {len(data)} test images of CIFAR-10 that come with mbs-fx; those measured are training images"
    return Test(data, words, (*code, "test = TensorDataset(sample.test_images(), sample.labels())"))


def evaluate(session: Session, test: Test, networks: Mapping[str, nn.Module]) -> None:
    """Test the original and ``networks``, and let the plan of the last one say what came out."""
    import mbs_fx
    from mbs_fx.rewriting.carried_plan import carry_accuracy
    from mbs_fx.runtime.devices import usable

    device = str(usable(session.device))
    every = {"original": session.source.model, **networks}
    carry_accuracy(
        list(networks.values())[-1],
        {name: mbs_fx.accuracy(net, test.data, device=device) for name, net in every.items()},
    )
    held = dict(zip(networks, ("inherited", "small")[-len(networks) :], strict=True))
    shown = ", ".join(f"{name!r}: {variable}" for name, variable in {"original": "source.model", **held}.items())
    for line in (
        "",
        "from dataclasses import replace",
        *test.code,
        f"networks = {{{shown}}}",
        f"accuracy = {{name: mbs_fx.accuracy(net, test, device={device!r}) for name, net in networks.items()}}",
        'small.meta["mbs"] = replace(mbs_fx.plan_of(small), accuracy=accuracy)',
    ):
        session.say("", line)


class PlanTest:
    """For `mbs_fx.sweep`: the accuracy of a plan's network, reconstructed where images were read."""

    def __init__(self, session: Session, test: Test) -> None:
        from mbs_fx.runtime.devices import usable

        self.own, self.test, self.device = copy(session), test, str(usable(session.device))

    def __call__(self, plan: Plan) -> float:
        import mbs_fx

        self.own.code = []
        networks = self.own.reduced(plan, "inherit", None, True, None)
        return mbs_fx.accuracy(list(networks.values())[-1], self.test.data, device=self.device)

    def code(self) -> tuple[str, ...]:
        """The Python that binds it to ``tested``, once it was called."""
        body = [*self.own.code, f"return mbs_fx.accuracy(small, test, device={self.device!r})"]
        return ("", *self.test.code, "", "def tested(plan):", *(f"    {line}" for line in body), "")


def _outputs(model: nn.Module, size: int) -> int:
    """How many classes a network tells apart."""
    import torch

    with torch.inference_mode():
        given: Any = model(torch.zeros(1, 3, size, size))
    if isinstance(given, torch.Tensor) and given.dim() == 2:
        return given.shape[1]
    shape = tuple(given.shape) if isinstance(given, torch.Tensor) else f"a {type(given).__name__}"
    raise MBSError(
        f"labelled images are for classifiers, whose output is (images, classes), and that of "
        f"{type(model).__name__} is {shape}: test it as the original was tested"
    )
