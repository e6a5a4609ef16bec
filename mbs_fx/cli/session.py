"""What the commands have in common: a network by name, its graph, its analysis, its density.

A session remembers the Python that does the same, line by line, for ``--show-code``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbs_fx.errors import MBSError
from mbs_fx.runtime.devices import usable

if TYPE_CHECKING:
    from torch import Tensor

    import mbs_fx
    from mbs_fx.folder import ImageFolder, Preparation

SHIPPED = "sample/resnet20"


class Session:
    """One network, traced and analyzed."""

    def __init__(
        self,
        model: str,
        weights: str | None,
        size: int | None,
        opaque: Iterable[str] | None = None,
        strict: bool = False,
    ) -> None:
        import mbs_fx
        from mbs_fx.models import resolve

        self.spec = model
        self.source = resolve(model, weights)
        self.preparation = replace(self.source.preparation, size=size or self.source.preparation.size)
        self.shape = (1, 3, self.preparation.size, self.preparation.size)
        self.code = ["import mbs_fx", "from mbs_fx.models import resolve", ""]
        self.say("source", f"resolve({_text(model, weights=weights)})")
        self.gm = mbs_fx.trace(self.source.model, self.shape)
        self.say("gm", f"mbs_fx.trace(source.model, {self.shape})")
        options = {"opaque": tuple(opaque or ())} if opaque else {}
        self.analysis = mbs_fx.analyze(self.gm, self.shape, strict=strict, **options)
        self.say("analysis", f"mbs_fx.analyze(gm, {self.shape}{_more(strict=strict or None, **options)})")

    def say(self, name: str, call: str) -> None:
        """Remember ``name = call``."""
        self.code.append(f"{name} = {call}" if name else call)

    def measure(
        self, images: Path | None, file: Path | None, z: float | None, device: str | None, **reading: Any
    ) -> mbs_fx.Density | None:
        """Densities from a file or from images; None where neither was given."""
        import mbs_fx

        if images is not None and file is not None:
            raise MBSError("give --images or --density, not both")
        if file is not None:
            return self.load(file)
        seen = self._images(images)
        if seen is None:
            self.say("density", "None")
            return None
        where, at = usable(device), 1.0 if z is None else z
        self.say(
            "density", f"mbs_fx.measure(gm, images, analysis=analysis, z={at}, device={str(where)!r}{_more(**reading)})"
        )
        return mbs_fx.measure(self.gm, seen, analysis=self.analysis, z=at, device=where, **reading)

    def load(self, file: Path | None) -> mbs_fx.Density | None:
        """Densities from a file, if one was named."""
        import mbs_fx

        if file is None:
            return None
        self.say("density", f"mbs_fx.Density.load({str(file)!r})")
        return mbs_fx.Density.load(file)

    def _images(self, images: Path | None) -> ImageFolder | Tensor | None:
        from mbs_fx import sample
        from mbs_fx.folder import folder

        if images is not None:
            prepared = _made(self.preparation)
            self.code[2:2] = ["from mbs_fx.folder import Preparation, folder"]
            self.say("images", f"folder({str(images)!r}, {prepared})")
            return folder(images, self.preparation)
        if self.spec != SHIPPED:
            return None
        shipped = sample.images()
        if shipped.shape[-1] != self.preparation.size:
            raise MBSError(
                f"the shipped images are 32 x 32, not {self.preparation.size}: name others with --images DIR"
            )
        self.say("images", "mbs_fx.sample.images()")
        self.code[1:1] = ["import mbs_fx.sample"]
        return shipped

    def plan(self, density: mbs_fx.Density | None, planning: dict[str, Any], device: str | None = None) -> mbs_fx.Plan:
        """A plan by what the command line says."""
        import mbs_fx

        timed = ""
        latency = None
        if "max_latency_ms" in planning:
            where = usable(device)
            latency = mbs_fx.latency_of(self.gm, device=where)
            timed = f", latency=mbs_fx.latency_of(gm, device={str(where)!r})"
        self.say("plan", f"mbs_fx.plan(analysis, density{_more(**planning)}{timed})")
        return mbs_fx.plan(self.analysis, density, latency=latency, **planning)

    def tell(self, text: str, document: Any, as_json: bool, show_code: bool) -> None:
        """Print a result as text or as JSON, or the Python that makes it."""
        if show_code:
            print("\n".join(self.code))
        elif as_json:
            print(document if isinstance(document, str) else json.dumps(document))
        else:
            print(text)


def needed(weights: str | None, model: str, images: Path | None, density: Path | None) -> str | None:
    """The weights to load: those that were named; none where nothing is measured."""
    measured = density is None and (images is not None or model == SHIPPED)
    return weights if measured or weights is not None else "none"


def applied(plan: Path, size: int | None) -> tuple[mbs_fx.Plan, int]:
    """A plan from a file, and the size that it was made for."""
    import mbs_fx

    made = mbs_fx.Plan.from_json(plan)
    own = made.input_shapes[0][-1]
    if size not in (None, own):
        raise MBSError(f"{plan} was made for --size {own}: leave out --size {size}, or plan anew")
    return made, own


def _made(preparation: Preparation) -> str:
    return f"Preparation({preparation.size}, {preparation.mean}, {preparation.std})"


def _text(first: str, **named: Any) -> str:
    return repr(first) + _more(**named)


def _more(**named: Any) -> str:
    """Keyword arguments as they are written after others; None is left out."""
    return "".join(f", {name}={value!r}" for name, value in named.items() if value is not None)
