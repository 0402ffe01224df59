"""Networks."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from normlab.config.section import ConfigError, Section, setting


class Stem(Enum):
    """The layers before the first residual block."""

    cifar = "cifar"
    own = "own"


@dataclass(kw_only=True)
class ModelConfig(Section):
    """What every model has."""

    group: ClassVar[str] = "model"

    name: str = MISSING
    """The architecture's name, as it stands in the run's directory."""


@dataclass(kw_only=True)
class CifarResNetConfig(ModelConfig):
    """The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2)."""

    name: str = "resnet8"

    depth: int = setting(8, minimum=8)
    """Weighted layers: 6n + 2, with n blocks in each of three stages."""

    width: int = setting(16, minimum=1)
    """Channels of the first stage; the second has twice and the third four times as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.depth - 2) % 6:
            below = self.depth - (self.depth - 2) % 6
            raise ConfigError(f"model.depth={self.depth} is not 6n + 2; choose {below} or {below + 6}.")


@dataclass(kw_only=True)
class TorchvisionConfig(ModelConfig):
    """A classification model of torchvision, without weights and without dropout."""

    name: str = "resnet18"
    """Its builder in torchvision.models."""

    stem: Stem | None = None
    """cifar: a 3x3 convolution of stride 1 and no max-pool, for small images (ResNets only); own:
    torchvision's; null: cifar for ResNets, own for the rest."""


@dataclass(kw_only=True)
class TimmConfig(ModelConfig):
    """A model of timm, without weights and without dropout."""

    name: str = "resnet18"
    """Its name in timm.list_models()."""
