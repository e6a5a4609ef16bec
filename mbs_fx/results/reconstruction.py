"""What a reconstruction says: the error of every layer before and after, and what was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tabulate import tabulate

from mbs_fx.errors import MBSError
from mbs_fx.results.tables import listed

LARGE = 0.3
"""A held-back error from which on it is marked: a tenth of the output's energy is lost."""

HEADERS = ("layer", "matched", "error inherited", "error refitted", "λ", "unknowns", "positions", "images")


@dataclass(frozen=True, slots=True)
class LayerError:
    """Relative errors |Y - WU| / |Y| of one layer on images held back from its fit.

    ``before`` is the error of the weights that the layer had, on what it reads now; ``after`` that of the weights
    fitted without those images, equal to ``before`` where the weights stayed.  ``matched``: Y is the original's output
    of this layer ("output"), or the original's sum in the addition behind it ("sum").  ``regularisation``: lambda as a
    multiple of the mean diagonal of the normal equations, None where the weights stayed.  ``unknowns`` of one output,
    ``positions`` and ``images`` that they were found from.
    """

    path: str
    matched: str
    before: float
    after: float
    regularisation: float | None
    unknowns: int
    positions: int
    images: int

    @property
    def large(self) -> bool:
        """Whether the plan cut too deep here for the channels that are left."""
        return self.after >= LARGE


@dataclass(frozen=True)
class Reconstruction:
    """Errors of all layers that were refitted, in order, and the reasons for the others by path.

    ``output`` is the relative error of the network's output on images held back, with the weights it had before and
    with the refitted ones.  ``recalibrated`` are BatchNorms in opaque segments whose statistics were measured anew.
    """

    layers: tuple[LayerError, ...]
    left: Mapping[str, str]
    images: int
    held_back: int
    output: tuple[float, float] | None = None
    recalibrated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Reconstruction:
        """The inverse of `to_dict`.  Raises `MBSError` for anything else."""
        try:
            fields = dict(data)
            fields["layers"] = tuple(LayerError(**layer) for layer in fields["layers"])
            for name in ("output", "recalibrated", "notes"):
                if fields.get(name) is not None:
                    fields[name] = tuple(fields[name])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise MBSError(f"this is not a reconstruction as to_dict gives it: {error!r}") from error

    def __str__(self) -> str:
        rows = [
            (
                layer.path,
                layer.matched,
                f"{layer.before:.3f}",
                f"{layer.after:.3f}{' *' * layer.large}",
                "kept" if layer.regularisation is None else f"{layer.regularisation:g}",
                f"{layer.unknowns:,}",
                f"{layer.positions:,}",
                str(layer.images),
            )
            for layer in self.layers
        ]
        right = ("left", "left", *("right",) * 6)
        table = tabulate(rows, HEADERS, disable_numparse=True, colalign=right if rows else None)
        mark = [f"* {LARGE:g} or more: the plan cut too deep here"] if any(layer.large for layer in self.layers) else []
        return "\n".join([self.summary(), table, *mark, *self._rest()])

    def worst(self, most: int = 5) -> str:
        """One line: the layers with the largest errors, the largest first."""
        ranked = sorted(self.layers, key=lambda layer: -layer.after)
        return listed([f"{layer.path} {layer.after:.3f}{' *' * layer.large}" for layer in ranked], most)

    def summary(self) -> str:
        """One line: layers, images, and the error of the network's output."""
        changed = sum(layer.regularisation is not None for layer in self.layers)
        text = f"{changed} layers refitted to the original on {self.images} images, {self.held_back} of them held back"
        if self.output is not None:
            text += f"; relative error of the output there {self.output[0]:.3f} → {self.output[1]:.3f}"
        return text

    def _rest(self) -> list[str]:
        paths: dict[str, list[str]] = {}
        for path, reason in self.left.items():
            paths.setdefault(reason, []).append(path)
        lines: list[str] = []
        for reason, _ in Counter({reason: len(held) for reason, held in paths.items()}).most_common():
            held = paths[reason]
            lines.append(f"left alone  {', '.join(held[:3])}{f' and {len(held) - 3} more' * (len(held) > 3)}: {reason}")
        if self.recalibrated:
            lines.append(f"statistics measured anew  {', '.join(self.recalibrated)}")
        return lines + [f"note  {note}" for note in self.notes]
