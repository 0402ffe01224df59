"""Networks that predict a class per pixel: trunk, head, and bilinear upsampling to the picture's size."""

import torch
from torch import nn
from torchvision.models import resnet18, segmentation
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from normlab.config import ConfigError
from normlab.config.model import FcnCifarResNetConfig, TorchvisionSegmentationConfig
from normlab.models.by_name import without_dropout
from normlab.models.cifar_resnet import CifarFcnTrunk

BY_NAME = {
    "fcn_resnet50": segmentation.fcn_resnet50,
    "fcn_resnet101": segmentation.fcn_resnet101,
    "deeplabv3_resnet50": segmentation.deeplabv3_resnet50,
    "deeplabv3_resnet101": segmentation.deeplabv3_resnet101,
    "deeplabv3_mobilenet_v3_large": segmentation.deeplabv3_mobilenet_v3_large,
    "lraspp_mobilenet_v3_large": segmentation.lraspp_mobilenet_v3_large,
}


def fcn_cifar_resnet(cfg: FcnCifarResNetConfig, num_classes: int) -> nn.Module:
    """A fully convolutional network on the trunk of a CIFAR ResNet, built with BatchNorm.

    Head: 3x3 convolution at the trunk's width, norm, ReLU, 1x1 convolution. With model.aux_weight, there is
    another head on the previous stage.
    Shape: images (B, 3, H, W) -> {"out": logits (B, num_classes, H, W)}, with model.aux_weight also "aux".
    Train and eval differ only in the norm layers.
    Source: Long et al. 2015, arXiv:1411.4038; the trunk, He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    trunk = CifarFcnTrunk(cfg.depth, cfg.width, cfg.output_stride)
    head = _head(trunk.out_channels, num_classes)
    aux = _head(trunk.out_channels // 2, num_classes) if cfg.aux_weight > 0 else None
    return segmentation.FCN(trunk, head, aux)


def _head(channels: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, num_classes, kernel_size=1),
    )


def torchvision_segmentation_model(cfg: TorchvisionSegmentationConfig, num_classes: int) -> nn.Module:
    """A segmentation model of torchvision, or DeepLabV3 on a ResNet-18. Dropout is 0.

    Shape: images (B, 3, H, W) -> {"out": logits (B, num_classes, H, W)}, with model.aux_weight also "aux".
    Raises: ConfigError if there is no such model, or it has no auxiliary head.
    Source: Chen et al. 2017, arXiv:1706.05587 (DeepLabV3); Howard et al. 2019, arXiv:1905.02244 (LR-ASPP).
    """
    name, aux = cfg.name, cfg.aux_weight > 0
    if name == "deeplabv3_resnet18":
        return without_dropout(_deeplabv3_resnet18(num_classes, aux=aux))
    if name not in BY_NAME:
        known = ", ".join(["deeplabv3_resnet18", *BY_NAME])
        raise ConfigError(f"model.name={name} is not a segmentation model; choose one of {known}.")
    options = {"aux_loss": aux}
    if name.startswith("lraspp"):
        if aux:
            raise ConfigError(f"model.aux_weight: {name} has no auxiliary head; set it to 0.")
        options = {}
    build = BY_NAME[name]
    return without_dropout(build(weights=None, weights_backbone=None, num_classes=num_classes, **options))


class ResNet18Trunk(nn.Module):
    """torchvision's ResNet-18 at output stride 8: the last two stages dilated by 2 and 4 instead of strided.

    torchvision dilates bottleneck blocks only.
    Shape: images (B, 3, H, W) -> {"aux": (B, 256, H/8, W/8), "out": (B, 512, H/8, W/8)}, rounded up.
    """

    def __init__(self) -> None:
        super().__init__()
        resnet = resnet18(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2 = resnet.layer1, resnet.layer2
        self.layer3, self.layer4 = _dilated(resnet.layer3, 1, 2), _dilated(resnet.layer4, 2, 4)

    def forward(self, images_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        aux_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return {"aux": aux_BCHW, "out": self.layer4(aux_BCHW)}


def _dilated(stage: nn.Sequential, before: int, after: int) -> nn.Sequential:
    """A stage of basic blocks without its stride: dilated by `before` up to where it was, by `after` past it."""
    first = True
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                spread = before if first else after
                layer.dilation, layer.padding, first = (spread, spread), (spread, spread), False
    return stage


def _deeplabv3_resnet18(num_classes: int, *, aux: bool) -> nn.Module:
    trunk = ResNet18Trunk()
    return segmentation.DeepLabV3(trunk, DeepLabHead(512, num_classes), FCNHead(256, num_classes) if aux else None)
