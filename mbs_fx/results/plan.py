"""The result of `plan`: the paper's table, every width before and after, and JSON.

A plan is keyed by module path, readable and versioned.  With the original code and a file of weights it rebuilds the
small network (`mbs_fx.load`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mbs_fx.errors import MBSError
from mbs_fx.results.files import write_text
from mbs_fx.results.tables import (
    accuracy_text,
    kept_lines,
    lines_html,
    markdown,
    place_text,
    remarks,
    size_text,
    span_text,
    table,
    table_html,
    widths_text,
)

FORMAT = "mbs_fx.plan"
VERSION = 1
COSTS = ("params", "flops", "model_bytes", "activation_bytes")
FIRST = ("z", "boundary", "beyond", "images", *COSTS, "accuracy", "macroblocks", "widths")
"""What a person reads first in the file; what records the network and the rewrite follows."""

PLAN_HEADERS = (
    "m",
    "size",
    "convs",
    "RF",
    "layers",
    "density",
    "r",
    "β",
    "widths before → after",
    "MFLOP before → after",
)


@dataclass(frozen=True, slots=True)
class MacroblockPlan:
    """One row of the paper's table.  ``widths`` are the distinct (before, after) of its width groups."""

    index: int
    spatial_size: tuple[int, ...]
    upsampled: bool
    convs: int
    base: int
    receptive_field: tuple[float, float]
    density: float | None
    e_total: float
    e_base: float
    redundancy: float
    beta: float
    widths: tuple[tuple[int, int], ...]
    segments: tuple[str, ...]
    flops: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Widths for a network.

    ``widths`` and ``before`` map module paths to output widths; ``kept`` says what keeps its width and why;
    ``params``, ``flops`` (multiply-adds of the convolutions, one image), ``model_bytes`` (parameters and buffers) and
    ``activation_bytes`` (peak activation memory, one image) are (before, after).  After a
    rewrite ``channels`` maps module paths to the indices of the output channels that were kept.  ``beyond`` is the
    share of the layers just beyond the boundary that counts as base, where a budget asked for it (docs/budgets.md).
    ``opaque`` are the modules that were scaled as a whole, ``leaves`` those that were not traced;
    ``outputs`` names the outputs that keep their channels, None where all do.  ``accuracy`` is what a test said of the
    original and of the network with these widths, in the order of time: "original", "inherited", "reconstructed", ...
    """

    z: float | None
    boundary: tuple[float, ...] | None
    macroblocks: tuple[MacroblockPlan, ...]
    widths: Mapping[str, int]
    before: Mapping[str, int]
    kept: Mapping[str, str]
    params: tuple[int, int]
    flops: tuple[int, int]
    input_shapes: tuple[tuple[int, ...], ...]
    model_bytes: tuple[int, int] = (0, 0)
    activation_bytes: tuple[int, int] = (0, 0)
    beyond: float = 0.0
    images: int = 0
    input_types: tuple[str, ...] = ()
    input_names: tuple[tuple[str | int, ...], ...] = ()
    opaque: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    outputs: tuple[tuple[str | int, ...], ...] | None = None
    notes: tuple[str, ...] = ()
    channels: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    accuracy: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def reduction(self) -> float:
        """Share of parameters removed, the paper's reduction column."""
        return 1 - self.params[1] / self.params[0]

    @property
    def tested(self) -> float | None:
        """The last accuracy, None where none is known."""
        return list(self.accuracy.values())[-1] if self.accuracy else None

    def to_json(self, path: str | Path | None = None) -> str:
        """The plan as text; written to ``path`` as a whole or not at all."""
        text = _layout(self.to_dict())
        if path is not None:
            write_text(path, text)
        return text

    def to_dict(self) -> dict[str, Any]:
        """The plan in plain containers."""
        fields = asdict(self)
        first = {name: fields.pop(name) for name in FIRST}
        return {"format": FORMAT, "version": VERSION, **first, **fields}

    @classmethod
    def from_json(cls, source: str | Path) -> Plan:
        """A plan from text or from a file.  Raises `MBSError` for anything that is not a plan of this version."""
        text = str(source)
        if not text.lstrip().startswith("{"):
            try:
                text = Path(source).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise MBSError(f"{source}: cannot read the plan: {error}") from error
        name = source if text != str(source) else "the plan"
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise MBSError(f"{name}: not JSON: {error}") from error
        return cls.from_dict(data, str(name))

    @classmethod
    def from_dict(cls, data: Any, name: str = "the plan") -> Plan:
        """A plan from what `to_dict` gave; ``name`` is what errors call it."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise MBSError(f"{name}: not a plan: there is no format '{FORMAT}'")
        if data.get("version") != VERSION:
            found = data.get("version")
            raise MBSError(f"{name}: a plan of version {found}, and this mbs_fx reads version {VERSION}; update it")
        return _plan_of(data)

    def __str__(self) -> str:
        rows = [plan_row(m) for m in self.macroblocks]
        segments = (name for m in self.macroblocks for name in m.segments)
        below = remarks(segments, self.kept, self.notes)
        return "\n".join([table(rows, PLAN_HEADERS), *_costs(self), *below])

    def _repr_html_(self) -> str:
        return table_html([plan_row(m) for m in self.macroblocks], PLAN_HEADERS) + lines_html(self._below())

    def to_markdown(self) -> str:
        """The table and what is said below it, for a page or an issue."""
        return markdown([plan_row(m) for m in self.macroblocks], PLAN_HEADERS, self._below())

    def _below(self) -> list[str]:
        return [*_costs(self), *kept_lines(self.kept), *self.notes]


def plan_row(m: MacroblockPlan) -> tuple[str, ...]:
    """A macroblock as a row under `PLAN_HEADERS`."""
    if m.base == m.convs:
        layers = "base"
    else:
        layers = "enhancement" if m.base == 0 else f"{m.base} base, {m.convs - m.base} enh."
    return (
        f"{m.index}{'*' if m.segments else ''}",
        place_text(m.spatial_size, m.upsampled),
        str(m.convs),
        span_text(m.receptive_field),
        layers,
        "" if m.density is None else f"{m.density:.3f}",
        f"{m.redundancy:.4f}",
        f"{m.beta:.4f}",
        widths_text(m.widths),
        f"{m.flops[0] / 1e6:.1f} → {m.flops[1] / 1e6:.1f}",
    )


def summary(plan: Plan) -> str:
    """One line: parameters, flops, threshold, images."""
    (p0, p1), (f0, f1) = plan.params, plan.flops
    share = 1 - f1 / f0 if f0 else 0.0
    text = f"parameters {p0:,} → {p1:,} ({plan.reduction:.2%} fewer), multiply-adds {f0:,} → {f1:,} ({share:.2%} fewer)"
    if plan.z is not None and plan.boundary is not None:
        text += f"; z = {plan.z:g} L, ⌈z⌉_RF = {boundary_text(plan.boundary)}"
        text += f" and {plan.beyond:.0%} of the layers just beyond" if plan.beyond else ""
    return text + (f"; {plan.images} images" if plan.images else "")


def boundary_text(boundary: tuple[float, ...] | None) -> str:
    """The boundary of Eq. 3, once where it is the same on all axes."""
    return size_text(dict.fromkeys(boundary or ()), ", ")


def _costs(plan: Plan) -> list[str]:
    """Lines: parameters and flops; bytes on disk and in feature maps; accuracy where it is known."""
    weights, maps = (f"{a / 1e6:,.2f} → {b / 1e6:,.2f} MB" for a, b in (plan.model_bytes, plan.activation_bytes))
    lines = [summary(plan), f"weights {weights}, peak activation memory {maps} per image"]
    return [*lines, f"accuracy {accuracy_text(plan.accuracy)}"] if plan.accuracy else lines


def _layout(data: dict[str, Any]) -> str:
    """JSON with one line for each macroblock, each width and the channels of each layer."""
    parts = [f"{json.dumps(key)}: {_lines(value)}" for key, value in data.items()]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _lines(value: Any) -> str:
    """A container of several entries over several lines, each entry on its own."""
    if isinstance(value, dict) and value:
        entries = [f"{json.dumps(key)}: {json.dumps(held)}" for key, held in value.items()]
        return "{\n  " + ",\n  ".join(entries) + "\n }"
    if isinstance(value, tuple) and value and isinstance(value[0], dict | str):
        return "[\n  " + ",\n  ".join(json.dumps(held) for held in value) + "\n ]"
    return json.dumps(value)


_TUPLES = ("boundary", *COSTS, "input_shapes", "input_types", "input_names", "opaque", "leaves", "outputs", "notes")


def _plan_of(data: Mapping[str, Any]) -> Plan:
    fields = {key: value for key, value in data.items() if key not in ("format", "version")}
    try:
        rows = [{k: _tuples(v) for k, v in row.items()} for row in fields.pop("macroblocks")]
        fields["channels"] = {path: tuple(index) for path, index in fields.get("channels", {}).items()}
        for name in _TUPLES:
            if name in fields:
                fields[name] = _tuples(fields[name])
        found = Plan(macroblocks=tuple(MacroblockPlan(**row) for row in rows), **fields)
        _check(found)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MBSError(f"the plan is incomplete or was edited into something else: {error!r}") from error
    return found


def _check(plan: Plan) -> None:
    """Raise `MBSError` naming the first entry that cannot be, for instance after an edit by hand."""
    _check_types(plan)
    for path, width in plan.widths.items():
        most = plan.before.get(path)
        if most is None:
            raise MBSError(f'{path}: the plan gives it a width, but has no convolution of that name in "before"')
        if not isinstance(width, int) or not 1 <= width <= most:
            raise MBSError(f"{path}: a width of {width!r} is not a whole number between 1 and {most}")
    for path, kept in plan.channels.items():
        if plan.widths.get(path, len(kept)) != len(kept):
            raise MBSError(
                f"{path}: the plan gives it the width {plan.widths[path]}, but lists {len(kept)} channels that were "
                'kept; empty "channels" in the file, and they are chosen anew'
            )


_TEXTS = (("opaque", str), ("leaves", str), ("notes", str))


def _check_types(plan: Plan) -> None:
    for name in ("widths", "before", "kept", "channels", "accuracy"):
        if not isinstance(getattr(plan, name), dict):
            raise MBSError(f'the plan was edited into something else: "{name}" maps module paths, as {{"conv1": ...}}')
    for name in COSTS:
        if not isinstance(getattr(plan, name), tuple) or len(getattr(plan, name)) != 2:
            raise MBSError(f'the plan was edited into something else: "{name}" is a pair, before and after')
    for name, item in (("input_shapes", tuple), ("input_types", str), ("input_names", tuple), *_TEXTS):
        held: Any = getattr(plan, name)
        if not isinstance(held, tuple) or not all(isinstance(each, item) for each in held):
            raise MBSError(f'the plan was edited into something else: "{name}" is a list')
    if not (plan.outputs is None or (isinstance(plan.outputs, tuple) and all(map(_is_way, plan.outputs)))):
        raise MBSError('the plan was edited into something else: "outputs" is null or a list of lists')
    for held in (plan.z, plan.beyond, *(plan.boundary or ()), *plan.accuracy.values()):
        if not isinstance(held, int | float | None):
            where = '"z", "beyond", "boundary" or "accuracy"'
            raise MBSError(f"the plan was edited into something else: {held!r} in {where}")


def _is_way(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(key, str | int) for key in value)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
