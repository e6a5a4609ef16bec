"""The result of `measure`: the share of non-zero activations of every counted convolution.  No torch.

Semantics
- A *statistic* is one number per image: the mean share of non-zero values over the activations that a
  convolution reaches.  Convolutions that reach the same activations share one.
- ``mean`` and ``covariance`` describe the statistics over images (unbiased, float64), so that the
  uncertainty of anything computed from densities follows for every threshold z without reading the images
  again.
- ``nonzero`` and ``elements`` are exact totals over all images, per activation node.
- ``skipped`` images were left out: their files could not be read, or they gave values that are not finite.
- ``stderr`` is the standard deviation over images divided by the square root of their number.
  ``population`` is the size of the set that the images were drawn from, where it is known: the intervals
  narrow with the share of it that was read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mbs_fx.algorithm import Floats
from mbs_fx.errors import MBSError
from mbs_fx.results.analysis import Analysis
from mbs_fx.results.files import write_text
from mbs_fx.results.tables import lines_html, markdown, paragraph_html, size_text, table_html

FORMAT = "mbs_fx.density"
VERSION = 1

FACTOR_HEADERS = ("z", "size", "β", "between", "widths")

FEWEST = 32
"""No decision on fewer images: means must be close to normal."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The estimate of beta_i for one threshold, and the interval that it lies in.

    ``settled``: no width changes within ``low .. high``.  ``edge`` says which width is closest to changing, and how
    far beta is from there; empty where beta does not depend on densities.
    """

    z: float
    macroblock: int
    spatial_size: tuple[int, ...]
    beta: float
    low: float
    high: float
    settled: bool
    edge: str = ""

    @property
    def state(self) -> str:
        """Whether the widths are settled, and which is closest to changing."""
        return ("settled" if self.settled else "not settled") + (f", {self.edge}" if self.edge else "")

    def __str__(self) -> str:
        size = size_text(self.spatial_size)
        return f"z={self.z:g} at {size}: beta {self.beta:.4f} in [{self.low:.4f}, {self.high:.4f}], {self.state}"


@dataclass(frozen=True)
class Density:
    """Densities p_j by convolution node, with their uncertainty.  ``print`` shows a summary."""

    index: Mapping[str, int]
    mean: Floats
    covariance: Floats
    images: int
    population: int | None = None
    partial: bool = False
    skipped: int = 0
    nonzero: Mapping[str, int] = field(default_factory=dict)
    elements: Mapping[str, int] = field(default_factory=dict)
    confidence: float | None = None
    intervals: tuple[Interval, ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""

    @cached_property
    def p(self) -> Mapping[str, float]:
        """Convolution node name to the mean share of non-zero values."""
        return {name: float(self.mean[j]) for name, j in self.index.items()}

    @cached_property
    def stderr(self) -> Mapping[str, float]:
        """Convolution node name to the standard error of `p`."""
        variance = np.diagonal(self.covariance) / max(self.images, 1)
        return {name: math.sqrt(max(float(variance[j]), 0.0)) for name, j in self.index.items()}

    @property
    def settled(self) -> bool:
        """Every planned width is known at the stated confidence, for each threshold that was asked for."""
        return bool(self.intervals) and all(interval.settled for interval in self.intervals)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Density) and self._comparable() == other._comparable()

    __hash__ = None  # type: ignore[assignment]

    def _comparable(self) -> tuple[Any, ...]:
        arrays = (self.mean.tobytes(), self.covariance.tobytes())
        return (*arrays, _header(self))

    def __str__(self) -> str:
        lines = [self._head()]
        lines += [f"  {interval}" for interval in self.intervals]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _head(self) -> str:
        of = f" of {self.population}" if self.population is not None else ""
        text = f"Density: {self.images}{of} images, {len(self.index)} convolutions"
        return text + (", partial" if self.partial else "")

    def to_markdown(self) -> str:
        """What is known of every scaling factor, for a page or an issue."""
        return markdown(self._factors(), FACTOR_HEADERS, (self._head(), *self.notes))

    def _factors(self) -> list[tuple[str, ...]]:
        return [
            (f"{i.z:g}", size_text(i.spatial_size), f"{i.beta:.4f}", f"{i.low:.4f} – {i.high:.4f}", i.state)
            for i in self.intervals
        ]

    def _repr_html_(self) -> str:
        factors = self._factors()
        rows = [(name, f"{p:.4f}", f"{self.stderr[name]:.4f}") for name, p in self.p.items()]
        each = table_html(rows, ("convolution", "p", "standard error"))
        return (
            paragraph_html(self._head())
            + (table_html(factors, FACTOR_HEADERS) if factors else "")
            + f"<details><summary>p of {len(rows)} convolutions</summary>{each}</details>"
            + lines_html(self.notes)
        )

    def check(self, analysis: Analysis) -> None:
        """Refuse a graph other than the one that was measured."""
        other = fingerprint(analysis)
        if self.fingerprint and self.fingerprint != other:
            raise MBSError(
                f"this density was measured on another graph (fingerprint {self.fingerprint}, this graph has "
                f"{other}): a layer was added, removed, renamed or resized since. Measure again."
            )

    def to_json(self) -> str:
        """Versioned JSON; p and stderr to read, the arrays packed (zlib, base64, float64) to be exact."""
        record = _header(self)
        record["p"], record["stderr"] = dict(self.p), dict(self.stderr)
        record["mean"] = _pack(self.mean)
        record["covariance"] = _pack(self.covariance[np.tril_indices(len(self.mean))])
        return json.dumps(record, indent=1)

    @staticmethod
    def from_json(text: str) -> Density:
        """The exact inverse of `to_json`."""
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise MBSError(f"not a density file: {error}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise MBSError(f'not a density file: "format" should be "{FORMAT}"')
        if record.get("version") != VERSION:
            raise MBSError(f"density file of version {record.get('version')}; this is a reader of version {VERSION}")
        try:
            return _restore(record)
        except (KeyError, ValueError, TypeError, zlib.error) as error:
            raise MBSError(f"damaged density file: {error!r}") from None

    def save(self, path: str | Path) -> None:
        """Write JSON to ``path``, as a whole or not at all."""
        write_text(path, self.to_json())

    @staticmethod
    def load(path: str | Path) -> Density:
        """Read what `save` wrote."""
        try:
            text = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise MBSError(f"{path}: cannot read the density: {error}") from error
        try:
            return Density.from_json(text)
        except MBSError as error:
            raise MBSError(f"{path}: {error}") from error


def few(images: int) -> str:
    """What is to be said of a measurement on fewer than `FEWEST` images."""
    read = "1 image was" if images == 1 else f"{images} images were"
    return f"only {read} read: the widths hold for these, not for others like them; give at least {FEWEST}"


def fingerprint(analysis: Analysis) -> str:
    """Changes when a layer is added, removed, renamed or resized, whatever the size of the input is."""
    convs = [(c.name, c.target, c.width, c.in_width, c.groups, list(c.activations)) for c in analysis.convs]
    kernels = [(path, [width.fixed for width in axes[2:]]) for path, axes in analysis.tensors.items()]
    text = repr((list(analysis.geometry), convs, kernels))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _header(density: Density) -> dict[str, Any]:
    intervals = [
        [i.z, i.macroblock, list(i.spatial_size), i.beta, i.low, i.high, i.settled, i.edge] for i in density.intervals
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": density.fingerprint,
        "images": density.images,
        "population": density.population,
        "partial": density.partial,
        "skipped": density.skipped,
        "confidence": density.confidence,
        "intervals": intervals,
        "notes": list(density.notes),
        "index": dict(density.index),
        "nonzero": dict(density.nonzero),
        "elements": dict(density.elements),
    }


def _restore(record: dict[str, Any]) -> Density:
    mean = _unpack(record["mean"])
    lower = np.zeros((len(mean), len(mean)))
    lower[np.tril_indices(len(mean))] = _unpack(record["covariance"])
    intervals = (Interval(z, m, tuple(size), *rest) for z, m, size, *rest in record["intervals"])
    keys = (
        "index",
        "images",
        "population",
        "partial",
        "skipped",
        "nonzero",
        "elements",
        "confidence",
        "fingerprint",
    )
    return Density(
        mean=mean,
        covariance=lower + np.tril(lower, -1).T,
        intervals=tuple(intervals),
        notes=tuple(record["notes"]),
        **{key: record[key] for key in keys},
    )


def _pack(array: Floats) -> str:
    return base64.b64encode(zlib.compress(array.astype("<f8").tobytes())).decode()


def _unpack(text: str) -> Floats:
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<f8").astype(np.float64)
