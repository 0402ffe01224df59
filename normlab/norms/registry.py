"""The norms, by name: how each is made from a BatchNorm layer, and how many values its statistics have."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config import (
    BatchNormConfig,
    ConfigError,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    Nondivisible,
    NormConfig,
    SyncBatchNormConfig,
)
from normlab.norms.replace import take_over
from normlab.norms.sync_batch_norm import SyncBatchNorm
from normlab.norms.sync_groups import check_sync_group_size, divisors, real_ranks, sync_group
from normlab.norms.virtual_batch_norm import VirtualBatchNorm

Build = Callable[[_BatchNorm, str], nn.Module]
"""(layer, its dotted name) -> the layer that takes its place."""


def batch_norm(norm: BatchNormConfig, virtual_ranks: int) -> Build:
    """BatchNorm: the layer itself, with the configured eps and momentum.

        y = (x - mean_c) / sqrt(var_c + eps) * gamma_c + beta_c,   mean, var over B, H, W of this rank

    Shape: (B, C, ...) -> (B, C, ...). NBS: batch_size. Virtual ranks: normlab.norms.VirtualBatchNorm.
    Train: the biased variance normalises; running = (1 - momentum) * running + momentum * batch, with the
    unbiased variance. Eval: running statistics.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        new = layer if virtual_ranks == 1 else VirtualBatchNorm.from_batch_norm(layer, virtual_ranks)
        return _set_up(new, norm)

    return build


