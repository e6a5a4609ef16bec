"""Networks of other libraries than torchvision's classifiers and timm: by name, with fresh weights and an input shape.

Each library is imported when one of its networks is built; `coverage.py --zoo` runs the proof on them.  They are in
the extra `zoo`, apart from three to install by hand with ``pip install --no-deps``: ultralytics (AGPL), and
facenet-pytorch and dynamic-network-architectures, which ask for older versions of torch and timm.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Entry:
    """How to build a network, the shape of its input, and what runs its convolutions where its forward has no graph."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    forward: Callable[..., Any] | None = None


IMAGE = (2, 3, 128, 128)
ZOO: dict[str, Entry] = {}


def _add(library: str, name: str, build: Callable[[], nn.Module], shape: tuple[int, ...] = IMAGE) -> None:
    ZOO[f"{library}/{name}"] = Entry(build, shape)


def _call(path: str, **arguments: Any) -> Callable[[], nn.Module]:
    """A call of a function or class, named with its module, when the network is wanted."""
    module, name = path.rsplit(".", 1)
    return lambda: getattr(importlib.import_module(module), name)(**arguments)


def _method(path: str, method: str, *arguments: Any) -> Callable[[], nn.Module]:
    """A class method, when the network is wanted."""
    module, name = path.rsplit(".", 1)
    return lambda: getattr(getattr(importlib.import_module(module), name), method)(*arguments)


def _ultralytics(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from ultralytics import YOLO

        return YOLO(f"{name}.yaml").model

    return build


for _name in ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n"):
    _add("ultralytics", _name, _ultralytics(_name), (1, 3, 128, 128))
for _task in ("seg", "pose", "obb", "cls"):
    for _name in ("yolov8n", "yolo11n"):
        _add("ultralytics", f"{_name}-{_task}", _ultralytics(f"{_name}-{_task}"), (1, 3, 128, 128))


def _transformers(model: str, config: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**arguments))

    return build


for _model, _config, _arguments in (
    ("ResNetForImageClassification", "ResNetConfig", {}),
    ("RegNetForImageClassification", "RegNetConfig", {}),
    ("MobileNetV1ForImageClassification", "MobileNetV1Config", {}),
    ("MobileNetV2ForImageClassification", "MobileNetV2Config", {}),
    ("ConvNextForImageClassification", "ConvNextConfig", {}),
    ("ConvNextV2ForImageClassification", "ConvNextV2Config", {}),
    (
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280},
    ),
    ("LevitForImageClassification", "LevitConfig", {"image_size": 128}),
    ("PoolFormerForImageClassification", "PoolFormerConfig", {}),
    ("SegformerForSemanticSegmentation", "SegformerConfig", {}),
    ("BitForImageClassification", "BitConfig", {}),
    ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 128}),
    ("CvtForImageClassification", "CvtConfig", {}),
    ("UperNetForSemanticSegmentation", "UperNetConfig", {}),
    ("DPTForDepthEstimation", "DPTConfig", {"image_size": 128}),
):
    _add("transformers", _model, _transformers(_model, _config, **_arguments))


def _points(model: Any, x: Any) -> Any:
    """The two maps that SuperPoint reads its points off, as many as there are."""
    seen = model.encoder(x).last_hidden_state
    scores, descriptors = model.keypoint_decoder, model.descriptor_decoder
    return (
        scores.conv_score_b(scores.relu(scores.conv_score_a(seen))),
        descriptors.conv_descriptor_b(descriptors.relu(descriptors.conv_descriptor_a(seen))),
    )


ZOO["transformers/SuperPointForKeypointDetection"] = Entry(
    _transformers("SuperPointForKeypointDetection", "SuperPointConfig"), (2, 1, 128, 128), _points
)

for _library, _package in (("smp", "segmentation_models_pytorch"), ("torchseg", "torchseg")):
    for _model in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus"):
        _add(
            _library, f"{_model}-resnet34", _call(f"{_package}.{_model}", encoder_name="resnet34", encoder_weights=None)
        )
for _encoder in ("mobilenet_v2", "efficientnet-b0", "densenet121", "vgg11_bn", "se_resnet50", "xception", "dpn68"):
    _add(
        "smp",
        f"Unet-{_encoder}",
        _call("segmentation_models_pytorch.Unet", encoder_name=_encoder, encoder_weights=None),
    )
for _model in ("UPerNet", "Segformer"):
    _add(
        "smp",
        f"{_model}-resnet34",
        _call(f"segmentation_models_pytorch.{_model}", encoder_name="resnet34", encoder_weights=None),
    )

