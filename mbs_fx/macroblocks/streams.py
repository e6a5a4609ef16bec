"""Streams and segments: the tensors of designed width, the ratios between them, and what is opaque.

Semantics
- A stream is one distinct width among the outputs of the convolutions; what a depthwise convolution makes is the
  stream that enters it.
- Rule 3: where the two sides of a convolution in one macroblock have widths in an integer ratio, the wider is
  that multiple of the narrower.  The input side wins.  A stream that enters a concatenation is no multiple.
- Not every integer ratio is a design.  The largest in the paper is 6 (MobileNetV2), and the largest of an expansion
  in docs/coverage.md is 8; what is above are squeezes that happen to divide a width (RegNet-Y: 66 = 528 / 8), and
  the single channel of an attention gate or of a head.  A width of 1 or 2 is no base either: every factor of Eq. 9
  is above 1/2, and ceil(beta x 2) = 2, so that nothing tied to it would ever change.
- A segment is a set of opaque cells of one macroblock that meet in some convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mbs_fx.channels.flow import Flow
from mbs_fx.macroblocks.cells import Choices
from mbs_fx.macroblocks.membership import class_key
from mbs_fx.results.analysis import Cell, Conv, Segment, Stream, Width

LARGEST_RATIO = 8
"""Above this an integer ratio between two widths is chance."""

SMALLEST_BASE = 3
"""The smallest width that a scaling factor can change."""


def find_streams(flow: Flow, choices: Choices, convs: Sequence[Conv], bound: Mapping[str, int]) -> tuple[Stream, ...]:
    """Distinct output widths.  ``bound`` maps node names to the macroblock where their channels are bound."""
    makers: dict[Width, list[Conv]] = {}
    for conv in convs:
        if conv.out.terms:
            makers.setdefault(conv.out, []).append(conv)
    added = {class_key(f, choices.hard) for f in flow.additions.values()}
    joined = {class_key(f, choices.hard) for fs in flow.concatenations.values() for f in fs}
    streams: dict[Width, Stream] = {}
    for out, members in makers.items():
        members.sort(key=lambda conv: conv.depthwise)
        first = members[0]
        if first.depthwise:
            continue
        keys = {class_key(flow.mixers[c.name].out, choices.hard) for c in members if not c.depthwise}
        places = [bound[c.name] for c in members if c.name in bound and not c.depthwise]
        streams[out] = Stream(
            index=len(streams),
            width=first.width,
            out=out,
            macroblock=places[0] if places else first.macroblock,
            convs=tuple(c.name for c in members),
            concatenated=bool(keys & joined),
            added=bool(keys & added),
            step=choices.parts.get(out.cells, 1),
        )
    return _with_ratios(streams, convs)


def _with_ratios(streams: Mapping[Width, Stream], convs: Sequence[Conv]) -> tuple[Stream, ...]:
    """Find the base of every stream that is a multiple by design."""
    inputs: dict[int, list[Stream]] = {s.index: [] for s in streams.values()}
    outputs: dict[int, list[Stream]] = {s.index: [] for s in streams.values()}
    for conv in convs:
        out, inp = streams.get(conv.out), streams.get(conv.inp)
        if out is not None and inp is not None and not conv.depthwise:
            outputs[inp.index].append(out)
            if not inp.concatenated:
                inputs[out.index].append(inp)
    result: list[Stream] = []
    for stream in streams.values():
        sides = [] if stream.concatenated else inputs[stream.index] + outputs[stream.index]
        base = next((side for side in sides if _is_multiple(stream, side)), None)
        if base is not None:
            stream = replace(stream, base=base.index, ratio=stream.width // base.width)
        result.append(stream)
    return tuple(result)


def _is_multiple(wide: Stream, narrow: Stream) -> bool:
    """Whether one width is a multiple of the other by design."""
    ratio, rest = divmod(wide.width, narrow.width)
    same = wide.macroblock == narrow.macroblock
    return same and rest == 0 and 1 < ratio <= LARGEST_RATIO and narrow.width >= SMALLEST_BASE


def find_segments(choices: Choices, convs: Sequence[Conv]) -> tuple[list[Segment], tuple[Cell, ...]]:
    """Opaque segments, and the cells with the segment they belong to."""
    home: dict[int, int] = {}
    for conv in convs:
        for cell in conv.out.cells if not conv.depthwise else ():
            home.setdefault(cell, conv.macroblock)
    groups: list[set[int]] = []
    for conv in convs:
        meeting = [c for c in (*conv.out.cells, *conv.inp.cells) if c in choices.opaque_cells]
        for macroblock in {home[c] for c in meeting}:
            touched = {c for c in meeting if home[c] == macroblock}
            for other in [g for g in groups if g & touched]:
                groups.remove(other)
                touched |= other
            groups.append(touched)
    segments: list[Segment] = []
    cells = list(choices.cells)
    for number, group in enumerate(sorted(groups, key=min)):
        where = {home[cell] for cell in group}
        inside = [c for c in convs if not c.depthwise and c.macroblock in where and group.intersection(c.out.cells)]
        for cell in group:
            cells[cell] = replace(cells[cell], segment=number, step=choices.parts.get((cell,), 1))
        names = [c.target for c in inside]
        reason = "channels are interleaved (shuffle, grouped convolution): counted, not followed"
        segments.append(Segment(number, _common(names), reason, tuple(c.name for c in inside), tuple(names)))
    return segments, tuple(cells)


def _common(paths: list[str]) -> str:
    """The modules that paths have in common, or first to last."""
    parts = [p.split(".") for p in paths]
    shared = [level[0] for level in zip(*parts, strict=False) if len(set(level)) == 1]
    return ".".join(shared) or f"{paths[0]} ... {paths[-1]}"
