"""Analyses of networks of every kind, made once, and densities drawn at random: for tests that plan without torch."""

from functools import cache

import numpy as np
import torch
import torchvision

import mbs_fx
from mbs_fx.results.density import Density
from mbs_fx.sample import resnet

NETWORKS = ("resnet20", "resnet50", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "rectangle", "resnext50_32x4d")


@cache
def graph(name):
    if name == "resnet20":
        return torch.fx.symbolic_trace(resnet(20).eval())
    with torch.device("meta"):
        if name == "resnet1202":
            net = resnet(1202)
        else:
            net = getattr(torchvision.models, "mobilenet_v2" if name == "rectangle" else name)()
    return torch.fx.symbolic_trace(net.eval())


@cache
def analysis(name):
    shape = {"resnet20": (1, 3, 32, 32), "resnet1202": (1, 3, 32, 32), "rectangle": (1, 3, 160, 256)}.get(
        name, (1, 3, 224, 224)
    )
    return mbs_fx.analyze(graph(name), shape)


def density(name, seed):
    """p_j between 0.1 and 0.9 for every counted convolution."""
    counted = [conv.name for conv in analysis(name).convs if conv.counted]
    mean = np.random.default_rng(seed).uniform(0.1, 0.9, len(counted))
    return Density(
        index={conv: i for i, conv in enumerate(counted)},
        mean=mean,
        covariance=np.zeros((len(mean), len(mean))),
        images=64,
    )