def sync_batch_norm(norm: SyncBatchNormConfig, virtual_ranks: int) -> Build:
    """SyncBatchNorm: as BatchNorm, over the ranks of a sync group. See normlab.norms.SyncBatchNorm.

    The virtual ranks of a process that is whole within a group are one rank with all of their samples; groups
    that lie within a process need no other: normlab.norms.VirtualBatchNorm.
    Collective: every rank must call (it creates the sync groups).
    """
    size = norm.sync_group_size
    check_sync_group_size(size, real_ranks() * virtual_ranks, virtual_ranks)
    if size is not None and size < virtual_ranks:
        return lambda layer, name: _set_up(VirtualBatchNorm.from_batch_norm(layer, virtual_ranks, size), norm)
    group = sync_group(size and size // virtual_ranks)
    return lambda layer, name: _set_up(SyncBatchNorm.from_batch_norm(layer, group), norm)


def _set_up(layer: _BatchNorm, norm: BatchNormConfig) -> _BatchNorm:
    layer.eps, layer.momentum = norm.eps, norm.momentum
    return layer


def group_norm(norm: GroupNormConfig, virtual_ranks: int) -> Build:
    """GroupNorm: each sample over groups of channels and all pixels.

        y = (x - mean_g) / sqrt(var_g + eps) * gamma_c + beta_c,   g = group of channel c

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Raises: ConfigError where the groups do not divide a layer's channels.
    Source: Wu & He 2018, arXiv:1803.08494, section 3.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _group_norm(layer, num_groups(layer.num_features, norm, name), norm.eps)

    return build


def layer_norm(norm: LayerNormConfig, virtual_ranks: int) -> Build:
    """LayerNorm on images: each sample over all channels and pixels, which is GroupNorm with one group.

        y = (x - mean) / sqrt(var + eps) * gamma_c + beta_c,   mean, var over C, H, W

    The affine is per channel, as in the other norms, and not per element as in torch.nn.LayerNorm.
    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Source: Ba et al. 2016, arXiv:1607.06450; on images: Wu & He 2018, arXiv:1803.08494, section 3.1.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _group_norm(layer, 1, norm.eps)

    return build


def instance_norm(norm: InstanceNormConfig, virtual_ranks: int) -> Build:
    """InstanceNorm: each sample and channel over its pixels.

        y = (x - mean_c) / sqrt(var_c + eps) * gamma_c + beta_c,   mean, var over H, W

    Shape: (B, C, ...) -> (B, C, ...), with at least one axis of pixels.
    Train and eval are identical: no buffers. NBS 1.
    Source: Ulyanov et al. 2016, arXiv:1607.08022.
    """
    types: dict[type[_BatchNorm], type[nn.Module]] = {
        nn.BatchNorm1d: InstanceNorm1d,
        nn.BatchNorm2d: nn.InstanceNorm2d,
        nn.BatchNorm3d: nn.InstanceNorm3d,
    }

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        kind: Any = next(new for base, new in types.items() if isinstance(layer, base))
        bias = layer.bias is not None
        new = kind(layer.num_features, norm.eps, affine=layer.affine, bias=bias, device="meta")
        return take_over(new, layer)

    return build


class InstanceNorm1d(nn.InstanceNorm1d):
    """torch's, for (B, C, L) alone: it would read BatchNorm1d's (B, C) as one sample of B channels.

    Raises: ValueError on (B, C), whose channels have one value each.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 3:
            raise ValueError(f"InstanceNorm1d takes (B, C, L), got {tuple(input.shape)}; use norm=ln or norm=bn.")


def _group_norm(layer: _BatchNorm, groups: int, eps: float) -> nn.Module:
    bias = layer.bias is not None
    new = nn.GroupNorm(groups, layer.num_features, eps, affine=layer.affine, bias=bias, device="meta")
    return take_over(new, layer)


def num_groups(channels: int, norm: GroupNormConfig, name: str) -> int:
    """Groups of a layer with that many channels.

    Where the wish does not divide and norm.nondivisible=nearest, the nearest divisor, of two the larger.
    Raises: ConfigError naming the layer where it does not divide otherwise.
    """
    key = "num_groups" if norm.num_groups is not None else "channels_per_group"
    wish = norm.num_groups or norm.channels_per_group
    assert wish is not None
    valid = divisors(channels)
    nearest = min(valid, key=lambda d: (abs(d - wish), -d))
    if nearest != wish and norm.nondivisible is Nondivisible.error:
        raise ConfigError(
            f"norm.{key}={wish} does not divide the {channels} channels of layer "
            f"{name or 'the model itself'}; choose one of {valid}, or set norm.nondivisible=nearest "
            f"(here {nearest})."
        )
    return nearest if key == "num_groups" else channels // nearest


# --- how many values a statistic is made of, from the shape of a layer's input on one rank --------------


def _per_channel(shape: Sequence[int], norm: NormConfig, ranks: int) -> int:
    """Of the samples of NBS: the batch axis holds one rank's share of them."""
    return math.prod(shape) // shape[1] * norm.normalization_batch_size(1, ranks)


def _per_group(shape: Sequence[int], norm: GroupNormConfig, ranks: int) -> int:
    return math.prod(shape[1:]) // num_groups(shape[1], norm, "")


def _per_sample(shape: Sequence[int], norm: NormConfig, ranks: int) -> int:
    return math.prod(shape[1:])


def _per_instance(shape: Sequence[int], norm: NormConfig, ranks: int) -> int:
    return math.prod(shape[2:])


@dataclass(frozen=True, kw_only=True)
class Norm:
    """What the harness knows of a norm."""

    builder: Callable[[Any, int], Build]
    """From the norm's config and virtual_ranks, what makes its layers. Its docstring defines the norm."""

    values: Callable[[Sequence[int], Any, int], int]
    """(shape of a layer's input on one rank, config, ranks) -> values that one statistic is made of."""

    unit: str
    """What has one mean and one variance."""

    remedy: str
    """What helps where a statistic would be made of one value."""


NORMS: dict[str, Norm] = {
    "bn": Norm(
        builder=batch_norm,
        values=_per_channel,
        unit="channel",
        remedy="use a larger batch_size, norm=syncbn on several ranks, or norm=gn",
    ),
    "syncbn": Norm(
        builder=sync_batch_norm,
        values=_per_channel,
        unit="channel of all ranks in a sync group",
        remedy="use a larger batch_size, more ranks (or a larger norm.sync_group_size), or norm=gn",
    ),
    "gn": Norm(
        builder=group_norm,
        values=_per_group,
        unit="group of channels of a sample",
        remedy="use fewer groups, larger images, or norm=ln",
    ),
    "ln": Norm(
        builder=layer_norm,
        values=_per_sample,
        unit="sample",
        remedy="use larger images or a wider model",
    ),
    "in": Norm(
        builder=instance_norm,
        values=_per_instance,
        unit="channel of a sample",
        remedy="use larger images, a model with fewer strides, or norm=gn",
    ),
}
"""The one list of norms."""


def find_norm(name: str) -> Norm:
    """Raises: ConfigError listing the norms where `name` is none of them."""
    if name not in NORMS:
        raise ConfigError(f"norm={name} is unknown; choose one of {', '.join(NORMS)}.")
    return NORMS[name]
