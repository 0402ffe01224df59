"""Classification models of torchvision and timm, by their names there, without pretrained weights."""

from difflib import get_close_matches
from importlib import import_module

import torchvision
from torch import nn

from normlab.config import ConfigError
from normlab.config.model import Stem, TimmConfig, TorchvisionConfig

AUXILIARY = ("googlenet", "inception_v3")
"""Their training forward returns more than logits unless told otherwise, and their init warns."""


def torchvision_model(cfg: TorchvisionConfig, num_classes: int) -> nn.Module:
    """Any classification model of torchvision; `Stem.cifar` makes a ResNet suit images of about 32 pixels.

    Shape: images (B, 3, H, W) -> logits (B, num_classes). Dropout and stochastic depth are 0.
    Raises: ConfigError if torchvision has no such model, or the model has no such stem or residual blocks.
    Source: the stem of 3x3 at stride 1 without max-pool is that of He et al. 2015, section 4.2.
    """
    name, stem = cfg.name, cfg.stem
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ConfigError(
            f"model.name={name} is not a classification model of torchvision; choose one of {', '.join(known)}."
        )
    options = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    if cfg.zero_init_residual:
        if torchvision.models.get_model_builder(name).__module__ != torchvision.models.resnet.__name__:
            raise ConfigError(
                f"model.zero_init_residual=true is for ResNets, and model.name={name} is none; leave it out."
            )
        options["zero_init_residual"] = True
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    is_resnet = isinstance(model, torchvision.models.ResNet)
    if stem is Stem.cifar and not is_resnet:
        raise ConfigError(f"model.stem=cifar is for ResNets, and model.name={name} is none; use model.stem=own.")
    if is_resnet and stem is not Stem.own:
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return without_dropout(model)


def timm_model(cfg: TimmConfig, num_classes: int) -> nn.Module:
    """Any model of timm (an optional dependency), unchanged except for its dropout.

    Shape: images (B, 3, H, W) -> logits (B, num_classes). Dropout and stochastic depth are 0.
    Raises: ConfigError if timm is not installed, or has no such model (listing similar names).
    Source: Wightman, github.com/huggingface/pytorch-image-models.
    """
    name = cfg.name
    try:
        timm = import_module("timm")
    except ImportError:
        raise ConfigError(
            f"model=timm model.name={name} needs timm, which is not installed; pip install 'normlab[timm]'."
        ) from None
    if name not in timm.list_models():
        near = get_close_matches(name, timm.list_models(), n=12, cutoff=0)
        raise ConfigError(f"model.name={name} is not a model of timm; the nearest names are {', '.join(near)}.")
    return without_dropout(timm.create_model(name, pretrained=False, num_classes=num_classes))


def without_dropout(model: nn.Module) -> nn.Module:
    """`model` with every dropout and stochastic depth of torch, torchvision and timm at 0 (invariant 1)."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | torchvision.ops.StochasticDepth):
            module.p = 0.0
        elif type(module).__name__ in ("DropPath", "DropBlock2d"):
            module.drop_prob = 0.0  # type: ignore[assignment]
    return model
