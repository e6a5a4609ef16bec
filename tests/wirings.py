"""Small networks, one for each way in which channels are wired: what the rewrite is tested on."""

import torch
from models import UNet
from torch import nn
from torch.nn import functional as F


def conv(i, o, k=3, **kw):
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


class Net(nn.Module):
    """Stem, something in the middle, head."""

    width = 16

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU())
        self.make()
        self.tail = conv(self.width, 24)
        self.fc = nn.Linear(24, 5)

    def make(self):
        pass

    def forward(self, x):
        x = F.relu(self.tail(self.middle(self.stem(x))))
        return self.fc(x.mean((2, 3)))


class Residual(Net):
    def make(self):
        self.a, self.b = conv(16, 16), conv(16, 16)

    def middle(self, x):
        return x + self.b(torch.relu_(self.a(x)))


class Concatenation(Net):
    width = 40

    def make(self):
        self.a, self.bn = conv(16, 24), nn.BatchNorm2d(40)

    def middle(self, x):
        return self.bn(torch.cat([x, self.a(x)], 1)).relu()


class ChunkGate(Net):
    width = 8

    def make(self):
        self.a = conv(16, 16)

    def middle(self, x):
        a, b = self.a(x).chunk(2, dim=1)
        return a * torch.sigmoid(b)


class SplitSizes(Net):
    width = 16

    def make(self):
        self.a, self.b = conv(16, 16), conv(10, 10)

    def middle(self, x):
        a, b = torch.split(self.a(x), [6, 10], dim=1)
        return torch.cat([a, self.b(b)], 1)


class Slices(Net):
    def make(self):
        self.a = conv(4, 4)

    def middle(self, x):
        return torch.cat([self.a(x[:, :4]), x[:, 4:]], 1)


class ConstantView(Net):
    def make(self):
        self.a = nn.Linear(16 * 8 * 8, 32)
        self.tail2 = nn.Linear(32, 5)

    def forward(self, x):
        x = self.stem(x).view(-1, 16 * 8 * 8)
        return self.tail2(self.a(x).relu())


class SqueezeExcitation(Net):
    def make(self):
        self.down, self.up = conv(16, 4, 1), conv(4, 16, 1)

    def middle(self, x):
        return x * self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()


class Grouped(Net):
    def make(self):
        self.a, self.b = conv(16, 32, groups=4), conv(32, 16, groups=8)

    def middle(self, x):
        return self.b(self.a(x).relu())


class Depthwise(Net):
    width = 32

    def make(self):
        self.a = conv(16, 32, groups=16)

    def middle(self, x):
        return self.a(x).relu()


class Shuffle(Net):
    def make(self):
        self.a, self.b, self.c = conv(16, 16, 1, groups=2), conv(16, 16, groups=16), conv(16, 16, 1, groups=2)

    def middle(self, x):
        y = self.a(x)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x + self.c(self.b(y))


class PixelShuffle(Net):
    width = 4

    def middle(self, x):
        return F.pixel_shuffle(x, 2)


class Transposed(Net):
    width = 12

    def make(self):
        self.a = nn.ConvTranspose2d(16, 12, 2, stride=2)

    def middle(self, x):
        return self.a(x).relu()


class SharedTwice(Net):
    def make(self):
        self.a = conv(16, 16)

    def middle(self, x):
        return self.a(self.a(x).relu()).relu()


class LayerScale(Net):
    def make(self):
        self.a = conv(16, 16)
        self.gamma = nn.Parameter(torch.rand(16, 1, 1))
        self.register_buffer("shift", torch.rand(1, 16, 1, 1))

    def middle(self, x):
        return x + self.gamma * self.a(x) + self.shift


class FunctionalConv(Net):
    def make(self):
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3))
        self.bias = nn.Parameter(torch.randn(16))

    def middle(self, x):
        return F.relu(F.conv2d(x, self.weight, self.bias, padding=1))


class Blur(Net):
    def make(self):
        self.register_buffer("kernel", torch.ones(16, 1, 3, 3) / 9)

    def middle(self, x):
        return F.conv2d(x, self.kernel, stride=2, padding=1, groups=16)


