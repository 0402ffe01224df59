"""Convolutions whose weights are standardised, in combination with any norm."""

from typing import Any

import torch
from torch import Tensor, nn

from normlab.config import ConfigError
from normlab.norms.replace import refuse_hooks

EPS = 1e-5
"""Added to the variance of a filter's weights."""


def standardise(weight: Tensor) -> Tensor:
    """Each filter of (C_out, C_in / groups, ...) with mean 0 and, apart from EPS, variance 1.

        w = (weight - mean_o) / sqrt(var_o + EPS),   mean, biased var over all axes but the first

    Computed in at least float32.
    """
    wide = weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
    var_O, mean_O = torch.var_mean(wide, list(range(1, weight.dim())), correction=0, keepdim=True)
    return (wide - mean_O) * (var_O + EPS).rsqrt()


class StandardisedConv(nn.modules.conv._ConvNd):
    """A convolution that standardises its weight in each forward. Its parameter keeps its name and values.

    Train and eval are identical. A mixin, before torch's own.
    Source: Qiao et al. 2019, arXiv:1903.10520, section 3.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, standardise(weight), bias)


class StandardisedConv1d(StandardisedConv, nn.Conv1d):
    pass


class StandardisedConv2d(StandardisedConv, nn.Conv2d):
    pass


class StandardisedConv3d(StandardisedConv, nn.Conv3d):
    pass


_KINDS: dict[type[nn.Module], Any] = {
    nn.Conv1d: StandardisedConv1d,
    nn.Conv2d: StandardisedConv2d,
    nn.Conv3d: StandardisedConv3d,
}


def standardised_convolutions(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Replacements for each convolution of `model` that has no bias and filters of several weights.

    Having no bias is how models mark a convolution whose output is normalised: gates, prediction layers and
    others with one stay as they are. Exact types only; Parameter objects and settings carry over.
    Raises: ConfigError if there is none, or one has hooks, such as those of torch.nn.utils.spectral_norm.
    """
    found: dict[str, nn.modules.conv._ConvNd] = {}
    for name, layer in model.named_modules():
        if type(layer) not in _KINDS:
            continue
        assert isinstance(layer, nn.modules.conv._ConvNd)
        if layer.bias is None and layer.weight[0].numel() > 1:
            found[name] = layer
    if not found:
        raise ConfigError(
            f"norm.weight_standardization=true, but {type(model).__name__} has no convolution without a bias; "
            "choose another model, or false."
        )
    refuse_hooks(found, ConfigError)
    return {layer: _standardised(layer) for layer in found.values()}


def _standardised(layer: nn.modules.conv._ConvNd) -> nn.Module:
    new = _KINDS[type(layer)](
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",  # nothing to allocate: it takes over the weight
    )
    new.weight = layer.weight
    return new.train(layer.training)
