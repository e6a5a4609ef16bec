"""What the caller decides in place of Algorithm 1: factors, widths, what keeps its width, and rounding.

Semantics
- A key names a macroblock or convolutions.  A number or a tuple is a spatial size where a macroblock has it, else the
  index of a macroblock; ``"m3"`` is always the index.  Text is the path of a convolution, else of a module with
  convolutions inside, else ``"m3"``, else a regular expression on the whole path of convolutions.
- ``betas`` of a macroblock is its factor.  What names convolutions (by path or expression, in ``betas``, ``widths``
  or ``keep``) is about their whole width groups, and stands in place of the macroblock's factor.
- A width group belongs to one factor, one width, or stays: two keys that contradict each other about one group are
  an error that names both, and so is a key that names nothing.
- A group that is a multiple of another by design follows it, unless a key of its own says otherwise.
- ``widths`` are exact.  ``round_to`` and ``min_width`` hold for everything else, up to the original width.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from mbs_fx.algorithm import scaled_width
from mbs_fx.errors import MBSError
from mbs_fx.results.analysis import Analysis, Stream
from mbs_fx.results.stream_widths import ALL, Grain
from mbs_fx.results.tables import size_text

Key = int | tuple[int, ...] | str | re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Overrides:
    """Everything that is decided before Algorithm 1 runs, by index of macroblock, stream and cell.

    ``kept`` maps module paths to the reason why they keep their width.
    """

    factors: Mapping[int, float] = field(default_factory=dict[int, float])
    groups: Mapping[int, float] = field(default_factory=dict[int, float])
    fixed: Mapping[int, int] = field(default_factory=dict[int, int])
    whole: frozenset[int] = frozenset()
    kept: Mapping[str, str] = field(default_factory=dict[str, str])
    grain: Grain = ALL


@dataclass(frozen=True, slots=True)
class Named:
    """What a key names: macroblocks by index (empty where it names convolutions), and convolutions by node name."""

    macroblocks: tuple[int, ...]
    convs: tuple[str, ...]


def named(analysis: Analysis, key: Any, argument: str) -> Named:
    """The macroblocks or convolutions that a key names.  Raises `MBSError` where there are none."""
    if isinstance(key, str | re.Pattern):
        return _named_by_text(analysis, key, argument)
    size = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(each, Integral) for each in size):
        raise MBSError(f"{argument}: {key!r} names nothing: a key is a spatial size, an index, or a text")
    found = [m.index for m in analysis.macroblocks if size in (m.spatial_size, _square(m.spatial_size))]
    if not found and len(size) == 1 and 0 <= size[0] < len(analysis.macroblocks):
        found = [size[0]]
    if not found:
        sizes = sorted({m.spatial_size[0] for m in analysis.macroblocks}, reverse=True)
        raise MBSError(
            f"{argument}: no macroblock has spatial size {size_text(size)}; there are {sizes}, with indices "
            f"0 to {len(analysis.macroblocks) - 1}"
        )
    return Named(tuple(found), tuple(name for i in found for name in analysis.macroblocks[i].convs))


def _square(size: tuple[int, ...]) -> tuple[int, ...]:
    return size[:1] if len(set(size)) == 1 else size


def _named_by_text(analysis: Analysis, key: str | re.Pattern[str], argument: str) -> Named:
    paths = {conv.name: conv.target for conv in analysis.convs}
    tests: list[Callable[[str], Any]] = []
    if isinstance(key, str):
        prefix = f"{key}."
        tests = [lambda path: path == key, lambda path: path.startswith(prefix)]
        for test in tests:
            if found := tuple(name for name, path in paths.items() if test(path)):
                return Named((), found)
        index = re.fullmatch(r"m(\d+)", key)
        if index and int(index[1]) < len(analysis.macroblocks):
            return Named((int(index[1]),), analysis.macroblocks[int(index[1])].convs)
    try:
        found = tuple(name for name, path in paths.items() if re.fullmatch(key, path))
    except re.error as error:
        raise MBSError(f"{argument}: {key!r}: neither a module path nor a regular expression ({error})") from error
    if not found:
        text = key if isinstance(key, str) else key.pattern
        whole = next((leaf for leaf in analysis.leaves if f"{text}.".startswith(f"{leaf}.")), None)
        if whole is not None:
            raise MBSError(
                f"{argument}: {text}: the trace kept {whole} as a single node, so the widths inside of it cannot change"
            )
        close = difflib.get_close_matches(text, _names(paths.values()), 3, 0.5)
        raise MBSError(
            f"{argument}: {text}: there is no convolution of that name or in a module of that name, and as a regular "
            "expression it matches none" + (f"; did you mean {', '.join(close)}?" if close else "")
        )
    return Named((), found)


def _names(paths: Iterable[str]) -> list[str]:
    """Convolutions and the modules that they stand in, the shortest paths first."""
    parts = [path.split(".") for path in paths]
    return sorted({".".join(p[:i]) for p in parts for i in range(1, len(p) + 1)}, key=lambda name: (len(name), name))


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of the caller: argument, key, and its factor or width."""

    argument: str
    key: Any
    value: float

    def width(self, stream: Stream) -> int:
        """The width that it gives to a group."""
        return int(scaled_width(self.value, stream.width)) if self.argument == "betas" else int(self.value)

    def __str__(self) -> str:
        key = self.key.pattern if isinstance(self.key, re.Pattern) else self.key
        return f"{self.argument}: {key}" + ("" if self.argument == "keep" else f" ({self.value:g})")


