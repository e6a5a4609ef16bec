"""Networks for the tests: those that torchvision lacks, and the paper's networks at any widths.

- Nothing here knows of mbs_fx: a network built at the paper's widths is an independent oracle for the
  parameters and for every width of a rewritten one.
- Module paths are those of the network that gets rewritten (torchvision's names for torchvision's networks),
  so that widths can be compared path by path.
- ``widths`` are one number per stage, in the order of the paper's "configuration".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.densenet import _DenseBlock, _Transition
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import Conv2dNormActivation


def conv_bn(in_width: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (up to its stride), BatchNorm, ReLU."""
    conv = nn.Conv2d(in_width, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def conv_widths(net: nn.Module) -> dict[str, int]:
    """Output width of every convolution and linear layer, by module path."""
    return {
        path: module.out_features if isinstance(module, nn.Linear) else module.out_channels
        for path, module in net.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.Linear)
    }


def mobilenet_v1(
    widths: Sequence[int] = (32, 64, 128, 256, 512, 1024), multiplier: float = 1.0, classes: int = 1000
) -> nn.Sequential:
    """MobileNet (Howard et al., 2017): 3x3 stem, 13 depthwise separable blocks; 4.23 million parameters."""
    stem, *rest = (max(8, int(width * multiplier)) for width in widths)
    a, b, c, d, e = rest
    blocks = [(a, 1), (b, 2), (b, 1), (c, 2), (c, 1), (d, 2), *[(d, 1)] * 5, (e, 2), (e, 1)]
    layers, last = [conv_bn(3, stem, 3, 2)], stem
    for width, stride in blocks:
        depthwise = conv_bn(last, last, 3, stride, groups=last)
        layers.append(nn.Sequential(*depthwise, *conv_bn(last, width, 1)))
        last = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))


class ShuffleUnit(nn.Module):
    """ShuffleNet v1 unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; stride 2 appends the input."""

    def __init__(self, in_width: int, width: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        middle = width // 4
        new = width - in_width if stride == 2 else width
        self.conv1 = nn.Conv2d(in_width, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, new, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(new)
        self.stride = stride
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        n, c, h, w = out.size()
        out = out.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        out = self.bn3(self.conv3(self.bn2(self.conv2(out))))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), out], 1))
        return F.relu(x + out)


def shufflenet_v1(widths: Sequence[int] = (24, 240, 480, 960), groups: int = 3, classes: int = 1000) -> nn.Sequential:
    """ShuffleNet (Zhang et al., 2017), g = 3; 1.8657 million parameters at full width.

    The first 1x1 convolution of stage 2 is not grouped, since its input has only 24 channels.
    """
    net = OrderedDict(stem=conv_bn(3, widths[0], 3, 2), pool=nn.MaxPool2d(3, 2, 1))
    last = widths[0]
    for stage, (width, repeats) in enumerate(zip(widths[1:], (4, 8, 4), strict=True), 2):
        units = [ShuffleUnit(last, width, 2, groups, 1 if stage == 2 else groups)]
        units += [ShuffleUnit(width, width, 1, groups, groups) for _ in range(repeats - 1)]
        net[f"stage{stage}"], last = nn.Sequential(*units), width
    net |= {"head": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(last, classes)}
    return nn.Sequential(net)


def resnet(depth: int, widths: Sequence[int]) -> nn.Sequential:
    """torchvision's ResNet-18, 34, 50 or 101 at four stage widths; bottlenecks expand by 4."""
    block = BasicBlock if depth < 50 else Bottleneck
    repeats = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    stem = conv_bn(3, widths[0], 7, 2)
    net = OrderedDict(conv1=stem[0], bn1=stem[1], relu=stem[2], maxpool=nn.MaxPool2d(3, 2, 1))
    last = widths[0]
    for stage, (width, count) in enumerate(zip(widths, repeats, strict=True), 1):
        out, stride, blocks = width * block.expansion, 1 if stage == 1 else 2, []
        for index in range(count):
            step = stride if index == 0 else 1
            shortcut = None if (last, step) == (out, 1) else conv_bn(last, out, 1, step)[:2]
            blocks.append(block(last, width, step, shortcut))
            last = out
        net[f"layer{stage}"] = nn.Sequential(*blocks)
    net |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(last, 1000)}
    return nn.Sequential(net)


