"""Normalization layers: one section per norm, so that `norm=bn norm.num_groups=2` is refused."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from normlab.config.section import Choice, ConfigError, choice, setting


class Nondivisible(Enum):
    """What to do where the groups do not divide a layer's channels."""

    error = "error"
    nearest = "nearest"


@dataclass(kw_only=True)
class NormConfig(Choice):
    """Settings of every norm."""

    group: ClassVar[str] = "norm"

    name: str = MISSING
    """Which normalization: `norm=<name>` chooses it."""

    weight_standardization: bool = False
    """Also standardise the weights of convolutions without a bias (arXiv:1903.10520)."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        """Samples that share statistics (NBS), at `batch_size` samples on each of `ranks` logical ranks."""
        return 1


@dataclass(kw_only=True)
class StatisticsConfig(NormConfig):
    """Settings of every norm with statistics."""

    eps: float | None = setting(None, above=0)
    """Added to the variance, or to the mean square, before the square root. null: each layer keeps the
    model's own."""


@choice("none")
@dataclass(kw_only=True)
class NoNormConfig(NormConfig):
    """No normalization: gamma and beta of each channel alone."""

    name: str = "none"


@choice("frozen_bn")
@dataclass(kw_only=True)
class FrozenBatchNormConfig(StatisticsConfig):
    """Frozen BatchNorm: the statistics, gamma and beta of model.init_from, none of them trained."""

    name: str = "frozen_bn"


class RunningStats(Enum):
    """Which running statistics a model is evaluated and exported with, where each rank has its own."""

    rank0 = "rank0"
    pooled = "pooled"
    precise = "precise"


@choice("bn")
@dataclass(kw_only=True)
class BatchNormConfig(StatisticsConfig):
    """BatchNorm: statistics over the samples and pixels of one rank."""

    name: str = "bn"

    running_stats: RunningStats = RunningStats.rank0
    """Which statistics an evaluation uses: rank 0's (as under DDP), those of all ranks pooled, or precise ones
    that are computed for it."""

    precise_samples: int = setting(1024, minimum=2)
    """For running_stats=precise: the number of unaugmented training samples to compute the statistics on."""

    momentum: float | None = setting(None, above=0, maximum=1)
    """Share of the new batch in the running statistics. null: each layer keeps the model's own."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size


@choice("syncbn")
@dataclass(kw_only=True)
class SyncBatchNormConfig(BatchNormConfig):
    """SyncBatchNorm: statistics over the samples and pixels of every rank in a sync group."""

    name: str = "syncbn"

    sync_group_size: int | None = setting(None, minimum=1)
    """Contiguous logical ranks that share statistics; it must divide the number of logical ranks. null: all."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size * (self.sync_group_size or ranks)


@choice("ghost_bn")
@dataclass(kw_only=True)
class GhostBatchNormConfig(BatchNormConfig):
    """Ghost BatchNorm: statistics over the samples and pixels of a part of one rank's batch."""

    name: str = "ghost_bn"

    ghost_batch_size: int = setting(8, minimum=1)
    """Samples that share statistics; it must divide batch_size."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return self.ghost_batch_size


@choice("batch_renorm")
@dataclass(kw_only=True)
class BatchRenormConfig(BatchNormConfig):
    """Batch Renormalization: BatchNorm, corrected towards its running statistics within limits that widen."""

    name: str = "batch_renorm"

    r_max: float = setting(3.0, minimum=1)
    """Final limit on the correction of the scale: r lies in [1 / r_max, r_max]."""

    d_max: float = setting(5.0, minimum=0)
    """Final limit on the correction of the mean, in running deviations: d lies in [-d_max, d_max]."""

    bn_batches: int = setting(500, minimum=0)
    """Batches per rank (micro-batches where accumulate > 1) that are normalised as by BatchNorm, without
    correction. The defaults of the three lengths are the paper's for momentum 0.01, in units of 1 / momentum."""

    d_max_batches: int = setting(2500, minimum=0)
    """Batches from the start until d_max is reached, linearly from 0."""

    r_max_batches: int = setting(4000, minimum=0)
    """Batches from the start until r_max is reached, linearly from 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("d_max_batches", "r_max_batches"):
            if getattr(self, name) < self.bn_batches:
                raise ConfigError(
                    f"norm.{name}={getattr(self, name)} ends before norm.bn_batches={self.bn_batches}; "
                    f"raise it, or lower norm.bn_batches."
                )


@choice("switchable")
@dataclass(kw_only=True)
class SwitchableNormConfig(BatchNormConfig):
    """Switchable Normalization: a learned mixture of the statistics of in, ln and bn."""

    name: str = "switchable"


@choice("batch_instance")
@dataclass(kw_only=True)
class BatchInstanceNormConfig(BatchNormConfig):
    """Batch-Instance Normalization: a learned mixture of the outputs of bn and in, per channel."""

    name: str = "batch_instance"


@choice("gn")
@dataclass(kw_only=True)
class GroupNormConfig(StatisticsConfig):
    """GroupNorm: statistics over groups of channels and all pixels of each sample."""

    name: str = "gn"

    num_groups: int | None = setting(None, minimum=1)
    """Groups per layer; 8 if neither this nor channels_per_group is given. Give at most one of the two."""

    channels_per_group: int | None = setting(None, minimum=1)
    """Channels per group; the paper found 16 to work well (arXiv:1803.08494, table 3)."""

    nondivisible: Nondivisible = Nondivisible.error
    """What to do if the groups do not divide a layer's channels: refuse, or use the nearest divisor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_groups is not None and self.channels_per_group is not None:
            raise ConfigError(
                f"norm.num_groups={self.num_groups} and norm.channels_per_group={self.channels_per_group} "
                "exclude each other; give one of them."
            )
        if self.num_groups is None and self.channels_per_group is None:
            self.num_groups = 8


@choice("ln")
@dataclass(kw_only=True)
class LayerNormConfig(StatisticsConfig):
    """LayerNorm on images: statistics over the channels and pixels of each sample."""

    name: str = "ln"


@choice("in")
@dataclass(kw_only=True)
class InstanceNormConfig(StatisticsConfig):
    """InstanceNorm: statistics over the pixels of each sample and channel."""

    name: str = "in"


@choice("ln2d")
@dataclass(kw_only=True)
class ChannelLayerNormConfig(StatisticsConfig):
    """LayerNorm over channels: statistics over the channels of each sample and pixel."""

    name: str = "ln2d"


@choice("rms")
@dataclass(kw_only=True)
class RmsNormConfig(StatisticsConfig):
    """RMSNorm over channels: the mean square over the channels of each sample and pixel."""

    name: str = "rms"


@choice("frn")
@dataclass(kw_only=True)
class FilterResponseNormConfig(StatisticsConfig):
    """Filter Response Normalization: statistics over the pixels of each sample and channel; its TLU replaces the
    activation."""

    name: str = "frn"

    eps: float | None = setting(1e-6, above=0)
    """Added to the mean square before the square root; the default is the paper's. null: each layer keeps the
    model's own."""


@choice("evonorm_s0")
@dataclass(kw_only=True)
class EvoNormS0Config(GroupNormConfig):
    """EvoNorm-S0: a norm and an activation in one, with the statistics of gn."""

    name: str = "evonorm_s0"