def resolve(
    analysis: Analysis,
    *,
    keep: Key | Iterable[Key] = (),
    betas: Mapping[Any, float] | None = None,
    widths: Mapping[Any, int] | None = None,
    round_to: int = 1,
    min_width: int = 1,
) -> Overrides:
    """Everything that the caller decides, looked up and checked."""
    for name, number in (("round_to", round_to), ("min_width", min_width)):
        if not isinstance(number, Integral) or number < 1:
            raise MBSError(f"{name} = {number!r}: give a whole number of channels, 1 or more")
    constraints = _Constraints(analysis)
    for name, given in (("betas", betas), ("widths", widths)):
        if not isinstance(given, Mapping | None):
            raise MBSError(f"{name} is a {type(given).__name__}: give a dict from keys to numbers")
    for key in keep if isinstance(keep, Iterable) and not isinstance(keep, str) else (keep,):
        constraints.keep(key)
    for key, beta in (betas or {}).items():
        constraints.scale(key, beta)
    for key, width in (widths or {}).items():
        constraints.set(key, width)
    return constraints.overrides(Grain(int(round_to), int(min_width)))


class _Constraints:
    """Collects constraints on macroblocks and width groups, and refuses contradictions."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.streams = {name: stream for stream in analysis.streams for name in stream.convs}
        self.factors: dict[int, Constraint] = {}
        self.groups: dict[int, Constraint] = {}

    def keep(self, key: Any) -> None:
        """The width groups that the key names keep their width."""
        found = named(self.analysis, key, "keep")
        for macroblock in found.macroblocks:
            self._factor(macroblock, Constraint("keep", key, 1.0))
        for stream in self._streams(found.convs):
            self._group(stream, Constraint("keep", key, stream.width))

    def scale(self, key: Any, beta: float) -> None:
        """A factor for a macroblock, or for width groups."""
        if not isinstance(beta, Real) or not 0 < beta <= 1:
            raise MBSError(f"betas: {beta} for {key} is not in (0, 1]")
        found, constraint = named(self.analysis, key, "betas"), Constraint("betas", key, float(beta))
        for macroblock in found.macroblocks:
            self._factor(macroblock, constraint)
        if not found.macroblocks:
            for stream in self._changeable(found.convs, constraint):
                self._group(stream, constraint)

    def set(self, key: Any, width: int) -> None:
        """A width for groups; for a macroblock, that of its groups which are no multiple of others."""
        found, constraint = named(self.analysis, key, "widths"), Constraint("widths", key, width)
        streams = self._changeable(found.convs, constraint)
        if found.macroblocks:
            streams = [s for s in streams if s.macroblock in found.macroblocks and s.base is None]
            designed = sorted({s.width for s in streams})
            if len(designed) > 1:
                raise MBSError(
                    f"widths: {key}: its groups have the widths {designed} by design: name convolutions, or give a "
                    "factor for all of them in betas="
                )
        for stream in streams:
            if not isinstance(width, Integral) or not 1 <= width <= stream.width:
                raise MBSError(f"widths: {key}: {width} is not between 1 and its present width {stream.width}")
            self._group(stream, constraint)

    def _streams(self, convs: Iterable[str]) -> list[Stream]:
        found = {s.index: s for name in convs if (s := self.streams.get(name)) is not None}
        return list(found.values())

    def _changeable(self, convs: Sequence[str], constraint: Constraint) -> list[Stream]:
        """The groups of convolutions; refused where all of them keep a width other than the one asked for."""
        streams = self._streams(convs)
        if not streams:
            conv = self.analysis.by_name[convs[0]]
            asked = conv.width if constraint.argument == "betas" and constraint.value == 1 else constraint.value
            if asked != conv.width:
                raise MBSError(
                    f"{constraint}: {conv.target} keeps its width {conv.width}: {self.analysis.kept[conv.target]}"
                )
        return streams

    def _factor(self, macroblock: int, constraint: Constraint) -> None:
        before = self.factors.setdefault(macroblock, constraint)
        if before.value != constraint.value:
            raise MBSError(f"{constraint} contradicts {before}: both are about macroblock {macroblock}")

    def _group(self, stream: Stream, constraint: Constraint) -> None:
        before = self.groups.get(stream.index)
        if before is None:
            self.groups[stream.index] = constraint
        elif before.width(stream) != constraint.width(stream) or (
            before.argument == constraint.argument == "betas" and before.value != constraint.value
        ):
            path = self.analysis.by_name[stream.convs[0]].target
            raise MBSError(f"{constraint} contradicts {before}: both are about the width group of {path}")

    def overrides(self, grain: Grain) -> Overrides:
        """All constraints, by the index of what they are about."""
        kept = {i: constraint for i, constraint in self.groups.items() if constraint.argument == "keep"}
        streams = self.analysis.streams
        reasons = {
            self.analysis.by_name[name].target: f"asked for ({constraint})"
            for i, constraint in kept.items()
            for name in streams[i].convs
        }
        return Overrides(
            factors={i: constraint.value for i, constraint in self.factors.items()},
            groups={i: constraint.value for i, constraint in self.groups.items() if constraint.argument == "betas"},
            fixed={i: int(constraint.value) for i, constraint in self.groups.items() if constraint.argument != "betas"},
            whole=frozenset(cell for i in kept for cell in streams[i].out.cells),
            kept=reasons,
            grain=grain,
        )
