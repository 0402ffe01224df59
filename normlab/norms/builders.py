"""How each norm is made from a BatchNorm layer: the docstring of a builder defines its norm.

Where norm.eps is null, eps is that of the layer, whatever the norm: so the norms of a comparison differ by their
statistics alone, and the size below which the model's authors took a variance for noise stays theirs. Of frn
null is not the default: the paper's 1e-6 belongs to its mean square.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config import (
    BatchInstanceNormConfig,
    BatchNormConfig,
    BatchRenormConfig,
    ChannelLayerNormConfig,
    ConfigError,
    EvoNormS0Config,
    FilterResponseNormConfig,
    FrozenBatchNormConfig,
    GhostBatchNormConfig,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    Nondivisible,
    NoNormConfig,
    RmsNormConfig,
    StatisticsConfig,
    SwitchableNormConfig,
    SyncBatchNormConfig,
)
from normlab.norms.batch_renorm import BatchRenorm
from normlab.norms.frozen_batch_norm import FrozenBatchNorm
from normlab.norms.ghost_batch_norm import GhostBatchNorm
from normlab.norms.mixed_norms import BatchInstanceNorm, SwitchableNorm
from normlab.norms.replace import layer_label, take_over
from normlab.norms.sample_norms import (
    AffineNorm,
    ChannelAffine,
    ChannelLayerNorm,
    ChannelRmsNorm,
    EvoNormS0,
    FilterResponseNorm,
    FilterResponseNormTLU,
    InstanceNorm1d,
)
from normlab.norms.sync_batch_norm import SyncBatchNorm
from normlab.norms.sync_groups import check_sync_group_size, divisors, real_ranks, sync_group
from normlab.norms.virtual_batch_norm import VirtualBatchNorm

Build = Callable[[_BatchNorm, str], nn.Module]
"""(layer, its dotted name) -> the layer that takes its place."""


def batch_norm(norm: BatchNormConfig, virtual_ranks: int) -> Build:
    """BatchNorm: the layer itself, with norm.eps and norm.momentum if they are given.

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


def ghost_batch_norm(norm: GhostBatchNormConfig, virtual_ranks: int) -> Build:
    """Ghost BatchNorm: see normlab.norms.ghost_batch_norm.GhostBatchNorm."""

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _set_up(GhostBatchNorm.from_batch_norm(layer, norm.ghost_batch_size, virtual_ranks), norm)

    return build


def batch_renorm(norm: BatchRenormConfig, virtual_ranks: int) -> Build:
    """Batch Renormalization: see normlab.norms.batch_renorm.BatchRenorm."""
    limits = (norm.r_max, norm.d_max, norm.bn_batches, norm.d_max_batches, norm.r_max_batches)

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _set_up(BatchRenorm.from_batch_norm(layer, virtual_ranks, *limits), norm)

    return build


def switchable_norm(norm: SwitchableNormConfig, virtual_ranks: int) -> Build:
    """Switchable Normalization: see normlab.norms.mixed_norms.SwitchableNorm."""
    return lambda layer, name: _set_up(SwitchableNorm.from_batch_norm(layer, virtual_ranks), norm)


def batch_instance_norm(norm: BatchInstanceNormConfig, virtual_ranks: int) -> Build:
    """Batch-Instance Normalization: see normlab.norms.mixed_norms.BatchInstanceNorm."""
    return lambda layer, name: _set_up(BatchInstanceNorm.from_batch_norm(layer, virtual_ranks), norm)


def frozen_batch_norm(norm: FrozenBatchNormConfig, virtual_ranks: int) -> Build:
    """Frozen BatchNorm: the running statistics, gamma and beta that the model came with, none of them trained.

        y = (x - running_mean_c) / sqrt(running_var_c + eps) * gamma_c + beta_c

    All four are buffers, as in detection practice (torchvision.ops.FrozenBatchNorm2d).
    Train and eval are identical, at any batch.
    Raises: ConfigError if a layer keeps no running statistics.
    Source: He et al. 2015, arXiv:1512.03385, appendix A.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        if layer.running_mean is None:
            raise ConfigError(
                f"norm=frozen_bn cannot freeze layer {layer_label(name, layer)}, which keeps no running "
                "statistics; choose another norm or model."
            )
        return FrozenBatchNorm.from_batch_norm(layer, _eps(norm, layer))

    return build


def _set_up(layer: _BatchNorm, norm: BatchNormConfig) -> _BatchNorm:
    layer.eps = _eps(norm, layer)
    if norm.momentum is not None:
        layer.momentum = norm.momentum
    return layer


def _eps(norm: StatisticsConfig, layer: _BatchNorm) -> float:
    return layer.eps if norm.eps is None else norm.eps


def group_norm(norm: GroupNormConfig, virtual_ranks: int) -> Build:
    """GroupNorm: each sample over groups of channels and all pixels.

        y = (x - mean_g) / sqrt(var_g + eps) * gamma_c + beta_c,   g = group of channel c

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Raises: ConfigError if the groups do not divide a layer's channels.
    Source: Wu & He 2018, arXiv:1803.08494, section 3.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _group_norm(layer, num_groups(layer.num_features, norm, name), _eps(norm, layer))

    return build


