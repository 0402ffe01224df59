"""Networks, built with BatchNorm; `normlab.norms.convert_norms` gives them the norm of the run."""

import torch
from torch import nn

from normlab.config import CifarResNetConfig, ModelConfig, TorchvisionResNetConfig
from normlab.models.cifar_resnet import CifarResNet
from normlab.models.torchvision_resnet import torchvision_resnet


def build_model(cfg: ModelConfig, num_classes: int, *, seed: int) -> nn.Module:
    """The network with its initial weights, a function of `seed` alone: torch's global RNG is left as it was.

    Shape: images (B, 3, H, W) -> logits (B, num_classes).
    Raises: ConfigError for a name that does not exist.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match cfg:
            case CifarResNetConfig():
                return CifarResNet(cfg.depth, num_classes, cfg.width)
            case TorchvisionResNetConfig():
                return torchvision_resnet(cfg.name, cfg.stem, num_classes)
    raise AssertionError(f"no builder for {type(cfg).__name__}")
