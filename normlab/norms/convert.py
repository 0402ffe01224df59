"""The one place where a model gets its norm: models are built with BatchNorm and converted."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config import ConfigError, NormConfig
from normlab.norms.registry import find_norm
from normlab.norms.replace import BATCH_NORMS, find_batch_norms, refuse_hooks, replace_layers


def convert_norms(model: nn.Module, norm: NormConfig, virtual_ranks: int = 1) -> nn.Module:
    """`model` with every BatchNorm1d, 2d and 3d in it as the configured norm; other layers stay as they are.

    Affine Parameters stay the same objects, so values, dtype, device and requires_grad carry over; so do the
    training flag, and the running statistics where the norm has them. A layer that stands at several places
    is converted once. Works on the meta device. Where anything is refused, nothing has been changed.
    `virtual_ranks` above 1: the samples of a batch are those of so many ranks, sample i of rank
    i % virtual_ranks, and each norm treats them as those ranks would.
    Returns the model, which is another object only where it is itself a BatchNorm.

    Collective for norm=syncbn in a process group: every rank must call.
    Raises: ConfigError on an unknown norm, a model without BatchNorm, a layer of another subclass of
    BatchNorm or with hooks, groups that do not divide a layer's channels.
    """
    builder = find_norm(norm.name).builder
    layers = norm_layers(model)
    if norm.name != "bn" or virtual_ranks > 1:  # else the layers are kept
        refuse_hooks(layers, ConfigError)
    build = builder(norm, virtual_ranks)
    return replace_layers(model, {layer: build(layer, name) for name, layer in layers.items()})


def norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Dotted name -> layer of every BatchNorm that a conversion replaces.

    Raises: ConfigError where there is none, or one of a type that cannot be converted.
    """
    layers = find_batch_norms(model, BATCH_NORMS, ConfigError)
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no BatchNorm layer, so its norm cannot be chosen; "
            "choose a model that is built with BatchNorm."
        )
    return layers