def layer_norm(norm: LayerNormConfig, virtual_ranks: int) -> Build:
    """LayerNorm on images: each sample over all channels and pixels, which is GroupNorm with one group.

        y = (x - mean) / sqrt(var + eps) * gamma_c + beta_c,   mean, var over C, H, W

    The affine is per channel, as in the other norms, and not per element as in torch.nn.LayerNorm.
    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Source: Ba et al. 2016, arXiv:1607.06450; on images: Wu & He 2018, arXiv:1803.08494, section 3.1.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return _group_norm(layer, 1, _eps(norm, layer))

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
        new = kind(layer.num_features, _eps(norm, layer), affine=layer.affine, bias=bias, device="meta")
        return take_over(new, layer)

    return build


def channel_layer_norm(norm: ChannelLayerNormConfig, virtual_ranks: int) -> Build:
    """LayerNorm over channels: each pixel of each sample by itself, as in ConvNeXt.

        y = (x - mean) / sqrt(var + eps) * gamma_c + beta_c,   mean, var over C

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Source: Ba et al. 2016, arXiv:1607.06450; at each pixel: Liu et al. 2022, arXiv:2201.03545.
    """
    return lambda layer, name: _affine_norm(ChannelLayerNorm, layer, _eps(norm, layer))


def rms_norm(norm: RmsNormConfig, virtual_ranks: int) -> Build:
    """RMSNorm over channels: each pixel of each sample by itself, without subtracting a mean.

        y = x / sqrt(mean(x^2) + eps) * gamma_c + beta_c,   the mean over C

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467, equation 4; the axes are those of ln2d.
    """
    return lambda layer, name: _affine_norm(ChannelRmsNorm, layer, _eps(norm, layer))


def filter_response_norm_tlu(norm: FilterResponseNormConfig, virtual_ranks: int) -> Build:
    """Filter Response Normalization with a thresholded linear unit (TLU) in place of the activation.

        y = max(x / sqrt(mean(x^2) + eps) * gamma_c + beta_c, tau_c),   the mean over H, W

    If no activation follows, as before the sum of a residual block, there is no TLU either, and the activation
    after the sum stays. eps is fixed (the paper also learns it, for layers with few pixels). tau has no weight
    decay (the paper mentions none; decay would pull tau back to ReLU's 0).
    Shape: (B, C, ...) -> (B, C, ...), with at least one axis of pixels.
    Train and eval are identical: no buffers. NBS 1.
    Source: Singh & Krishnan 2019, arXiv:1911.09737, section 3.
    """
    return lambda layer, name: _affine_norm(FilterResponseNormTLU, layer, _eps(norm, layer))


def filter_response_norm(norm: FilterResponseNormConfig, virtual_ranks: int) -> Build:
    """FRN where no activation follows: without TLU."""
    return lambda layer, name: _affine_norm(FilterResponseNorm, layer, _eps(norm, layer))


def evonorm_s0(norm: EvoNormS0Config, virtual_ranks: int) -> Build:
    """EvoNorm-S0: x gated by itself, over the deviation of a group of channels; norm and activation in one.

        y = x * sigmoid(v_c x) / sqrt(var_g + eps) * gamma_c + beta_c,   var over C/G, H, W of group g

    If no activation follows, as before the sum of a residual block, only gamma and beta remain, as in timm, and
    the activation after the sum stays. v has no weight decay, as in the authors' code (where gamma and beta have
    none either: optim.norm_weight_decay=0).
    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Raises: ConfigError if the groups do not divide a layer's channels.
    Source: Liu et al. 2020, arXiv:2004.02967, table 2.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        groups, bias = num_groups(layer.num_features, norm, name), layer.bias is not None
        return take_over(EvoNormS0(layer.num_features, groups, _eps(norm, layer), layer.affine, bias=bias), layer)

    return build


def channel_affine(norm: NoNormConfig | EvoNormS0Config, virtual_ranks: int) -> Build:
    """No normalization: only gamma and beta, per channel.

        y = x * gamma_c + beta_c

    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical, at any batch. NBS 1.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return take_over(ChannelAffine(layer.num_features, layer.affine, bias=layer.bias is not None), layer)

    return build


def _affine_norm(kind: type[AffineNorm], layer: _BatchNorm, eps: float) -> nn.Module:
    return take_over(kind(layer.num_features, eps, layer.affine, bias=layer.bias is not None), layer)


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