_VOLUME = (2, 1, 32, 32, 32)
_MONAI = "monai.networks.nets"
_LEVELS = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2)}
for _model, _arguments, _shape in (
    ("UNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "num_res_units": 2, **_LEVELS}, _VOLUME),
    ("AttentionUnet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, **_LEVELS}, _VOLUME),
    ("BasicUNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, _VOLUME),
    ("BasicUNetPlusPlus", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}, (2, 1, 64, 64)),
    ("SegResNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, _VOLUME),
    ("SegResNetDS", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, _VOLUME),
    ("VNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, _VOLUME),
    ("HighResNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, _VOLUME),
    ("DenseNet121", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, (2, 1, 64, 64, 64)),
    ("SEResNet50", {"spatial_dims": 2, "in_channels": 3, "num_classes": 5}, IMAGE),
    ("EfficientNetBN", {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 2}, IMAGE),
    ("FlexibleUNet", {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"}, IMAGE),
    ("DynUNet", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "kernel_size": [3, 3, 3],
                 "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}, _VOLUME),
    ("AutoEncoder", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (16, 32, 64),
                     "strides": (2, 2, 2)}, (2, 1, 64, 64)),
    ("MedNeXtS", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}, _VOLUME),
    ("VoxelMorphUNet", {"spatial_dims": 3, "in_channels": 2, "unet_out_channels": 32,
                        "channels": (16, 32, 32, 32, 32, 32), "final_conv_channels": (16, 16)}, (1, 2, 32, 32, 32)),
    ("DAF3D", {"in_channels": 1, "out_channels": 2}, (2, 1, 32, 64, 64)),
    ("resnet18", {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 3}, (2, 1, 64, 64, 64)),
):  # fmt: skip
    _add("monai", _model, _call(f"{_MONAI}.{_model}", **_arguments), _shape)


def _pytorchcv(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from pytorchcv.model_provider import get_model

        return get_model(name, pretrained=False)

    return build


_NAMES = (
    "preresnet18 resnext50_32x4d seresnet18 densenet121 darknet53 mobilenet_w1 fdmobilenet_w1 mobilenetv2b_w1 "
    "shufflenet_g3_w1 shufflenetv2_w1 menet108_8x1_g3 igcv3_w1 mnasnet_b1 squeezenet_v1_0 squeezeresnet_v1_0 "
    "sqnxt23_w1 peleenet ghostnet efficientnet_b0 bagnet9 dla34 hrnet_w18_small_v1 vovnet27s selecsls42 hardnet39ds "
    "resnesta18 diracnet18v2 airnet50_1x64d_r2 bam_resnet18 cbam_resnet18 scnet50 ibn_resnet50 "
    "spnasnet proxylessnas_mobile"
)
for _name in _NAMES.split():
    # Batch norms over a single position need two images in training.
    _images = 2 if _name in ("resnesta18", "bam_resnet18", "scnet50", "ghostnet") else 1
    _add("pytorchcv", _name, _pytorchcv(_name), (_images, 3, 224, 224))
_NAMES = (
    "resnet20 preresnet20 densenet40_k12 wrn16_10 shakeshakeresnet20_2x16d pyramidnet110_a48 resnext29_32x4d nin "
    "ror3_56"
)
for _name in _NAMES.split():
    _add("pytorchcv", f"{_name}_cifar10", _pytorchcv(f"{_name}_cifar10"), (2, 3, 32, 32))


def _pretrained(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import pretrainedmodels

        return pretrainedmodels.__dict__[name](num_classes=1000, pretrained=None)

    return build


for _name, _size in (("bninception", 224), ("inceptionv4", 299), ("se_resnet50", 224), ("se_resnext50_32x4d", 224),
                     ("nasnetamobile", 224), ("dpn68", 224), ("xception", 128), ("cafferesnet101", 224)):  # fmt: skip
    _add("pretrainedmodels", _name, _pretrained(_name), (2, 3, _size, _size))

for _name in ("osnet_x0_25", "osnet_ain_x0_25", "osnet_ibn_x1_0", "mlfn", "mobilenetv2_x1_0", "resnet50_ibn_a",
              "se_resnet50", "shufflenet", "squeezenet1_0", "xception", "resnet50mid", "pcb_p4"):  # fmt: skip
    _add(
        "torchreid",
        _name,
        _call("torchreid.reid.models.build_model", name=_name, num_classes=10, pretrained=False),
        (2, 3, 256, 128),
    )

for _name in ("mnasnet_a1", "mobilenetv3_large_100", "mixnet_s", "fbnetc_100", "spnasnet_100", "efficientnet_lite0",
              "tf_efficientnet_b0", "efficientnet_es"):  # fmt: skip
    _add("geffnet", _name, _call("geffnet.create_model", model_name=_name))

for _name in ("resnest50", "resnest50_fast_1s1x64d"):
    _add("resnest", _name, _call(f"resnest.torch.{_name}", pretrained=False))

_add("efficientnet_pytorch", "b0", _method("efficientnet_pytorch.EfficientNet", "from_name", "efficientnet-b0"))
_add(
    "facenet_pytorch",
    "InceptionResnetV1",
    _call("facenet_pytorch.InceptionResnetV1", pretrained=None),
    (2, 3, 160, 160),
)
_add("torchxrayvision", "DenseNet", _call("torchxrayvision.models.DenseNet", weights=None), (2, 1, 224, 224))
for _name in ("HardNet", "HardNet8", "HyNet", "SOSNet", "TFeat"):
    _add("kornia", _name, _call(f"kornia.feature.{_name}", pretrained=False), (4, 1, 32, 32))
_add("kornia", "KeyNet", _call("kornia.feature.KeyNet", pretrained=False), (1, 1, 64, 64))


def _nnunet(name: str, dims: int, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from dynamic_network_architectures.architectures import unet

        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        return getattr(unet, name)(
            1, 4, (16, 32, 64, 128), conv, 3, (1, 2, 2, 2), num_classes=3, norm_op=norm,
            norm_op_kwargs={"affine": True}, conv_bias=True, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
            **arguments,
        )  # fmt: skip

    return build


_PLAIN = {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2}
_RESIDUAL = {"n_blocks_per_stage": 2, "n_conv_per_stage_decoder": 1}
_add("nnunet", "PlainConvUNet2d", _nnunet("PlainConvUNet", 2, **_PLAIN), (2, 1, 64, 64))
_add("nnunet", "PlainConvUNet3d", _nnunet("PlainConvUNet", 3, **_PLAIN), _VOLUME)
_add("nnunet", "ResidualEncoderUNet3d", _nnunet("ResidualEncoderUNet", 3, **_RESIDUAL), _VOLUME)


def _spandrel(folder: str, name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        found = importlib.import_module(f"spandrel.architectures.{folder}")
        return getattr(found, name)(**arguments)

    return build


for _folder, _name, _arguments, _shape in (
    ("ESRGAN", "ESRGAN", {"num_blocks": 2, "num_filters": 32}, (1, 3, 32, 32)),
    ("Compact", "Compact", {}, (1, 3, 32, 32)),
    ("SPAN", "SPAN", {"num_in_ch": 3, "num_out_ch": 3}, (1, 3, 32, 32)),
    ("NAFNet", "NAFNet", {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1, 1],
                           "dec_blk_nums": [1, 1]}, (1, 3, 64, 64)),
    ("DnCNN", "DnCNN", {}, (1, 1, 32, 32)),
    ("DRUNet", "DRUNet", {}, (1, 1, 64, 64)),
    ("RealCUGAN", "UpCunet2x", {}, (1, 3, 64, 64)),
    ("SwiftSRGAN", "SwiftSRGAN", {}, (1, 3, 32, 32)),
    ("SAFMN", "SAFMN", {"dim": 36, "n_blocks": 4}, (1, 3, 32, 32)),
    ("PLKSR", "PLKSR", {"dim": 32, "n_blocks": 4}, (1, 3, 32, 32)),
):  # fmt: skip
    _add("spandrel", _name, _spandrel(_folder, _name, **_arguments), _shape)


def _one_stage(model: Any, x: Any) -> Any:
    return model.head(list(model.backbone(x).values()))


def _two_stage(model: Any, x: Any) -> Any:
    features = model.backbone(x)
    window = nn.functional.adaptive_avg_pool2d(features["0"], 7)
    return model.rpn.head(list(features.values())), model.roi_heads.box_predictor(model.roi_heads.box_head(window))


for _name, _size, _forward in (
    ("ssdlite320_mobilenet_v3_large", 320, _one_stage),
    ("ssd300_vgg16", 300, _one_stage),
    ("retinanet_resnet50_fpn", 128, _one_stage),
    ("fcos_resnet50_fpn", 128, _one_stage),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 128, _two_stage),
    ("fasterrcnn_resnet50_fpn", 128, _two_stage),
):
    _build = _call(f"torchvision.models.detection.{_name}", weights=None, weights_backbone=None)
    ZOO[f"torchvision/{_name}"] = Entry(_build, (2, 3, _size, _size), _forward)
for _name, _size in (("r3d_18", 112), ("mc3_18", 112), ("r2plus1d_18", 112), ("s3d", 224)):
    _build = _call(f"torchvision.models.video.{_name}", weights=None)
    _add("torchvision", f"video.{_name}", _build, (1, 3, 16, _size, _size))
