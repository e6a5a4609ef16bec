"""The networks that the CIFAR-10 comparisons train: the original, and three ways to make it smaller.

- ``mbs``: the paper's method.  Densities are measured on training images through the trained original.
- ``uniform``: every layer scaled by the same factor, the one that comes nearest to the parameters MBS leaves
  (the paper's alpha-scaling at equal size).
- ``torch-pruning``: `MagnitudePruner` of Torch-Pruning with its group importance, at the ratio that comes nearest
  to the same size.  It prunes 16 of 32 padded channels into shapes that do not fit, so that here the padding
  shortcuts are given to it as fixed 1 x 1 convolutions, which compute the same; they are neither trained nor
  counted.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from cifar import load, normalise
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import mbs_fx
from mbs_fx import sample
from mbs_fx.sample.resnet import BasicBlock, ResNet


@dataclass(frozen=True)
class Subject:
    """A network to train, with what is said about it in the results."""

    net: nn.Module
    params: int
    flops: int
    widths: list[int]


def original(depth: int, folder: Path | None) -> ResNet:
    """The trained network: ``cifar10_resnet<depth>.safetensors`` in ``folder``, or the ResNet-20 that is shipped."""
    if folder is None:
        if depth != 20:
            raise SystemExit(f"--originals: only ResNet-20 is shipped; train resnet{depth} first, or name a folder")
        return sample.trained()
    net = sample.resnet(depth)
    state = load_file(folder / f"cifar10_resnet{depth}.safetensors")
    found = net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    odd = [k for k in found.missing_keys if not k.endswith("num_batches_tracked")] + found.unexpected_keys
    if odd:
        raise SystemExit(f"{folder}: the weights are of another network: {', '.join(odd[:3])}")
    return net.eval()


@cache
def traced(depth: int, folder: Path | None) -> tuple[GraphModule, mbs_fx.Analysis]:
    """The trained original as a graph, analysed."""
    gm = mbs_fx.trace(original(depth, folder), torch.zeros(1, 3, 32, 32))
    return gm, mbs_fx.analyze(gm, (1, 3, 32, 32))


@cache
def mbs_plan(depth: int, folder: Path | None, data: Path, k: float) -> mbs_fx.Plan:
    """The paper's plan at z = k L, from 5,000 training images."""
    gm, analysis = traced(depth, folder)
    images = normalise(load(data, train=True)[0][:5000])
    return mbs_fx.plan(analysis, mbs_fx.measure(gm, images, confidence=None), z=k)


def whole_plan(analysis: mbs_fx.Analysis) -> mbs_fx.Plan:
    """The original's own widths: what `planned` gives fresh weights, drawn as those of the smaller networks are."""
    return mbs_fx.plan(analysis, keep=[conv.target for conv in analysis.convs])


def uniform_plan(analysis: mbs_fx.Analysis, params: int | None = None, flops: int | None = None) -> mbs_fx.Plan:
    """One factor for all macroblocks, with parameters nearest to ``params``, or multiply-adds to ``flops``."""
    indices = [block.index for block in analysis.macroblocks]

    def at(permille: int) -> mbs_fx.Plan:
        return mbs_fx.plan(analysis, betas=dict.fromkeys(indices, permille / 1000))

    def distance(plan: mbs_fx.Plan) -> int:
        return abs(plan.flops[1] - flops) if params is None and flops else abs(plan.params[1] - (params or 0))

    return min((at(permille) for permille in range(300, 1001, 4)), key=distance)


def planned(
    plan: mbs_fx.Plan, depth: int, folder: Path | None, init: str, seed: int, images: Tensor | None = None
) -> Subject:
    """What `mbs_fx.rewrite` makes of the original under ``plan``; ``init`` is "fresh" or "inherited".

    With ``images``, the channels that stay are chosen on them and the inherited weights reconstructed.
    """
    gm, analysis = traced(depth, folder)
    torch.manual_seed(seed)
    plan = plan if images is None else mbs_fx.choose_channels(gm, plan, images)
    net = mbs_fx.rewrite(gm, plan, init="fresh" if init == "fresh" else "inherit")
    net = net if images is None else mbs_fx.reconstruct(net, gm, images)
    widths = [plan.widths[c.target] for c in analysis.convs if c.target.endswith("0.conv1")]
    return Subject(net, plan.params[1], plan.flops[1], widths)


class ConvShortcut(nn.Module):
    """A residual block whose padding shortcut is a fixed convolution."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        narrow, wide = block.conv1.in_channels, block.conv1.out_channels
        self.shortcut = nn.Conv2d(narrow, wide, 1, block.stride, bias=False)
        weight = F.pad(torch.eye(narrow), (0, 0, block.pad, block.pad))
        self.shortcut.weight = nn.Parameter(weight[:, :, None, None], requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


def with_convolutions(depth: int, folder: Path | None) -> ResNet:
    """The original with convolutions for padding shortcuts; it computes the same."""
    base = original(depth, folder)
    for stage in (base.layer2, base.layer3):
        stage[0] = ConvShortcut(stage[0])
    return base


def pruned(params: int, depth: int, folder: Path | None, images: Tensor) -> Subject:
    """The original pruned by Torch-Pruning to nearest ``params``; weights inherited."""
    import torch_pruning as tp

    base = with_convolutions(depth, folder)

    def at(ratio: float) -> nn.Module:
        net = deepcopy(base)
        net.requires_grad_(True)
        tp.pruner.MagnitudePruner(
            net,
            images[:1],
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=[net.linear],
        ).step()
        for name, p in net.named_parameters():
            p.requires_grad_("shortcut" not in name)
        return net

    def size(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters() if p.requires_grad)

    low, high = 0.0, 0.7
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if size(at(middle)) > params else (low, middle)
    net = min(map(at, (low, high)), key=lambda net: abs(size(net) - params))
    analysis = mbs_fx.analyze(mbs_fx.trace(net.eval(), images[:1]), (1, 3, 32, 32))
    counted = [c for c in analysis.convs if "shortcut" not in c.target]
    widths = [c.width for c in counted if c.target.endswith("0.conv1")]
    return Subject(net, size(net), sum(c.flops for c in counted), widths)
