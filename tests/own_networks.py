"""Networks of a user's own, importable where mbs_fx is not."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Asserts its own width, and names it."""

    def __init__(self, channels, inner):
        super().__init__()
        self.in_channels, self.inner_width = channels, inner
        self.widen = nn.Conv2d(channels, inner, 3, padding=1)
        self.narrow = nn.Conv2d(inner, channels, 1)

    def forward(self, x):
        assert x.shape[1] == self.in_channels
        y = F.relu(self.widen(x))
        return F.relu(x + self.narrow(y.view(len(x), self.inner_width, *x.shape[2:])))


class Own(nn.Module):
    """Attributes, methods and mode-dependent code of its own."""

    def __init__(self, classes=10):
        super().__init__()
        self.num_features, self.num_classes = 24, classes
        self.widths = [16, 24]
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = Block(16, 32)
        self.last = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.auxiliary = nn.Conv2d(16, 24, 1)
        self.offset = torch.ones(1, 24, 1, 1)
        self.fc = nn.Linear(24, classes)

    def forward_features(self, x):
        x = self.block(F.relu(self.stem(x)))
        if self.training:
            x = F.dropout(x, 0.1, self.training)
            return F.relu(self.last(x)) + self.auxiliary(x)[:, :, ::2, ::2] + self.offset
        return F.relu(self.last(x)) + self.offset

    def forward(self, x):
        return self.fc(self.forward_features(x).mean((2, 3)))

    def reset_classifier(self, classes):
        self.num_classes = classes
        self.fc = nn.Linear(self.num_features, classes)


class Counts(nn.Module):
    """Counts channels in its code, where no attribute helps."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.fc = nn.Linear(24 * 16, 10)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(F.relu(self.second(F.relu(self.first(x)))), 4)
        return self.fc(x.view(-1, 24 * 16))
