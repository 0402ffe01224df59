"""Norms with per-sample statistics, as our own layers where torch's do not suffice; and no norm at all."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config.norm import (
    ChannelLayerNormConfig,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    NormConfig,
    RmsNormConfig,
)
from normlab.norms.dtypes import for_native_kernel, upcast
from normlab.norms.replace import Build, eps_of, with_parameters_of


def per_channel(values_C: Tensor, x: Tensor) -> Tensor:
    """values_C in the shape that broadcasts along the channels of x."""
    return values_C.view(1, -1, *[1] * (x.dim() - 2))


class GroupNorm(nn.GroupNorm):
    """torch's layer, with the dtypes of normlab.norms.dtypes."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = for_native_kernel(input, self.weight, self.bias)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps).to(input.dtype)


class _InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """A mixin, before torch's own class, with the dtypes of normlab.norms.dtypes."""

    def forward(self, input: Tensor) -> Tensor:
        # Without gamma, the CPU's kernel would round the statistics of a bfloat16 input to bfloat16.
        x = upcast(input) if self.weight is None else input
        return super().forward(x).to(input.dtype)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """For (B, C, L) only: torch's would read BatchNorm1d's (B, C) as one sample of B channels.

    Raises: ValueError on (B, C), whose channels have one value each.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 3:
            raise ValueError(f"InstanceNorm1d takes (B, C, L), got {tuple(input.shape)}; use norm=ln or norm=bn.")


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    pass


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    pass


class AffineNorm(nn.Module):
    """Base of layers of `num_features` channels with BatchNorm's gamma and beta, or neither."""

    def __init__(self, num_features: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def affine(self, x: Tensor) -> Tensor:
        """x * gamma_c + beta_c."""
        if self.weight is not None:
            x = x * per_channel(self.weight, x)
        return x if self.bias is None else x + per_channel(self.bias, x)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class ChannelAffine(AffineNorm):
    """y = x * gamma_c + beta_c, and no normalization. Shape: (B, C, ...) -> (B, C, ...)."""

    def __init__(self, num_features: int, affine: bool = True) -> None:
        super().__init__(num_features, 0.0, affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}"


class ChannelLayerNorm(AffineNorm):
    """torch's layer_norm over channels, at each pixel. Shape: (B, C, ...) -> (B, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        x_wide, weight, bias = for_native_kernel(x, self.weight, self.bias)
        y = F.layer_norm(x_wide.movedim(1, -1), (self.num_features,), weight, bias, self.eps)
        return y.movedim(-1, 1).to(x.dtype)


class ChannelRmsNorm(AffineNorm):
    """torch's rms_norm over channels, at each pixel, and beta. Shape: (B, C, ...) -> (B, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(upcast(x).movedim(1, -1), (self.num_features,), self.weight, self.eps).movedim(-1, 1)
        return (y if self.bias is None else y + per_channel(self.bias, y)).to(x.dtype)


def group_norm(norm: GroupNormConfig, virtual_ranks: int) -> Build:
    """GroupNorm: each sample over groups of channels and all pixels.

        y = (x - mean_g) / sqrt(var_g + eps) * gamma_c + beta_c,   g = group of channel c

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Raises: ConfigError if the groups do not divide a layer's channels.
    Source: Wu & He 2018, arXiv:1803.08494, section 3.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _group_norm(layer, norm.groups_of(layer.num_features, name), eps_of(norm, layer))

    return build


def layer_norm(norm: LayerNormConfig, virtual_ranks: int) -> Build:
    """LayerNorm on images: each sample over all channels and pixels, which is GroupNorm with one group.

        y = (x - mean) / sqrt(var + eps) * gamma_c + beta_c,   mean, var over C, H, W

    The affine is per channel, as in the other norms, and not per element as in torch.nn.LayerNorm.
    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Source: Ba et al. 2016, arXiv:1607.06450; on images: Wu & He 2018, arXiv:1803.08494, section 3.1.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _group_norm(layer, 1, eps_of(norm, layer))

    return build


def instance_norm(norm: InstanceNormConfig, virtual_ranks: int) -> Build:
    """InstanceNorm: each sample and channel over its pixels.

        y = (x - mean_c) / sqrt(var_c + eps) * gamma_c + beta_c,   mean, var over H, W

    Shape: (B, C, ...) -> (B, C, ...), with at least one axis of pixels.
    Train and eval are identical: no buffers. NBS 1.
    Raises: ValueError on one pixel, whose channels have one value each.
    Source: Ulyanov et al. 2016, arXiv:1607.08022.
    """
    types: dict[type[_BatchNorm], type[nn.Module]] = {
        nn.BatchNorm1d: InstanceNorm1d,
        nn.BatchNorm2d: InstanceNorm2d,
        nn.BatchNorm3d: InstanceNorm3d,
    }

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        kind: Any = next(new for base, new in types.items() if isinstance(layer, base))
        new = kind(layer.num_features, eps_of(norm, layer), affine=layer.affine, device="meta")
        return with_parameters_of(new, layer)

    return build


def channel_layer_norm(norm: ChannelLayerNormConfig, virtual_ranks: int) -> Build:
    """LayerNorm over channels: each pixel of each sample by itself, as in ConvNeXt.

        y = (x - mean) / sqrt(var + eps) * gamma_c + beta_c,   mean, var over C

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Source: Ba et al. 2016, arXiv:1607.06450; at each pixel: Liu et al. 2022, arXiv:2201.03545.
    """
    return lambda layer, name: affine_norm(ChannelLayerNorm, layer, eps_of(norm, layer))


def rms_norm(norm: RmsNormConfig, virtual_ranks: int) -> Build:
    """RMSNorm over channels: each pixel of each sample by itself, without subtracting a mean.

        y = x / sqrt(mean(x^2) + eps) * gamma_c + beta_c,   the mean over C

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467, equation 4; the axes are those of ln2d.
    """
    return lambda layer, name: affine_norm(ChannelRmsNorm, layer, eps_of(norm, layer))


def channel_affine(norm: NormConfig, virtual_ranks: int) -> Build:
    """No normalization: only gamma and beta, per channel.

        y = x * gamma_c + beta_c

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical, at any batch. NBS 1.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return with_parameters_of(ChannelAffine(layer.num_features, layer.affine), layer)

    return build


def affine_norm(kind: type[AffineNorm], layer: _BatchNorm, eps: float) -> nn.Module:
    return with_parameters_of(kind(layer.num_features, eps, layer.affine), layer)


def _group_norm(layer: _BatchNorm, groups: int, eps: float) -> nn.Module:
    new = GroupNorm(groups, layer.num_features, eps, affine=layer.affine, device="meta")
    return with_parameters_of(new, layer)
