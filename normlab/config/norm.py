"""Normalization layers: one section a norm, so that `norm=bn norm.num_groups=2` is refused."""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from omegaconf import MISSING

from normlab.config.section import ConfigError, Section, setting


class Nondivisible(Enum):
    """What to do where the groups do not divide a layer's channels."""

    error = "error"
    nearest = "nearest"


@dataclass(kw_only=True)
class NormConfig(Section):
    """What every norm has."""

    group: ClassVar[str] = "norm"

    name: str = MISSING
    """Which normalization: the name of a file under conf/norm."""

    eps: float = setting(1e-5, above=0)
    """Added to the variance before the square root."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        """Samples that share statistics (NBS), at `batch_size` samples on each of `ranks` logical ranks."""
        return 1


class RunningStats(Enum):
    """Which running statistics a model is evaluated and exported with, where each rank has its own."""

    rank0 = "rank0"
    pooled = "pooled"
    precise = "precise"


@dataclass(kw_only=True)
class BatchNormConfig(NormConfig):
    """BatchNorm: statistics over the samples and pixels of one rank."""

    name: str = "bn"

    running_stats: RunningStats = RunningStats.rank0
    """Evaluation sees rank 0's (what DDP amounts to), all ranks' pooled, or precise ones, computed for it."""

    precise_samples: int = setting(1024, minimum=2)
    """For running_stats=precise: training samples, unaugmented, that the statistics are computed on."""

    momentum: float | None = setting(0.1, above=0, maximum=1)
    """Share of the new batch in the running statistics; null averages over all batches seen."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size


@dataclass(kw_only=True)
class SyncBatchNormConfig(BatchNormConfig):
    """SyncBatchNorm: statistics over the samples and pixels of every rank in a sync group."""

    name: str = "syncbn"

    sync_group_size: int | None = setting(None, minimum=1)
    """Contiguous logical ranks that share statistics, a divisor of how many there are. null: all."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size * (self.sync_group_size or ranks)


@dataclass(kw_only=True)
class GroupNormConfig(NormConfig):
    """GroupNorm: statistics over groups of channels and all pixels of each sample."""

    name: str = "gn"

    num_groups: int | None = setting(None, minimum=1)
    """Groups per layer, 8 where neither this nor channels_per_group is given. They exclude each other."""

    channels_per_group: int | None = setting(None, minimum=1)
    """Channels in a group; the paper found 16 to work well (arXiv:1803.08494, table 3)."""

    nondivisible: Nondivisible = Nondivisible.error
    """Where the groups do not divide a layer's channels: an error, or the nearest divisor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_groups is not None and self.channels_per_group is not None:
            raise ConfigError(
                f"norm.num_groups={self.num_groups} and norm.channels_per_group={self.channels_per_group} "
                "exclude each other; give one of them."
            )
        if self.num_groups is None and self.channels_per_group is None:
            self.num_groups = 8


@dataclass(kw_only=True)
class LayerNormConfig(NormConfig):
    """LayerNorm on images: statistics over the channels and pixels of each sample."""

    name: str = "ln"


@dataclass(kw_only=True)
class InstanceNormConfig(NormConfig):
    """InstanceNorm: statistics over the pixels of each sample and channel."""

    name: str = "in"