def densenet121(betas: Sequence[float]) -> nn.Module:
    """torchvision's DenseNet-121 with one factor per block.

    Growth is the rounded-up 32 of the block, bottlenecks are 4 times the growth; a transition makes channels
    for the next block, so it takes that block's factor.
    """
    features, last = OrderedDict[str, nn.Module](), ceil(betas[0] * 64)
    stem = conv_bn(3, last, 7, 2)
    features |= {"conv0": stem[0], "norm0": stem[1], "relu0": stem[2], "pool0": nn.MaxPool2d(3, 2, 1)}
    for index, (layers, designed) in enumerate(zip((6, 12, 24, 16), (128, 256, 512, 0), strict=True)):
        growth = ceil(betas[index] * 32)
        features[f"denseblock{index + 1}"] = _DenseBlock(layers, last, 4, growth, 0.0)
        last += layers * growth
        if designed:
            narrowed = ceil(betas[index + 1] * designed)
            features[f"transition{index + 1}"] = _Transition(last, narrowed)
            last = narrowed
    features["norm5"] = nn.BatchNorm2d(last)
    net = nn.ModuleDict({"features": nn.Sequential(features)})
    net["classifier"] = nn.Linear(last, 1000)
    return net


def mobilenet_v2(widths: Sequence[int], last: int) -> MobileNetV2:
    """torchvision's MobileNetV2 with seven stage widths and the width of the convolution before the pool."""
    repeats = ((1, 1, 1), (6, 2, 2), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))
    setting = [[t, width, n, s] for width, (t, n, s) in zip(widths, repeats, strict=True)]
    net = MobileNetV2(inverted_residual_setting=setting, round_nearest=1)
    net.features[-1] = Conv2dNormActivation(widths[-1], last, kernel_size=1, activation_layer=nn.ReLU6)
    net.classifier[1] = nn.Linear(last, 1000)
    return net


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and an option A shortcut: every second pixel, zeros for the missing channels."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        before = (width - in_width) // 2
        self.stride, self.padding = stride, (before, width - in_width - before)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding)))


def cifar_resnet(depth: int, widths: Sequence[int] = (16, 32, 64)) -> nn.Sequential:
    """The ResNet of 6n + 2 layers for CIFAR-10 at three stage widths."""
    stem = conv_bn(3, widths[0])
    net, last = OrderedDict(conv1=stem[0], bn1=stem[1], relu=stem[2]), widths[0]
    for stage, width in enumerate(widths, 1):
        blocks = [CifarBlock(last, width, 1 if stage == 1 else 2)]
        blocks += [CifarBlock(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
        net[f"layer{stage}"], last = nn.Sequential(*blocks), width
    net |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "linear": nn.Linear(last, 10)}
    return nn.Sequential(net)


class ConstantViewVGG(nn.Module):
    """VGG whose classifier starts with a view of constant width, as in ``x.view(-1, 512 * 7 * 7)``."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64), size: int = 32) -> None:
        super().__init__()
        layers = []
        for in_width, width in zip((3, *widths), widths, strict=False):
            layers += [*conv_bn(in_width, width), *conv_bn(width, width), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.flat = widths[-1] * (size >> len(widths)) ** 2
        self.classifier = nn.Sequential(nn.Linear(self.flat, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).view(-1, self.flat))


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each convolution (He et al., 2016b); the sum itself is not activated."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if in_width == width else nn.Conv2d(in_width, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


def preactivation_resnet(widths: Sequence[int] = (16, 32, 64), blocks: int = 2) -> nn.Sequential:
    """A pre-activation ResNet: bare stem, blocks, and a last BatchNorm and ReLU before the pool."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)]
    last = widths[0]
    for stage, width in enumerate(widths):
        for index in range(blocks):
            layers.append(PreActivationBlock(last, width, 2 if stage and index == 0 else 1))
            last = width
    tail = (nn.BatchNorm2d(last), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10))
    return nn.Sequential(*layers, *tail)


class UNet(nn.Module):
    """Encoder and decoder of three sizes; the skips are concatenated, or added where ``adding``."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64), adding: bool = False) -> None:
        super().__init__()
        a, b, c = widths
        merged = 1 if adding else 2
        self.down1 = nn.Sequential(*conv_bn(3, a), *conv_bn(a, a))
        self.down2 = nn.Sequential(*conv_bn(a, b), *conv_bn(b, b))
        self.bottom = nn.Sequential(*conv_bn(b, c), *conv_bn(c, c))
        self.up2 = nn.ConvTranspose2d(c, b, 2, 2)
        self.merge2 = conv_bn(merged * b, b)
        self.up1 = nn.ConvTranspose2d(b, a, 2, 2)
        self.merge1 = conv_bn(merged * a, a)
        self.head = nn.Conv2d(a, 2, 1)
        self.adding = adding

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.down1(x)
        skip2 = self.down2(F.max_pool2d(skip1, 2))
        up2 = self.up2(self.bottom(F.max_pool2d(skip2, 2)))
        x = self.merge2(up2 + skip2 if self.adding else torch.cat([up2, skip2], 1))
        up1 = self.up1(x)
        return self.head(self.merge1(up1 + skip1 if self.adding else torch.cat([up1, skip1], 1)))
