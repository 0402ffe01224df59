"""Networks."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from omegaconf import MISSING

from normlab.config.section import Choice, ConfigError, choice, name_of_target, setting


class Stem(Enum):
    """The layers before the first residual block."""

    cifar = "cifar"
    own = "own"


@dataclass(kw_only=True)
class ModelConfig(Choice):
    """Settings of every model."""

    group: ClassVar[str] = "model"

    task: ClassVar[str] = "classification"

    name: str = MISSING
    """The architecture's name, as used in the run's directory name."""

    init_from: str | None = setting(None, identity=False)
    """Initial weights: a run's directory, its checkpoint.pt, or a file with a state dict (torch.save or
    safetensors). Its content is part of the run's identity. A segmentation model takes its trunk from a
    classification model."""

    init_scale: float = setting(1.0, minimum=0.001, maximum=1000)
    """Factor on the weights of every convolution at the start: how much a norm depends on good initial weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None and self.init_scale != 1:
            raise ConfigError(
                f"model.init_scale={self.init_scale:g} scales weights that model.init_from replaces; drop one."
            )

    @classmethod
    def chosen_by(cls, name: str) -> str:
        if name.startswith(("resnet", "fcn_resnet", "deeplabv3_", "lraspp_")):
            return f"model={name}"
        return f"model=torchvision model.name={name}, or model=timm model.name={name},"


def cifar_name(prefix: str, name: str, depth: int, width: int) -> str:
    """What a network on the trunk of a CIFAR ResNet is called: resnet8, or resnet8x32 for a width other than 16.

    Raises: ConfigError for a depth that no CIFAR ResNet has, or a `name` that is given and another.
    """
    if (depth - 2) % 6:
        below = depth - (depth - 2) % 6
        raise ConfigError(f"model.depth={depth} is not 6n + 2; choose {below} or {below + 6}.")
    made = f"{prefix}{depth}" + f"x{width}" * (width != 16)
    if name not in ("", made):
        raise ConfigError(
            f"model.name={name} is not the name of model.depth={depth} and model.width={width}, which is {made}; "
            f"leave it out, or choose another model with {ModelConfig.chosen_by(name)} alone."
        )
    return made


@choice("cifar_resnet")
@dataclass(kw_only=True)
class CifarResNetConfig(ModelConfig):
    """The CIFAR ResNets of He et al. 2015 (arXiv:1512.03385, section 4.2)."""

    builder = "normlab.models.cifar_resnet:cifar_resnet"
    names: ClassVar[tuple[str, ...] | None] = None

    name: str = ""
    """Determined by depth and width: resnet8, or resnet8x32 for a width other than 16."""

    depth: int = setting(8, minimum=8, maximum=1202)
    """Weighted layers: 6n + 2, with n blocks in each of three stages."""

    width: int = setting(16, minimum=1, maximum=1024)
    """Channels of the first stage; the second has twice and the third four times as many."""

    def __post_init__(self) -> None:
        self.name = cifar_name("resnet", self.name, self.depth, self.width)
        super().__post_init__()


@choice("torchvision")
@dataclass(kw_only=True)
class TorchvisionConfig(ModelConfig):
    """A classification model of torchvision, without weights and without dropout."""

    builder = "normlab.models.by_name:torchvision_model"
    names: ClassVar[tuple[str, ...] | None] = None

    library: ClassVar[str] = "torchvision"

    name: str = "resnet18"
    """Its builder in torchvision.models."""

    stem: Stem | None = None
    """cifar: a 3x3 convolution of stride 1 and no max-pool, for small images (ResNets only); own:
    torchvision's; null: cifar for ResNets, own for the rest."""

    zero_init_residual: bool = False
    """Start gamma of each residual block's last norm at 0, so that a block is the identity at first (ResNets only;
    arXiv:1706.02677, section 5.1)."""


@choice("timm")
@dataclass(kw_only=True)
class TimmConfig(ModelConfig):
    """A model of timm, without weights and without dropout."""

    builder = "normlab.models.by_name:timm_model"
    names: ClassVar[tuple[str, ...] | None] = None

    library: ClassVar[str] = "timm"

    name: str = "resnet18"
    """Its name in timm.list_models()."""


@dataclass(kw_only=True)
class SegmentationModelConfig(ModelConfig):
    """Settings of every segmentation model."""

    task: ClassVar[str] = "segmentation"

    aux_weight: float = setting(0.0, minimum=0)
    """Weight in the training loss of a second head, on the trunk's last stage but one. 0: no such head."""


@choice("fcn_cifar_resnet")
@dataclass(kw_only=True)
class FcnCifarResNetConfig(SegmentationModelConfig):
    """A fully convolutional network (arXiv:1411.4038) on the trunk of a CIFAR ResNet."""

    builder = "normlab.models.segmentation:fcn_cifar_resnet"
    names: ClassVar[tuple[str, ...] | None] = None

    name: str = ""
    """Determined by depth and width: fcn_resnet20, or fcn_resnet20x32 for a width other than 16."""

    depth: int = setting(20, minimum=8, maximum=1202)
    """Weighted layers of the classification network that the trunk is taken from: 6n + 2."""

    width: int = setting(16, minimum=1, maximum=1024)
    """Channels of the first stage."""

    output_stride: int = setting(8, minimum=4, maximum=8)
    """Picture pixels per pixel of the trunk's last feature map: 8, or 4 by dilating the last stage."""

    def __post_init__(self) -> None:
        self.name = cifar_name("fcn_resnet", self.name, self.depth, self.width)
        super().__post_init__()
        if self.output_stride not in (4, 8):
            raise ConfigError(f"model.output_stride={self.output_stride} is neither 4 nor 8; choose one of them.")


@choice("torchvision_segmentation")
@dataclass(kw_only=True)
class TorchvisionSegmentationConfig(SegmentationModelConfig):
    """A segmentation model of torchvision (or deeplabv3_resnet18), without weights and without dropout."""

    builder = "normlab.models.segmentation:torchvision_segmentation_model"
    names: ClassVar[tuple[str, ...] | None] = None

    name: str = "deeplabv3_resnet50"
    """Its builder in torchvision.models.segmentation, or deeplabv3_resnet18."""


@choice("custom")
@dataclass(kw_only=True)
class CustomModelConfig(ModelConfig):
    """A classification model of your own."""

    builder = "normlab.models.custom:custom_model"
    names: ClassVar[tuple[str, ...] | None] = None
    library: ClassVar[str] = "custom"

    name: str = ""
    """Determined by the target: my_nets.build."""

    target: str = ""
    """`module:name` of what makes the model, in the folder of the command: called with num_classes and args, it
    gives an nn.Module built with BatchNorm. The module's file is part of the run's identity."""

    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the target by their names, such as 'model.args={width: 32}'."""

    def __post_init__(self) -> None:
        self.name = name_of_target(self, self.target, "my_nets:build")
        super().__post_init__()


@choice("custom_segmentation")
@dataclass(kw_only=True)
class CustomSegmentationModelConfig(CustomModelConfig, SegmentationModelConfig):
    """A segmentation model of your own."""

    library: ClassVar[str] = "custom_segmentation"
