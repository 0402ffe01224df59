"""Find what would go wrong with a norm in training, before any rank starts."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config import ConfigError
from normlab.config.norm import CustomNormConfig, NormConfig, RunningStatistics
from normlab.norms.activations import find_activations
from normlab.norms.convert import norm_layers
from normlab.norms.custom import check_layers
from normlab.norms.replace import layer_label
from normlab.norms.weight_standardization import standardised_convolutions


def check_norms(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    batch_size: int,
    ranks: int,
    norm: NormConfig,
    virtual_ranks: int = 1,
) -> None:
    """Refuse a norm that cannot train in `model`: groups that do not divide, statistics of a single value,
    activations that cannot be replaced, layers without the running statistics that it is evaluated with, a
    user's own layers that raise or return another shape.

    The model is still built with BatchNorm, best on the meta device: one eval-mode forward finds the shape of
    each layer's input. The model is left unchanged. No process group is needed.
    `image_shape` is (channels, H, W); `batch_size` is per logical rank, of which there are `ranks`, with
    `virtual_ranks` in each process.
    Raises: ConfigError naming the layer.
    """
    layers = norm_layers(model)
    if norm.running_statistics is not RunningStatistics.none:
        _check_running_statistics(layers, norm)
    channels = {name: layer.num_features for name, layer in layers.items()}
    norm.check(channels, batch_size, ranks, virtual_ranks)
    if norm.builder_without_activation:
        find_activations(model, layers)
    if norm.weight_standardization:
        standardised_convolutions(model)
    shapes = input_shapes(model, layers, (batch_size, *image_shape))
    if isinstance(norm, CustomNormConfig):
        check_layers(norm, shapes, ranks // virtual_ranks)
    for name, shape in shapes:
        size = norm.statistic_size(shape, ranks)
        if size is not None and size < 2:
            pixels = "x".join(map(str, shape[2:])) or "1"
            where = f"batch_size={batch_size} on {ranks} rank{'s' * (ranks > 1)}"
            raise ConfigError(
                f"norm={norm.name} with {where} leaves layer {name or 'the model itself'} one value per "
                f"{norm.unit}, which has no variance (its input has {shape[1]} channels of {pixels}); "
                f"{norm.remedy}."
            )


def _check_running_statistics(layers: dict[str, _BatchNorm], norm: NormConfig) -> None:
    for name, layer in layers.items():
        if layer.running_mean is None or not layer.track_running_stats:
            raise ConfigError(
                f"norm={norm.name} is evaluated with running statistics, and layer {layer_label(name, layer)} "
                "keeps none (track_running_stats=False): its evaluation would depend on how samples are batched; "
                "build the model with track_running_stats=True, or choose a norm that needs none, like norm=gn."
            )


def input_shapes(
    model: nn.Module, layers: dict[str, Any], batch_shape: tuple[int, ...]
) -> list[tuple[str, torch.Size]]:
    """(name, shape of its input) of each call of each layer, in order, in one eval-mode forward of zeros.

    Raises: ConfigError if the model cannot take such images.
    """
    seen: list[tuple[str, torch.Size]] = []

    def record(name: str) -> Any:
        return lambda layer, args: seen.append((name, args[0].shape))

    training = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_pre_hook(record(name)) for name, layer in layers.items()]
    try:
        model.eval()
        like = next(model.parameters())
        with torch.no_grad():
            model(torch.zeros(batch_shape, device=like.device, dtype=like.dtype))
    except (RuntimeError, AssertionError) as error:
        size = "x".join(map(str, batch_shape[2:]))
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"{type(model).__name__} cannot take images of {size} ({reason}); choose another model, or data "
            "with larger images."
        ) from None
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training.items():
            module.training = flag
    return seen
