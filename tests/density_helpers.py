"""Small networks, analyses made by hand for them, and an independent way to count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.data import Dataset

from mbs_fx.density.measure import measure
from mbs_fx.results.analysis import Activation, Analysis, Conv, Macroblock, Width
from mbs_fx.results.density import Density

SHAPE = (1, 3, 16, 16)


def graph() -> fx.GraphModule:
    """The small network, traced."""
    return fx.symbolic_trace(small_net())


def whole(gm: fx.GraphModule, images: Any, **settings: Any) -> Density:
    """Everything is read, by the graph itself."""
    settings = {"analysis": chain_analysis(gm, SHAPE), "confidence": None, "fast": False, **settings}
    return measure(gm, images, **settings)


class Pairs(Dataset[tuple[Tensor, int]]):
    """Images with their numbers as labels."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], index


def chain_analysis(gm: fx.GraphModule, shape: tuple[int, ...], kind: str = "relu") -> Analysis:
    """Every convolution with the activation node that comes next in topological order."""
    convs: list[Conv] = []
    activations: dict[str, Activation] = {}
    waiting: list[fx.Node] = []
    for node in gm.graph.nodes:
        module = gm.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            waiting.append(node)
        if is_relu(gm, node):
            activations[node.name] = Activation(node.name, kind, True, 1)
            convs += [_conv(gm, conv, {node.name: None}) for conv in waiting]
            waiting = []
    blocks = (Macroblock(0, (8, 8), tuple(c.name for c in convs)),)
    return Analysis(
        (shape,),
        shape[2:],
        {},
        tuple(convs),
        activations,
        blocks,
        (),
        (),
        {},
        {},
        fingerprint="hand",
        image_axes=(2, 3),
    )


def is_relu(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node applies ReLU in one of its usual spellings."""
    if node.op == "call_module":
        return isinstance(gm.get_submodule(node.target), nn.ReLU | nn.ReLU6)
    return node.op in ("call_function", "call_method") and getattr(node.target, "__name__", node.target) in (
        "relu",
        "relu_",
    )


def _conv(gm: fx.GraphModule, node: fx.Node, activations: dict[str, tuple[int, ...] | None]) -> Conv:
    module = gm.get_submodule(str(node.target))
    assert isinstance(module, nn.Conv2d)
    return Conv(
        name=node.name,
        target=str(node.target),
        spatial_size=(8, 8),
        stride=(1, 1),
        receptive_field=(3, 3),
        flops=1000,
        width=module.out_channels,
        in_width=module.in_channels,
        groups=module.groups,
        macroblock=0,
        out=Width(module.out_channels),
        inp=Width(module.in_channels),
        activations=activations,
    )


class Counting(fx.Interpreter):
    """The oracle: a plain count after every node, one image at a time, with Python integers."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.shares: dict[str, list[float]] = {}
        self.nonzero: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if is_relu(self.module, n):
            assert isinstance(result, Tensor)
            for image in result:
                count = int((image != 0).sum())
                self.shares.setdefault(n.name, []).append(count / image.numel())
                self.nonzero[n.name] = self.nonzero.get(n.name, 0) + count
        return result


def oracle(gm: fx.GraphModule, batches: list[Tensor]) -> Counting:
    """Counts over batches, the slow way."""
    counting = Counting(gm)
    with torch.no_grad():
        for batch in batches:
            counting.run(batch)
    return counting


def small_net() -> nn.Module:
    """Three convolutions with BatchNorm that does something, in eval mode."""
    torch.manual_seed(1)
    net = SmallNet().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net


class SmallNet(nn.Module):
    """conv - norm - relu three times, with a residual addition and a pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3)
        self.norm1, self.norm2, self.norm3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(inplace=True), nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm1(self.conv1(x)))
        x = self.relu2(self.norm2(self.conv2(x)) + x)
        return self.relu3(self.norm3(self.conv3(x))).mean((2, 3))


def rerouted(analysis: Analysis, conv: str, pairs: dict[str, tuple[int, ...] | None]) -> Analysis:
    """The analysis with other activations for one convolution."""
    convs = tuple(replace(c, activations=pairs) if c.name == conv else c for c in analysis.convs)
    return replace(analysis, convs=convs)
