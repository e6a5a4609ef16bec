"""Multiply-adds of whole networks against torch's counter, node by node (benchmarks/flops.py has the whole list)."""

from __future__ import annotations

from collections.abc import Callable

import flops
import models
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as vision

import mbs_fx

LINEAR = {"linear layer"}

NETWORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    **{
        name: (lambda name=name: vision.get_model(name, weights=None), LINEAR)
        for name in (
            "resnet18",
            "densenet121",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "shufflenet_v2_x0_5",
            "efficientnet_b0",
            "regnet_y_400mf",
            "mnasnet0_5",
            "convnext_tiny",
        )
    },
    "squeezenet1_1": (lambda: vision.squeezenet1_1(weights=None), set()),
    "lraspp": (lambda: vision.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None), set()),
    "unet": (lambda: models.UNet((8, 16, 24)), set()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_costs_what_torch_counts(name: str) -> None:
    make, others = NETWORKS[name]
    torch.manual_seed(0)
    gm = torch.fx.symbolic_trace(make().eval())
    found = flops.compare(gm, mbs_fx.analyze(gm, (2, 3, 64, 96)))
    assert found["wrong"] == {}
    assert found["others"].keys() == others


class Others(nn.Module):
    """One of each kind that torch counts and macroblock scaling does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.eca = nn.Conv1d(1, 1, 3, padding=1)
        self.register_buffer("blur", torch.ones(8, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.conv(x), self.blur, groups=8)
        x = x * self.eca(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        tokens = x.flatten(2)
        return self.fc((tokens @ tokens.transpose(1, 2)).mean(2))


def test_what_torch_counts_beside_the_convolutions_is_told_by_kind() -> None:
    gm = torch.fx.symbolic_trace(Others().eval())
    found = flops.compare(gm, mbs_fx.analyze(gm, (2, 3, 8, 8)))
    # The map is 6 x 6 after the convolution and 4 x 4 after the blur.
    assert found["flops"] == 27 * 8 * 36
    assert found["others"] == {
        "fixed filter": 9 * 8 * 16,
        "along the channels": 3 * 8,
        "product of tensors": 8 * 8 * 16,
        "linear layer": 8 * 5,
    }
