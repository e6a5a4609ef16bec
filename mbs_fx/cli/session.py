"""What the commands have in common: a network by name, its graph, its analysis, its density, and files.

- A session remembers the Python that does the same, line by line, for ``--show-code``.
- Where a command writes is checked before it works.
- Ctrl-C while images are read writes what was measured so far to a file of another name, and exits with 130.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mbs_fx.errors import MBSError
from mbs_fx.runtime.devices import usable

if TYPE_CHECKING:
    from torch import Tensor, nn

    import mbs_fx
    from mbs_fx.folder import ImageFolder, Preparation

SHIPPED = "sample/resnet20"
INTERRUPTED = 130
FORMATS = {"mbs_fx.plan": "a plan: use --plan", "mbs_fx.density": "a density: use --density"}
"""What a file holds, and the option that takes it."""


class Session:
    """One network, traced and analyzed."""

    def __init__(
        self,
        model: str,
        weights: str | None,
        size: int | None,
        opaque: Iterable[str] | None = None,
        strict: bool = False,
        device: str | None = None,
    ) -> None:
        import mbs_fx
        from mbs_fx.models import resolve

        self.spec, self.device = model, device
        self.source = resolve(model, weights)
        self.preparation = replace(self.source.preparation, size=size or self.source.preparation.size)
        self.shape = (1, 3, self.preparation.size, self.preparation.size)
        self.seen: ImageFolder | Tensor | None = None
        self.code = ["import mbs_fx", "from mbs_fx.models import resolve", ""]
        self.say("source", f"resolve({written(model, weights=weights)})")
        self.gm = mbs_fx.trace(self.source.model, self.shape)
        self.say("gm", f"mbs_fx.trace(source.model, {self.shape})")
        options = {"opaque": tuple(opaque or ())} if opaque else {}
        self.analysis = mbs_fx.analyze(self.gm, self.shape, strict=strict, **options)
        self.say("analysis", f"mbs_fx.analyze(gm, {self.shape}{more(strict=strict or None, **options)})")

    def say(self, name: str, call: str) -> None:
        """Remember ``name = call``."""
        self.code.append(f"{name} = {call}" if name else call)

    def measure(
        self,
        images: Path | None,
        file: Path | None,
        z: float | Sequence[float] | None,
        beside: Path,
        on_bad_image: Any = None,
        **reading: Any,
    ) -> mbs_fx.Density | None:
        """Densities from a file or from images; None where neither was given.

        ``reading`` are arguments of `mbs_fx.measure` that were given, or None.  What was measured before Ctrl-C goes
        to ``beside``.
        """
        import mbs_fx

        if file is not None:
            return self.load(file)
        self.seen = seen = self._images(images, on_bad_image)
        if seen is None:
            self.say("density", "None")
            return None
        where = usable(self.device)
        said = {name: value for name, value in reading.items() if value is not None}
        reading = {"z": 1.0 if z is None else z, "device": str(where), "batch_size": 16} | said
        self.say("density", f"mbs_fx.measure(gm, images, analysis=analysis{more(**reading)})")
        density = mbs_fx.measure(self.gm, seen, analysis=self.analysis, **reading)
        if density.partial:
            density.save(beside)
            print(
                f"mbs-fx: interrupted after {density.images} images. Wrote what they gave to {beside} (for --density); "
                "no other file was touched",
                file=sys.stderr,
            )
            raise typer.Exit(INTERRUPTED)
        return density

    def load(self, file: Path | None) -> mbs_fx.Density | None:
        """Densities from a file, if one was named."""
        import mbs_fx

        if file is None:
            return None
        expect(file, "mbs_fx.density")
        self.say("density", f"mbs_fx.Density.load({str(file)!r})")
        return mbs_fx.Density.load(file)

    def _images(self, images: Path | None, on_bad_image: Any) -> ImageFolder | Tensor | None:
        from mbs_fx import sample
        from mbs_fx.folder import folder

        if images is not None:
            prepared, bad = made_by(self.preparation), on_bad_image or "raise"
            self.code[2:2] = ["from mbs_fx.folder import Preparation, folder"]
            self.say("images", f"folder({str(images)!r}, {prepared}{more(on_bad_image=on_bad_image)})")
            return folder(images, self.preparation, bad)
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

    def plan(self, density: mbs_fx.Density | None, planning: dict[str, Any]) -> mbs_fx.Plan:
        """A plan by what the command line says."""
        import mbs_fx

        timed = ""
        latency = None
        planning = self.rounded(planning)
        if "max_latency_ms" in planning:
            where = usable(self.device)
            latency = mbs_fx.latency_of(self.gm, device=where)
            timed = f", latency=mbs_fx.latency_of(gm, device={str(where)!r})"
        self.say("plan", f"mbs_fx.plan(analysis, density{more(**planning)}{timed})")
        return mbs_fx.plan(self.analysis, density, latency=latency, **planning)

    def rounded(self, planning: dict[str, Any]) -> dict[str, Any]:
        """With the number that ``round_to="auto"`` is on the device."""
        if planning.get("round_to") != "auto":
            return planning
        from mbs_fx.runtime.devices import block
        from mbs_fx.tracing.example import place_and_dtype

        return planning | {"round_to": block(usable(self.device), place_and_dtype(self.gm)[1])}

    def reduced(
        self, made: mbs_fx.Plan, init: str, criterion: str | None, reconstruct: bool, workers: int | None
    ) -> dict[str, nn.Module]:
        """The network of a plan by what its weights are, the last one that asked for.

        Where images were read and weights are inherited, it is reconstructed from them.
        """
        import mbs_fx
        from mbs_fx.rewriting.selection import BY_IMAGES

        refitted = reconstruct and self.seen is not None and init == "inherit"
        given: dict[str, Any] = {"device": str(usable(self.device)), **({"workers": workers} if workers else {})}
        on_images = self.seen is not None and init == "inherit" and criterion in BY_IMAGES
        if on_images or (refitted and criterion is None):
            how: dict[str, Any] = {**given, **({"criterion": criterion} if criterion else {})}
            made = mbs_fx.choose_channels(self.gm, made, self.seen, **how)
            self.say("plan", f"mbs_fx.choose_channels(gm, plan, images{more(**how)})")
        criterion = "l1" if on_images or criterion is None else criterion
        small = mbs_fx.rewrite(self.source.model, made, init=init, criterion=criterion)
        rewrite = f"mbs_fx.rewrite(source.model, plan, init={init!r}, criterion={criterion!r})"
        self.say("inherited" if refitted else "small", rewrite)
        if not refitted:
            return {"inherited" if init == "inherit" else "fresh": small}
        self.say("small", f"mbs_fx.reconstruct(inherited, gm, images{more(**given)})")
        return {"inherited": small, "reconstructed": mbs_fx.reconstruct(small, self.gm, self.seen, **given)}

    def tell(self, text: str, document: Any, as_json: bool, show_code: bool) -> None:
        """Print a result as text or as JSON, or the Python that makes it."""
        if show_code:
            print("\n".join(self.code))
        elif as_json:
            print(document if isinstance(document, str) else json.dumps(document))
        else:
            print(text)


def check_reading(
    model: str, images: Path | None, density: Path | None, device: str | None, asked: dict[str, Any], **reading: Any
) -> None:
    """Refuse options that would have no effect: where no images are read, and where nothing runs on a device.

    ``asked`` are the arguments of `mbs_fx.plan`; ``reading`` are the options that say how images are read, by name.
    """
    if images is not None and density is not None:
        raise MBSError("give --images or --density, not both")
    if images is not None or (density is None and model == SHIPPED):
        return
    timed = "max_latency_ms" in asked or asked.get("round_to") == "auto"
    given = reading | ({} if timed else {"device": device})
    flags = ["--" + name.replace("_", "-") for name, value in given.items() if value is not None]
    if flags:
        raise MBSError(
            f"{', '.join(flags)}: no effect, for no images are read: leave it out, or give --images DIR alone"
        )


def needed(weights: str | None, model: str, images: Path | None, density: Path | None) -> str | None:
    """The weights to load: those that were named; none where nothing is measured."""
    measured = density is None and (images is not None or model == SHIPPED)
    return weights if measured or weights is not None else "none"


def held(file: Path) -> str | None:
    """The format that a file of this package names; raises `MBSError` where it is none."""
    try:
        return json.loads(file.read_text()).get("format")
    except OSError as error:
        raise MBSError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise MBSError(f"{file}: not a file of mbs-fx: {error}") from error


def expect(file: Path, kind: str) -> None:
    """Refuse a file of the other kind by naming its option."""
    found = held(file)
    if found != kind and found in FORMATS:
        raise MBSError(f"{file}: this is {FORMATS[found]}")


def applied(plan: Path, size: int | None) -> tuple[mbs_fx.Plan, int]:
    """A plan from a file, and the size that it was made for."""
    import mbs_fx

    expect(plan, "mbs_fx.plan")
    made = mbs_fx.Plan.from_json(plan)
    own = made.input_shapes[0][-1]
    if size not in (None, own):
        raise MBSError(f"{plan} was made for --size {own}: leave out --size {size}, or plan anew")
    return made, own


def outputs(out: Path | None, name: str, suffixes: tuple[str, ...], force: bool = True) -> tuple[Path, ...]:
    """A path for every suffix: ``out`` is a stem or a folder, ``name`` the stem where it gives none.

    Raises `MBSError` for a path that cannot be written, or that is taken unless ``force``.
    """
    stem = out or Path(name)
    if stem.is_dir():
        stem /= name
    if stem.suffix in suffixes:
        stem = stem.with_suffix("")
    if not stem.parent.is_dir():
        raise MBSError(f"cannot write {stem}: there is no folder {stem.parent}; make it, or give another --out")
    if not os.access(stem.parent, os.W_OK):
        raise MBSError(f"cannot write {stem}: no permission in {stem.parent}; give another --out")
    paths = tuple(stem.parent / f"{stem.name}{suffix}" for suffix in suffixes)
    require_free(paths, force, "--out")
    return paths


def require_free(paths: Iterable[Path], force: bool, option: str) -> None:
    """Raise `MBSError` for the first path that is taken, unless ``force``."""
    taken = next((path for path in paths if path.exists()), None)
    if taken is not None and not force:
        raise MBSError(f"{taken} exists: --force overwrites it, or give another {option}")


def partial(folder: Path, name: str) -> Path:
    """Where an interrupted command leaves what it measured."""
    return folder / f"{name}.partial.json"


def written(first: str, **named: Any) -> str:
    """Arguments as they stand in Python."""
    return repr(first) + more(**named)


def more(**named: Any) -> str:
    """Keyword arguments as they are written after others; None is left out."""
    return "".join(f", {name}={value!r}" for name, value in named.items() if value is not None)


def made_by(preparation: Preparation) -> str:
    """The Python that makes a preparation."""
    return f"Preparation({preparation.size}, {preparation.mean}, {preparation.std})"
