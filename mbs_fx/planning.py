"""The plan: one scaling factor per macroblock, and the width of every convolution that follows from it.

Semantics
- ``z`` is the threshold in multiples of the input size L: base layers have receptive fields up to the smallest
  one greater than z L (Eq. 3, 6).
- Without a density every counted convolution has p = 1, and the plan says so.
- Scaling factors and widths may be given instead: ``betas`` by spatial size (1 where not named), ``widths`` by
  module path (the whole width group of that convolution).
- No torch: a plan is computed from an `Analysis` and a `Density`, both plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mbs_fx.algorithm import (
    ConvFact,
    Scaling,
    boundary,
    effective_flops,
    is_base,
    macroblock_scaling,
    scaled_width,
)
from mbs_fx.allocation import allocate, targets
from mbs_fx.analysis import Analysis, Conv, Macroblock, Stream
from mbs_fx.density_result import Density
from mbs_fx.errors import MBSError
from mbs_fx.plan_result import MacroblockPlan, Plan


def plan(
    analysis: Analysis,
    density: Density | None = None,
    z: float = 1.0,
    *,
    betas: Mapping[Any, float] | None = None,
    widths: Mapping[str, int] | None = None,
) -> Plan:
    """Scale every macroblock by its factor (Algorithm 1) and find all widths.

    Args:
        analysis: of the graph to be reduced.
        density: p_j per convolution; None counts every output as non-zero.
        z: threshold on the receptive field in multiples of the input size, positive.
        betas: spatial size -> scaling factor in (0, 1], in place of Algorithm 1; 1 where not named.
        widths: module path of a convolution -> width of its group, in place of its scaling factor.

    Raises:
        MBSError: z or a factor out of range, a size or path that the analysis does not have, a width that
            is 0 or larger than the original, a graph in which no convolution may change.

    """
    if not z > 0:
        raise MBSError(f"z = {z}: the threshold is a positive multiple of the input size, for example 1.0")
    given = betas is not None or (widths is not None and density is None)
    scalings = _given(analysis, betas or {}) if given else scale(analysis, density, z)
    fixed = _fixed_widths(analysis, widths or {})

    def wanted(stream: Stream) -> int:
        return scaled_width(scalings[stream.macroblock].beta, stream.width)

    kept = allocate(analysis, targets(analysis, wanted, fixed))
    return _assemble(analysis, density, None if given else z, scalings, kept)


def scale(analysis: Analysis, density: Density | None, z: float) -> list[Scaling]:
    """Algorithm 1 on an analysis and a density."""
    counted = [conv for conv in analysis.convs if conv.counted]
    facts = [ConvFact(c.receptive_field, c.macroblock, effective_flops(share(density, c), c.flops)) for c in counted]
    return macroblock_scaling(facts, len(analysis.macroblocks), threshold(analysis, z))


def share(density: Density | None, conv: Conv) -> float:
    """p_j; 1 without a density."""
    if density is None:
        return 1.0
    if conv.name not in density.p:
        raise MBSError(
            f"%{conv.name} ({conv.target}): the density has no entry for this convolution; it was measured on "
            "another graph. Measure this one."
        )
    return density.p[conv.name]


def threshold(analysis: Analysis, z: float) -> tuple[float, ...]:
    """The boundary of Eq. 3 for a threshold of z times the input size."""
    fields = [conv.receptive_field for conv in analysis.convs]
    return boundary(fields, [z * size for size in analysis.input_size])


def _given(analysis: Analysis, betas: Mapping[Any, float]) -> list[Scaling]:
    by_size = {_size_key(size): beta for size, beta in betas.items()}
    known = {m.spatial_size for m in analysis.macroblocks}
    known |= {(m.spatial_size[0],) for m in analysis.macroblocks if len(set(m.spatial_size)) == 1}
    for size, beta in by_size.items():
        if size not in known:
            sizes = sorted({m.spatial_size[0] for m in analysis.macroblocks}, reverse=True)
            raise MBSError(f"betas: no macroblock has spatial size {size[0]}; there are {sizes}")
        if not 0 < beta <= 1:
            raise MBSError(f"betas: {beta} for size {size[0]} is not in (0, 1]")
    return [Scaling(0.0, 0.0, 1 / b - 1, b) for b in (_beta(by_size, m) for m in analysis.macroblocks)]


def _size_key(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, tuple) else (int(size),)


def _beta(by_size: Mapping[tuple[int, ...], float], macroblock: Macroblock) -> float:
    size = macroblock.spatial_size
    square = size[:1] if len(set(size)) == 1 else size
    return by_size.get(size, by_size.get(square, 1.0))


def _fixed_widths(analysis: Analysis, widths: Mapping[str, int]) -> dict[int, int]:
    """Widths given by module path, by stream."""
    by_path = {analysis.by_name[name].target: s for s in analysis.streams for name in s.convs}
    paths = {conv.target for conv in analysis.convs}
    fixed: dict[int, int] = {}
    for path, width in widths.items():
        stream = by_path.get(path)
        if stream is None:
            why = analysis.kept.get(path) if path in paths else "there is no convolution of that name"
            raise MBSError(f"widths: {path}: {why}")
        if not 1 <= width <= stream.width:
            raise MBSError(f"widths: {path}: {width} is not between 1 and its present width {stream.width}")
        if fixed.setdefault(stream.index, width) != width:
            raise MBSError(f"widths: {path}: {width} contradicts {fixed[stream.index]}, given for the same group")
    return fixed


def _assemble(
    analysis: Analysis, density: Density | None, z: float | None, scalings: list[Scaling], kept: list[int]
) -> Plan:
    limit = threshold(analysis, z) if z is not None else None
    macroblocks = tuple(
        _macroblock_plan(analysis, m, scalings[m.index], density, limit, kept) for m in analysis.macroblocks
    )
    before = [cell.size for cell in analysis.cells]
    notes = analysis.notes
    if density is None and z is not None:
        notes = ("densities are taken as equal (p = 1): nothing was measured", *notes)
    if all(conv.out.size(kept) == conv.width for conv in analysis.convs):
        notes = ("nothing is reduced: every scaling factor is 1, or every width is kept", *notes)
    return Plan(
        z=z,
        boundary=limit,
        macroblocks=macroblocks,
        widths={conv.target: int(conv.out.size(kept)) for conv in analysis.convs},
        before={conv.target: conv.width for conv in analysis.convs},
        kept=dict(analysis.kept),
        params=(params(analysis, before), params(analysis, kept)),
        flops=(flops(analysis, before), flops(analysis, kept)),
        input_shapes=analysis.input_shapes,
        images=density.images if density is not None else 0,
        notes=notes,
    )


def _macroblock_plan(
    analysis: Analysis,
    macroblock: Macroblock,
    scaling: Scaling,
    density: Density | None,
    limit: tuple[float, ...] | None,
    kept: list[int],
) -> MacroblockPlan:
    convs = [analysis.by_name[name] for name in macroblock.convs]
    counted = [c for c in convs if c.counted]
    total = sum(c.flops for c in counted)
    mean = sum(share(density, c) * c.flops for c in counted) / total if total else None
    streams = sorted((s for s in analysis.streams if s.macroblock == macroblock.index), key=lambda s: s.index)
    pairs = dict.fromkeys((s.width, int(s.out.size(kept))) for s in streams)
    fields = [c.receptive_field for c in convs]
    return MacroblockPlan(
        index=macroblock.index,
        spatial_size=macroblock.spatial_size,
        upsampled=macroblock.upsampled,
        convs=len(convs),
        base=sum(is_base(rf, limit) for rf in fields) if limit is not None else len(convs),
        receptive_field=(min(map(min, fields)), max(map(max, fields))),
        density=mean if density is not None else None,
        e_total=scaling.e_total,
        e_base=scaling.e_base,
        redundancy=scaling.redundancy,
        beta=scaling.beta,
        widths=tuple(pairs),
        segments=tuple(s.name for s in macroblock.segments),
        flops=(sum(c.flops for c in convs), sum(conv_flops(c, kept) for c in convs)),
    )


def params(analysis: Analysis, kept: list[int]) -> int:
    """Number of parameters when ``kept[i]`` choices of cell i are kept."""
    total = 0
    for axes in analysis.tensors.values():
        size = 1
        for width in axes:
            size *= int(width.size(kept)) if width.terms else width.fixed
        total += size
    return total


def conv_flops(conv: Conv, kept: list[int]) -> int:
    """Multiply-adds of a convolution at the planned widths."""
    out, inp = int(conv.out.size(kept)), int(conv.inp.size(kept))
    if conv.depthwise:
        return conv.flops * out // conv.width
    return conv.flops * out * inp // (conv.width * conv.in_width)


def flops(analysis: Analysis, kept: list[int]) -> int:
    """Multiply-adds of all convolutions for one image."""
    return sum(conv_flops(conv, kept) for conv in analysis.convs)
