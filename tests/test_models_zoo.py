"""Networks of many families at a factor of 0.75: planned widths are actual widths, and it all trains.

Both targets of the rewrite are checked: the traced graph, and a copy of the original module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import models
import pytest
import torch
from torch import nn
from torchvision import models as vision

import mbs_fx
from mbs_fx.sample import resnet as sample_resnet


def small_head(net: nn.Module, features: int) -> nn.Module:
    """VGG and AlexNet without their hundred million parameters after the last convolution."""
    net.classifier = nn.Sequential(nn.Dropout(), nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, 10))
    return net


# Name -> (factory, input size). Inception v3 takes no less than 75.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "cifar_resnet20": (lambda: sample_resnet(20), 32),
    "resnet18": (vision.resnet18, 64),
    "resnet50": (vision.resnet50, 64),
    "resnext50": (vision.resnext50_32x4d, 64),
    "preactivation_resnet": (models.preactivation_resnet, 32),
    "vgg11_bn": (lambda: small_head(vision.vgg11_bn(init_weights=False), 512 * 7 * 7), 32),
    "vgg_constant_view": (models.ConstantViewVGG, 32),
    "alexnet": (lambda: small_head(vision.alexnet(), 256 * 6 * 6), 64),
    "squeezenet1_0": (vision.squeezenet1_0, 64),
    "squeezenet1_1": (vision.squeezenet1_1, 64),
    "mobilenet_v1": (models.mobilenet_v1, 64),
    "mobilenet_v1_half": (lambda: models.mobilenet_v1(multiplier=0.5), 64),
    "mobilenet_v2": (vision.mobilenet_v2, 64),
    "mobilenet_v3_small": (vision.mobilenet_v3_small, 64),
    "mobilenet_v3_large": (vision.mobilenet_v3_large, 64),
    "mnasnet": (vision.mnasnet1_0, 64),
    "shufflenet_v1": (models.shufflenet_v1, 64),
    "shufflenet_v2": (vision.shufflenet_v2_x1_0, 64),
    "densenet121": (vision.densenet121, 64),
    "googlenet": (lambda: vision.googlenet(aux_logits=False, init_weights=False), 64),
    "inception_v3": (lambda: vision.inception_v3(aux_logits=False, init_weights=False), 75),
    "regnet_x": (vision.regnet_x_400mf, 64),
    "regnet_y": (vision.regnet_y_400mf, 64),
    "efficientnet": (vision.efficientnet_b0, 64),
    "convnext": (vision.convnext_tiny, 64),
    "unet": (models.UNet, 32),
    "unet_adding": (lambda: models.UNet(adding=True), 32),
}

TARGETS = ("graph", "module")


@dataclass(frozen=True)
class Case:
    original: nn.Module
    plan: mbs_fx.Plan
    small: dict[str, nn.Module]
    images: torch.Tensor


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    """One network, reduced once for all tests of this file."""
    factory, size = NETWORKS[request.param]
    torch.manual_seed(0)
    original = factory().eval()
    graph = mbs_fx.trace(original)
    analysis = mbs_fx.analyze(graph, (2, 3, size, size))
    plan = mbs_fx.plan(analysis, betas=dict.fromkeys({b.spatial_size[0] for b in analysis.macroblocks}, 0.75))
    small = {"graph": mbs_fx.rewrite(graph, plan), "module": mbs_fx.rewrite(original, plan)}
    return Case(original, plan, small, torch.randn(2, 3, size, size))


@pytest.mark.parametrize("target", TARGETS)
def test_planned_widths_are_actual_widths(case: Case, target: str) -> None:
    actual = models.conv_widths(case.small[target])
    assert {path: actual[path] for path in case.plan.widths} == dict(case.plan.widths)


@pytest.mark.parametrize("target", TARGETS)
def test_output_has_the_original_shape(case: Case, target: str) -> None:
    with torch.inference_mode():
        assert case.small[target].eval()(case.images).shape == case.original(case.images).shape


@pytest.mark.parametrize("target", TARGETS)
def test_trains(case: Case, target: str) -> None:
    """A forward in training mode and a backward reach every parameter."""
    small = case.small[target].train()
    small(case.images).square().sum().backward()
    missing = [name for name, p in small.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    small.zero_grad(set_to_none=True)
    assert not missing


def test_targets_agree(case: Case) -> None:
    """Both targets have the same parameters, and fewer than the original."""
    shapes = [{k: v.shape for k, v in small.named_parameters()} for small in case.small.values()]
    assert shapes[0] == shapes[1]
    assert models.parameters(case.small["graph"]) < models.parameters(case.original)


def test_every_width_that_stays_has_a_reason(case: Case) -> None:
    """Of the convolutions, only those that are named among what is kept; linear layers keep theirs, too."""
    before = models.conv_widths(case.original)
    unchanged = {path for path, width in case.plan.widths.items() if width == before[path]}
    linear = before.keys() - case.plan.widths.keys()
    assert case.plan.kept.keys() - linear == unchanged
    assert all(case.plan.kept.values())


def test_auxiliary_heads_stay_alive() -> None:
    """They run in training mode only, so no graph of the evaluation mode has them; the module keeps them."""
    original = vision.googlenet(init_weights=False).eval()
    analysis = mbs_fx.analyze(mbs_fx.trace(original), (1, 3, 64, 64))
    plan = mbs_fx.plan(analysis, betas={4: 0.75, 2: 0.75})
    small = mbs_fx.rewrite(original, plan).train()
    outputs = small(torch.randn(2, 3, 64, 64))
    assert [tuple(output.shape) for output in outputs] == [(2, 1000)] * 3
    sum(output.square().sum() for output in outputs).backward()
    assert all(p.grad is not None for p in small.parameters())
    # The first head reads inception4a (192 + 208 + 48 + 64), the second inception4d (112 + 288 + 64 + 64).
    assert small.aux1.conv.conv.in_channels == 144 + 156 + 36 + 48
    assert small.aux2.conv.conv.in_channels == 84 + 216 + 48 + 48
