"""The analysis pass: shapes, geometry, labels, macroblocks and widths of a traced graph, as one value.

Semantics
- Nothing is computed: shapes come from fake tensors, channels from labels.  The graph is not changed.
- Conv layers are learned convolutions, functional ones and pointwise linear layers on channels-last feature maps
  included.
- The last result is remembered per `GraphModule` and dropped with it; a graph that changed since, or that calls
  other modules, is analyzed again.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

import mbs_fx.geometry.propagation as geo
from mbs_fx.channels.flow import Flow
from mbs_fx.channels.kept_outputs import Outputs, names_of
from mbs_fx.channels.label_pass import run
from mbs_fx.errors import MBSError
from mbs_fx.macroblocks.activations import pair
from mbs_fx.macroblocks.cells import Choices, choose
from mbs_fx.macroblocks.feature_maps import feature_maps, saved_tensors, widths_of
from mbs_fx.macroblocks.membership import Place, bindings, bound_place, class_key, order, own_place, unit_exits
from mbs_fx.macroblocks.opaque import forced, opaque_paths
from mbs_fx.macroblocks.operations import operations
from mbs_fx.macroblocks.requirements import require_unquantised, why_no_convolution
from mbs_fx.macroblocks.streams import find_segments, find_streams
from mbs_fx.operations.register import changes
from mbs_fx.results.analysis import Analysis, Conv, Geometry, Macroblock, Segment
from mbs_fx.runtime.garbage_collection import collector_paused
from mbs_fx.shapes.graph_inputs import ExampleLike, Inputs, Name, Shapes, arguments_of, inputs_of, require_graph
from mbs_fx.shapes.shapes import infer, typed
from mbs_fx.tracing.autograd import AutogradFunction
from mbs_fx.tracing.leaves import is_layer


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """An analysis together with the labels behind it, which `rewrite` needs."""

    analysis: Analysis
    flow: Flow
    choices: Choices


_CACHE: weakref.WeakKeyDictionary[GraphModule, tuple[Hashable, Facts]] = weakref.WeakKeyDictionary()


def analyze(
    gm: GraphModule,
    example: ExampleLike = None,
    *,
    opaque: Iterable[str | type[nn.Module]] = (),
    strict: bool = False,
    outputs: Outputs = None,
) -> Analysis:
    """Find size, stride, receptive field and flops of every node, macroblocks, and what widths can be chosen.

    Args:
        gm: a traced graph whose leaves are modules (`mbs_fx.trace`, `torch.fx.symbolic_trace`, others').
        example: an input tensor, its shape, or one per input, which may be a list or dict of these; None where the
            graph knows its inputs, traced with an example (`mbs_fx.trace`), after ShapeProp, or made by `rewrite`.
        opaque: modules to scale as a whole, by class or by regular expression on the module path.
        strict: an operation through which channels cannot be followed is an error; otherwise the widths that
            enter it are kept, and `Analysis.kept` says why.
        outputs: those that someone reads, by position or key; a tuple names a nested one.  The channels of the others
            may be removed.  None keeps the channels of all outputs.

    Raises:
        MBSError: no shape is known, the input does not fit, or the graph has no convolution.

    """
    inputs = inputs_of(gm, example)
    found = facts(
        gm, inputs.shapes, opaque_paths(gm, opaque) if opaque else (), inputs.types, inputs.names, names_of(outputs)
    )
    if strict and found.flow.refused:
        first, *rest = dict.fromkeys(found.flow.refused)
        more = f" (and {len(rest)} more)" if rest else ""
        raise MBSError(
            f"{first}{more}: channels cannot be followed through it. Without strict=True they keep their width; "
            "docs/rules.md shows how to add a rule"
        )
    return found.analysis


def facts(
    gm: GraphModule,
    shapes: Shapes,
    opaque: tuple[str, ...] = (),
    types: tuple[str, ...] = (),
    names: tuple[Name, ...] = (),
    outputs: tuple[Name, ...] | None = None,
) -> Facts:
    """Analysis and labels of a graph, remembered until the graph changes.

    ``opaque`` are module paths, ``outputs`` ways to the outputs that stay; shapes, types and names are those of
    `mbs_fx.shapes.graph_inputs.Inputs`.
    """
    require_graph(gm)
    print_ = _fingerprint(gm, shapes, opaque)
    key = print_, _held(gm), changes(), types, names, outputs
    known = _CACHE.get(gm)
    if known is None or known[0] != key:
        known = _CACHE[gm] = key, _facts(gm, Inputs(shapes, types, names), opaque, outputs, print_)
    return known[1]


def _held(gm: GraphModule) -> Hashable:
    """The modules that a graph calls, with their settings: replacing or changing one makes another network."""
    modules = dict(gm.named_modules(remove_duplicate=False))
    called = dict.fromkeys(str(node.target) for node in gm.graph.nodes if node.op == "call_module")
    held = (modules[target] for target in called)
    return tuple((id(module), module.training, module.extra_repr()) for module in held)


def _fingerprint(gm: GraphModule, shapes: Shapes, opaque: tuple[str, ...]) -> str:
    """Changes when the graph, a module it calls, or a parameter's shape changes."""
    digest = hashlib.sha256(repr((shapes, opaque)).encode())
    for node in gm.graph.nodes:
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
    for name, tensor in gm.state_dict(keep_vars=True).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    return digest.hexdigest()[:16]


@collector_paused()
def _facts(
    gm: GraphModule, inputs: Inputs, opaque: tuple[str, ...], outputs: tuple[Name, ...] | None, print_: str
) -> Facts:
    require_unquantised(gm)
    values = infer(gm, arguments_of(inputs.names, typed(inputs.shapes, inputs.types)))
    image = geo.image_of(gm, values)
    located, notes = geo.propagate(gm, values, image)
    flow = run(gm, values, outputs)
    layers = [node for node in gm.graph.nodes if node.name in flow.mixers and _is_conv(flow, node, located)]
    if not layers:
        raise MBSError(why_no_convolution(gm))
    names = [node.name for node in layers]
    choices = choose(flow, names, forced(gm, opaque) if opaque else None)
    analysis = _assemble(
        flow, choices, layers, {name: found.geometry.plain() for name, found in located.items()}, image
    )
    analysis = replace(
        analysis,
        input_shapes=inputs.shapes,
        input_types=inputs.types,
        input_names=inputs.names,
        notes=(*gm.meta.get("mbs_notes", ()), *notes, *flow.notes.values()),
        opaque=opaque,
        outputs=outputs,
        fingerprint=print_,
    )
    return Facts(analysis, flow, choices)


def _is_conv(flow: Flow, node: Node, located: dict[str, geo.Located]) -> bool:
    """Whether a mixer is a conv layer; one on constants (a position code) has no receptive field."""
    if node.name in located and not located[node.name].geometry.receptive_field:
        return False
    if geo.conv_kind(flow.gm, node, flow.shapes) is not None:
        return node.name in located
    module = flow.modules.get(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, nn.Linear) and node.name in located and len(flow.shape(node)) > 3


def _assemble(
    flow: Flow,
    choices: Choices,
    layers: list[Node],
    geometry: dict[str, Geometry],
    image: geo.Image,
) -> Analysis:
    exits = unit_exits(flow)
    outs = {node.name: flow.mixers[node.name].out for node in layers}
    activations, pairs = pair(flow, outs, choices.hard)
    own = {name: own_place(name, geometry, exits) for name in outs}
    bound = {name: place for name, place in _bound(flow, choices, outs, geometry).items() if place is not None}
    depthwise = {name for name in outs if flow.mixers[name].depthwise}
    places = {n: own[n] if n in depthwise else bound.get(n, own[n]) for n in outs}
    index = {place: i for i, place in enumerate(sorted(set(places.values()), key=order))}
    convs = tuple(
        _conv(flow, choices, node, geometry[node.name], index[places[node.name]], pairs, image.batch) for node in layers
    )
    streams = find_streams(flow, choices, convs, {name: index[place] for name, place in bound.items()})
    segments, cells = find_segments(choices, convs)
    macroblocks = tuple(
        _macroblock(place, i, convs, segments) for place, i in sorted(index.items(), key=lambda item: item[1])
    )
    saved = saved_tensors(flow.gm)
    return Analysis(
        input_shapes=(),
        input_size=image.size or (1,),
        image=image.index,
        image_axes=image.axes,
        geometry=geometry,
        convs=convs,
        activations=activations,
        macroblocks=macroblocks,
        cells=cells,
        streams=streams,
        tensors=widths_of(flow, choices, {n: t for n, t in saved.items() if isinstance(t, nn.Parameter)}),
        kept=_kept(flow, choices, convs),
        buffers=widths_of(flow, choices, {n: t for n, t in saved.items() if not isinstance(t, nn.Parameter)}),
        element_bytes={name: tensor.element_size() for name, tensor in saved.items()},
        maps=feature_maps(flow, choices, geometry),
        operations=operations(flow),
        leaves=_leaves(flow),
        name=_name(flow.gm),
    )


def _name(gm: GraphModule) -> str:
    """The class that was traced, where the graph knows it."""
    name = gm._get_name()
    return "" if name.startswith("GraphModule") else name


def _leaves(flow: Flow) -> tuple[str, ...]:
    """The model's modules that the graph calls and that are not layers of torch.nn."""
    called = dict.fromkeys(str(node.target) for node in flow.gm.graph.nodes if node.op == "call_module")
    own = (path for path in called if not isinstance(flow.modules[path], AutogradFunction))
    return tuple(path for path in own if not is_layer(type(flow.modules[path])))


def _bound(
    flow: Flow, choices: Choices, outs: dict[str, Any], geometry: dict[str, Geometry]
) -> dict[str, Place | None]:
    """Where the channels of each convolution are first bound (rule 2)."""
    found = bindings(flow, choices.hard)
    return {
        name: bound_place(found.get(class_key(out, choices.hard), []), geometry, geometry[name].upsampled)
        for name, out in outs.items()
    }


def _conv(
    flow: Flow, choices: Choices, node: Node, place: Geometry, macroblock: int, pairs: dict[str, Any], batch: int
) -> Conv:
    held = flow.mixers[node.name]
    return Conv(
        name=node.name,
        target=held.path or node.name,
        spatial_size=place.spatial_size,
        stride=place.stride,
        receptive_field=place.receptive_field,
        flops=int(geo.flops(flow.gm, node, flow.shapes, batch)),
        width=len(held.out),
        in_width=len(held.inp),
        groups=int(held.groups),
        macroblock=macroblock,
        out=choices.width(held.out),
        inp=choices.width(held.inp),
        activations=pairs[node.name],
    )


def _macroblock(place: Place, number: int, convs: tuple[Conv, ...], segments: list[Segment]) -> Macroblock:
    inside = tuple(c.name for c in convs if c.macroblock == number)
    held = tuple(s for s in segments if set(s.nodes) & set(inside))
    return Macroblock(number, place[1], inside, held, place[0])


def _kept(flow: Flow, choices: Choices, convs: tuple[Conv, ...]) -> dict[str, str]:
    """Layers that keep their width, each with the reason."""
    reasons = flow.reasons
    kept = {c.target: reasons.get(c.name) or choices.reason(flow.mixers[c.name].out) for c in convs if not c.out.terms}
    names = {c.name for c in convs}
    for name, held in flow.mixers.items():
        if name not in names and held.path and not choices.width(held.out).terms:
            reason = reasons.get(name) or choices.reason(held.out)
            linear = isinstance(flow.modules.get(held.path), nn.Linear)
            own = "a linear layer, not a convolution" if linear else "does not depend on the input image"
            kept[held.path] = reason if "no convolution" not in reason else own
    return kept