class Radix(Net):
    def make(self):
        self.a, self.fc1, self.fc2 = conv(16, 32), conv(16, 8, 1), conv(8, 32, 1)

    def middle(self, x):
        y = self.a(x).relu()
        n, _, h, w = y.shape
        y = y.reshape(n, 2, 16, h, w)
        gate = self.fc2(self.fc1(y.sum(1).mean((2, 3), keepdim=True)).relu()).view(n, 2, 16, 1, 1).softmax(1)
        return (y * gate).sum(1)


class StackSelect(Net):
    def make(self):
        self.a, self.b = conv(16, 16), conv(16, 16, 5)

    def middle(self, x):
        return torch.stack([self.a(x), self.b(x)], 1).sum(1)


class ChannelsLast(Net):
    def make(self):
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def middle(self, x):
        y = self.norm(x.permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class Norms(Net):
    def make(self):
        self.g, self.i, self.p = nn.GroupNorm(4, 16), nn.InstanceNorm2d(16, affine=True), nn.PReLU(16)

    def middle(self, x):
        return self.p(self.i(self.g(x)))


class Attention(Net):
    def make(self):
        self.q, self.k, self.v = conv(16, 16, 1), conv(16, 16, 1), conv(16, 16, 1)

    def middle(self, x):
        q, k, v = (f(x).flatten(2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)
        return x + (v @ weights.transpose(1, 2)).view(x.shape)


class PadChannels(Net):
    width = 24

    def middle(self, x):
        y = F.pad(x, (0, 0, 0, 0, 4, 4))
        return y + self.a(x)

    def make(self):
        self.a = conv(16, 24)


class Einsum(Net):
    def make(self):
        self.mix = nn.Parameter(torch.randn(16, 16))

    def middle(self, x):
        return torch.einsum("nchw,dc->ndhw", x, self.mix).relu()


class AttentionSizes(Net):
    """Sizes read off the map, and an attention that keeps its width beside it."""

    def make(self):
        self.qkv, self.proj = nn.Linear(16, 36), nn.Linear(12, 16)

    def middle(self, x):
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(n, h * w, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, c - 4)
        return (tokens + self.proj(mixed)).transpose(1, 2).reshape(n, c, h, w) * (c / 16)


class SingleGate(Net):
    """One channel of a convolution gates all of another."""

    def make(self):
        self.a = conv(16, 18)

    def middle(self, x):
        features, gate, other = self.a(x).split([16, 1, 1], 1)
        return x + features * gate.sigmoid() * self.a(x)[:, 3:4] + other


class PickedChannels(Net):
    """Constant indices, a roll and a flip of channels."""

    width = 12

    def make(self):
        self.a = conv(16, 16)
        self.register_buffer("order", torch.tensor([5, 3, 3, 15, 0, 8, 9, 2, 1, 12, 13, 14]))
        self.register_buffer("again", torch.tensor([11, 2, 5, 0, 1, 3, 4, 6, 7, 8, 9, 10]))

    def middle(self, x):
        picked = self.a(x).roll(3, 1).flip(1).index_select(1, self.order)
        return picked[:, self.again].roll((1, -2), (2, 1))


class ReadWeight(Net):
    """The graph reads a tensor of a layer that it also calls."""

    def make(self):
        self.a, self.b = conv(16, 16), conv(16, 16, groups=4)

    def middle(self, x):
        return (x + self.a(x)) * self.a.weight.abs().mean((1, 2, 3)).view(1, -1, 1, 1).to(x.dtype) + self.b(x)


class MadeBySize(Net):
    """Tensors made at the size of the map."""

    width = 32

    def make(self):
        self.a = conv(16, 32, stride=2)

    def middle(self, x):
        n, c, h, w = x.shape
        zeros = torch.zeros(n, self.a.out_channels - c, h // 2, w // 2, dtype=x.dtype)
        made = self.a(x) + torch.cat([F.max_pool2d(x, 2), zeros], 1)
        return made + torch.ones(made.shape, dtype=x.dtype) * made.flatten(2).view(made.shape[:2] + (h // 2, -1))  # noqa: RUF005


class SelectiveKernel(Net):
    def make(self):
        self.a, self.b, self.squeeze, self.gate = conv(16, 16), conv(16, 16, 5), conv(16, 8, 1), conv(8, 32, 1)

    def middle(self, x):
        both = torch.stack([self.a(x), self.b(x)], 1)
        context = self.gate(F.relu(self.squeeze(both.sum(1).mean((2, 3), keepdim=True))))
        return (both * context.view(x.shape[0], 2, both.shape[2], 1, 1).softmax(1)).sum(1)


class Recurrent(Net):
    """One convolution, three times over."""

    def make(self):
        self.a = conv(16, 16)

    def middle(self, x):
        for _ in range(3):
            x = x + F.relu(self.a(x))
        return x


class Standardised(Net):
    """A convolution class that normalises its weight over the inputs of each filter."""

    def make(self):
        class Conv(nn.Conv2d):
            def forward(self, x):
                weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
                return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias, padding=1)

        self.a = Conv(16, 16, 3)

    def middle(self, x):
        return F.relu(self.a(x))


class Pyramid(Net):
    """Three maps, each with the next coarser one added to it (FPN)."""

    def make(self):
        self.down1, self.down2 = conv(16, 24, stride=2), conv(24, 32, stride=2)
        self.side = nn.ModuleList(conv(width, 16, 1) for width in (16, 24, 32))

    def middle(self, x):
        maps = [x, F.relu(self.down1(x))]
        maps.append(F.relu(self.down2(maps[-1])))
        low, mid, top = (side(m) for side, m in zip(self.side, maps, strict=True))
        mid = mid + F.interpolate(top, size=mid.shape[-2:], mode="nearest")
        return F.relu(low + F.interpolate(mid, size=low.shape[-2:], mode="nearest"))


class Concatenating(Net):
    width = 2

    def make(self):
        self.net = UNet((8, 16, 24))
        self.net.down1[0] = conv(16, 8, bias=False)

    def middle(self, x):
        return self.net(x)


class Adding(Concatenating):
    def make(self):
        self.net = UNet((8, 16, 24), adding=True)
        self.net.down1[0] = conv(16, 8, bias=False)


class Volumes(Net):
    """Convolutions of one and of three dimensions."""

    def make(self):
        self.solid, self.line = nn.Conv3d(8, 10, 3, padding=1), nn.Conv1d(20, 16, 3, padding=1)

    def middle(self, x):
        h, w = x.shape[2:]
        solid = F.relu(self.solid(x.unflatten(1, (8, 2))))
        return F.relu(self.line(solid.flatten(1, 2).flatten(2))).unflatten(2, (h, w))


class GatedPart(Net):
    """One part of a convolution's channels passes a depthwise convolution, another is concatenated to it."""

    def make(self):
        self.wide, self.own, self.back = conv(16, 40, 1), conv(14, 14, groups=14), conv(20, 16, 1)

    def middle(self, x):
        gate, kept, moved = self.wide(x).split((20, 6, 14), 1)
        return x + self.back(gate.sigmoid() * torch.cat((kept, self.own(moved)), 1))


class TiedWeights(Net):
    """Two layers hold one weight, and so does a third under another name."""

    def make(self):
        self.a, self.b = conv(16, 16), conv(16, 16)
        self.b.weight = self.a.weight
        self.again = self.a

    def middle(self, x):
        return F.relu(self.b(F.relu(self.a(x)))) + self.again(x)


class Written(Net):
    """A part of a map is written to."""

    def make(self):
        self.a = conv(16, 16)

    def middle(self, x):
        y = self.a(x)
        y[:, :4] = 0
        return F.relu(y)


class PartsOfParts(Net):
    def make(self):
        self.scale = nn.Parameter(torch.tensor(1.5))

    def middle(self, x):
        return x * x.chunk(4, 1)[1:][0].mean(1, keepdim=True) * self.scale / (1 + x.var(False))


class FunctionalTransposed(Net):
    def make(self):
        self.weight = nn.Parameter(torch.randn(16, 16, 2, 2))

    def middle(self, x):
        return F.relu(F.conv_transpose2d(x, self.weight, stride=2))
