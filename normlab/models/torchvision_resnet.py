"""torchvision's classification ResNets, with their own stem or one for small images."""

import torchvision
from torch import nn

from normlab.config import ConfigError, Stem


def torchvision_resnet(name: str, stem: Stem, num_classes: int) -> nn.Module:
    """A ResNet of torchvision without weights; `Stem.cifar` suits images of about 32 pixels.

    Shape: images (B, 3, H, W) -> logits (B, num_classes).
    Raises: ConfigError where torchvision has no ResNet of that name.
    Source: the stem of 3x3 at stride 1 without max-pool is that of He et al. 2015, section 4.2.
    """
    known = [n for n in torchvision.models.list_models(module=torchvision.models) if "resne" in n]
    if name not in known:
        raise ConfigError(f"model.name={name} is not a ResNet of torchvision; choose one of {', '.join(known)}.")
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if stem is Stem.cifar:
        channels = model.conv1.out_channels
        model.conv1 = nn.Conv2d(3, channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model
