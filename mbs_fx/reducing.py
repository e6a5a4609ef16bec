"""The whole of macroblock scaling in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, IterableDataset

from mbs_fx.channels.kept_outputs import Outputs
from mbs_fx.density.batches import Signature
from mbs_fx.density.measure import measure
from mbs_fx.density.pixels import first_item, prepared
from mbs_fx.errors import MBSError
from mbs_fx.folder import Preparation
from mbs_fx.macroblocks.analyze import analyze
from mbs_fx.planning.overrides import Key
from mbs_fx.planning.plan import plan
from mbs_fx.results.density import Density
from mbs_fx.results.plan import Plan
from mbs_fx.rewriting.carried_plan import carry_accuracy, plan_in
from mbs_fx.rewriting.latency import latency_of
from mbs_fx.rewriting.resizing import Init
from mbs_fx.rewriting.rewrite import check_words, rewrite_traced
from mbs_fx.rewriting.selection import BY_IMAGES, Criterion
from mbs_fx.rewriting.traced_forward import require_own_forward
from mbs_fx.runtime.devices import block
from mbs_fx.shapes.graph_inputs import ExampleLike
from mbs_fx.tracing.example import place_and_dtype
from mbs_fx.tracing.given_forward import whole
from mbs_fx.tracing.trace import trace

Model = TypeVar("Model", bound=nn.Module)

RECONSTRUCTED = 512
"""Images to reconstruct from, where they can be read only once."""

READING = ("batch_size", "workers", "seed")
"""Arguments of `measure` that say how images are read again."""

Loss = Callable[[Any, Any], Tensor]


def reduce(
    model: Model,
    images: Any = None,
    *,
    example: ExampleLike = None,
    z: float | None = None,
    preparation: Preparation | None = None,
    density: Density | None = None,
    init: Init = "inherit",
    criterion: Criterion | None = None,
    loss: Loss | None = None,
    reconstruct: bool | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    opaque: Iterable[str | type[nn.Module]] = (),
    outputs: Outputs = None,
    device: torch.device | str | None = None,
    betas: Mapping[Any, float] | None = None,
    widths: Mapping[Any, int] | None = None,
    keep: Key | Iterable[Key] = (),
    round_to: int | Literal["auto"] = 1,
    min_width: int = 1,
    max_params: float | str | None = None,
    max_flops: float | str | None = None,
    max_bytes: float | str | None = None,
    max_latency_ms: float | str | None = None,
    **measuring: Any,
) -> Model:
    """Trace, analyze, measure, plan and rewrite: a new, trainable, smaller network.

    Args:
        model: a traced graph or an ``nn.Module``, in eval mode where images are given; not changed.  A network that
            was reduced before is reduced further; its plan stays one of the original.
        images: any iterable of batches, a ``DataLoader``, or a map-style dataset; with ``preparation`` also pixels, as
            for `measure`.  None takes densities as equal (p = 1); then the input's shape must be known from
            ``example`` or the graph.
        example: an input tensor or its shape.
        z: the threshold in multiples of the input size, 1 where nothing else is said.
        preparation: how pixels become what the network was trained on: `mbs_fx.Preparation`.
        density: an earlier measurement of this graph; None takes the one that the graph carries, if any
            (`mbs_fx.passes.Measure` leaves it in ``gm.meta["mbs_density"]``).
        init: as for `rewrite`.
        criterion: as for `rewrite`, or for `mbs_fx.choose_channels` ("readers", "activation", "taylor") on the images;
            None is "readers" where the weights are reconstructed, else "l1".
        loss: for "taylor", as for `mbs_fx.choose_channels`; the images are then batches (images, targets).
        reconstruct: refit the inherited weights to the original on the images (`mbs_fx.reconstruct`); None does so
            where images are given and weights are inherited, and notes in the plan where it cannot.
        evaluate: called on the original, on the small network with inherited weights and with reconstructed ones; the
            numbers that it gives stand in the plan's ``accuracy``, by these names ("before" for a model that was
            reduced before).  `mbs_fx.accuracy` counts right answers.
        opaque: as for `analyze`.
        outputs: as for `analyze`.
        device: where to measure densities and latency; None where the parameters are.
        betas: as for `plan`, like everything down to ``max_bytes``.
        widths: see ``betas``.
        keep: see ``betas``.
        round_to: see ``betas``; "auto" takes the block of ``device`` and the model's type (`mbs_fx.runtime.devices`).
        min_width: see ``betas``.
        max_params: see ``betas``.
        max_flops: see ``betas``.
        max_bytes: see ``betas``.
        max_latency_ms: the most milliseconds for one image on ``device``, or a share of the original's; candidates
            are built and timed.
        measuring: further arguments of `measure`.

    Returns:
        The small network, of the model's own class; ``meta["mbs"]`` is its `Plan`, which prints as the paper's table.

    """
    if images is not None and density is not None:
        raise MBSError("reduce: give images or a density, not both")
    possible = images is not None and init == "inherit"
    _check(possible, init, criterion, loss, reconstruct)
    if images is not None:
        images = prepared(images, preparation, first_item(images), takes_whole_numbers(model))
    if images is not None and example is None:
        images, example = peek(images, model)
    images, again = _readable_twice(images) if possible else (images, None)
    gm = traced(model, example)
    analysis = analyze(gm, example, opaque=opaque, outputs=outputs)
    if images is not None:
        density = measure(gm, images, analysis=analysis, z=1.0 if z is None else z, device=device, **measuring)
    elif density is None:
        density = gm.meta.get("mbs_density")
    if round_to == "auto":
        place, dtype = place_and_dtype(gm)
        round_to = block(place if device is None else torch.device(device), dtype)
    made = plan(
        analysis,
        density,
        z,
        betas=betas,
        widths=widths,
        keep=keep,
        round_to=round_to,
        min_width=min_width,
        max_params=max_params,
        max_flops=max_flops,
        max_bytes=max_bytes,
        max_latency_ms=max_latency_ms,
        latency=None if max_latency_ms is None else latency_of(gm, device=device),
    )
    if criterion in BY_IMAGES:
        made, criterion = _chosen(gm, made, again, device, measuring, criterion=criterion, loss=loss), "l1"
    if not possible or reconstruct is False:
        small = rewrite_traced(model, gm, made, init, criterion or "l1")
        return _evaluated(evaluate, model, {"inherited" if init == "inherit" else "fresh": small})
    networks = _reconstructed(model, gm, made, criterion, again, device, measuring, bool(reconstruct))
    return _evaluated(evaluate, model, networks)


def _check(
    possible: bool, init: Init, criterion: Criterion | None, loss: Loss | None, reconstruct: bool | None
) -> None:
    check_words(init, criterion or "l1")
    inherited = 'needs images, and weights that are inherited (init="inherit")'
    if reconstruct and not possible:
        raise MBSError(f"reduce: reconstruct=True {inherited}")
    if criterion in BY_IMAGES and not possible:
        raise MBSError(f"reduce: criterion={criterion!r} {inherited}")
    if loss is not None and criterion != "taylor":
        raise MBSError('reduce: loss= is for criterion="taylor": say so, or leave it out')


def _chosen(
    gm: GraphModule,
    made: Plan,
    images: Any,
    device: torch.device | str | None,
    measuring: Mapping[str, Any],
    **choosing: Any,
) -> Plan:
    """The plan with the channels that stay, chosen on images."""
    from mbs_fx.reconstruction.choice import choose_channels

    return choose_channels(gm, made, images, device=device, **_said(measuring, READING), **choosing)


def _said(measuring: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: measuring[name] for name in names if name in measuring}


def _reconstructed(
    model: Model,
    gm: GraphModule,
    made: Plan,
    criterion: Criterion | None,
    images: Any,
    device: torch.device | str | None,
    measuring: Mapping[str, Any],
    asked: bool,
) -> dict[str, Model]:
    """The planned network with channels chosen on images, as it inherits its weights and with refitted ones.

    Where the images do not serve and nobody ``asked`` for it, only the first, and the plan says why.
    """
    from mbs_fx.reconstruction.reconstruct import reconstruct

    reading = _said(measuring, (*READING, "progress", "timeout"))
    try:
        chosen = made if criterion else _chosen(gm, made, images, device, measuring)
        inherited = rewrite_traced(model, gm, chosen, "inherit", criterion or "l1")
        small = reconstruct(inherited, gm, images, device=device, **reading)
    except MBSError as error:
        if asked:
            raise
        made = replace(made, notes=(*made.notes, f"weights are inherited and not reconstructed: {error}"))
        return {"inherited": rewrite_traced(model, gm, made, "inherit", criterion or "l1")}
    return {"inherited": inherited, "reconstructed": small}


def _evaluated(evaluate: Callable[[nn.Module], float] | None, model: nn.Module, networks: Mapping[str, Any]) -> Any:
    """The last of the networks, with what ``evaluate`` says of the model and of every one of them."""
    model, networks = whole(model), {name: whole(network) for name, network in networks.items()}
    small = list(networks.values())[-1]
    if isinstance(small, GraphModule):
        type(small)._repr_html_ = _plan_html  # pyright: ignore[reportAttributeAccessIssue] - each graph has its class
    if evaluate is not None:
        first = "original" if plan_in(model) is None else "before"
        carry_accuracy(small, {name: float(evaluate(net)) for name, net in {first: model, **networks}.items()})
    return small


def _readable_twice(images: Any) -> tuple[Any, Any]:
    """Images to measure on, and images to reconstruct from: the first ones of what can be read only once."""
    if not isinstance(images, Iterator):
        return images, images
    held: list[Any] = []
    count = 0
    for item in images:
        held.append(item)
        found = _images_in(item)
        count += len(found[0]) if found and found[0].dim() > 3 else 1
        if count >= RECONSTRUCTED:
            break
    return chain(held, images), held


def takes_whole_numbers(model: nn.Module) -> bool:
    """Whether pixels may be what the network takes as they are, or nobody can tell yet."""
    known = Signature.of(model) if isinstance(model, GraphModule) else None
    return known is None or known.whole or known.several


def _plan_html(small: GraphModule) -> str:
    """A reduced network in a notebook: the table of its plan."""
    return small.meta["mbs"]._repr_html_()


def traced(model: nn.Module, example: ExampleLike) -> GraphModule:
    """The model as a graph that knows the plan which the model was made by, if any."""
    if isinstance(model, GraphModule):
        return model
    require_own_forward(model)
    gm = trace(model, example)
    earlier = plan_in(model)
    if earlier is not None:
        gm.meta["mbs"] = earlier
    return gm


def peek(images: Any, model: nn.Module) -> tuple[Any, ExampleLike]:
    """The images, unread, and the first of them as an example of the inputs."""
    if isinstance(images, Iterator):
        first = next(images, None)
        images = chain([first], images)
    elif isinstance(images, DataLoader | IterableDataset) or not hasattr(images, "__getitem__"):
        first = next(iter(images), None)
    else:
        there = (item for i in range(len(images)) if (item := images[i]) is not None)
        first = images[:2] if isinstance(images, Tensor) else next(there, None)
    if isinstance(model, GraphModule) and (known := Signature.of(model)).several:
        return images, known.example(first)
    tensors = _images_in(first)
    tensor = next((t for t in tensors if t.is_floating_point()), next(iter(tensors), None))
    if tensor is None:
        raise MBSError("images: nothing in there is a batch of images (a tensor N x C x H x W)")
    return images, tensor[:2] if tensor.dim() > 3 else tensor.unsqueeze(0)


def _images_in(item: Any) -> list[Tensor]:
    """The tensors with the axes of an image in a tensor, a pair, or a dict."""
    if isinstance(item, Tensor):
        return [item] if item.dim() > 2 else []
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
    return [found for part in parts for found in _images_in(part)]
