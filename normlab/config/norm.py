"""Normalization layers: a class for each, with its keys and what normlab has to know of it.

The order of the classes is the order in which norms are listed everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from omegaconf import MISSING

from normlab.config.section import SCHEMAS, Choice, ConfigError, choice, imported, name_of_target, setting


class RunningStatistics(Enum):
    """What a norm keeps from batch to batch, to be evaluated with."""

    none = "no"
    fixed = "fixed"
    kept = "yes"


@dataclass(kw_only=True)
class NormConfig(Choice):
    """Settings of every norm."""

    group: ClassVar[str] = "norm"

    # What a norm declares, beside its keys. Its `builder` is called with (this config, virtual_ranks) and gives a
    # normlab.norms.replace.Build.

    defined_by: ClassVar[str] = ""
    """`module:name` of the layer whose docstring defines the norm; "" where that of the builder does."""

    builder_without_activation: ClassVar[str] = ""
    """What builds the layer where no activation follows, for a norm that also replaces the activation."""

    needs_batch: ClassVar[bool] = False
    """Whether, in training, a sample's output depends on other samples of its rank's batch."""

    needs_ranks: ClassVar[bool] = False
    """Whether it depends on samples of other ranks: each forward and backward has a collective."""

    running_statistics: ClassVar[RunningStatistics] = RunningStatistics.none

    unit: ClassVar[str] = ""
    """What has a statistic of its own."""

    remedy: ClassVar[str] = ""
    """What helps where a statistic would be made of one value."""

    when: ClassVar[str]
    """When to use it."""

    colour: ClassVar[str]
    """In every figure: #RRGGBB, best one of normlab.report.style.COLOURS."""

    marker: ClassVar[str]
    """matplotlib's letter for it."""

    name: str = MISSING
    """Which normalization: `norm=<name>` chooses it."""

    weight_standardization: bool = False
    """Also standardise the weights of convolutions without a bias (arXiv:1903.10520)."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        """Samples that share statistics (NBS), at `batch_size` samples on each of `ranks` logical ranks."""
        return 1

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int | None:
        """Values that one statistic is made of, where a layer's input on one rank has `shape` (B, C, ...).

        None: the norm computes no statistics in training.
        """
        return None

    def check(self, channels: Mapping[str, int], batch_size: int, ranks: int, virtual_ranks: int) -> None:
        """Refuse settings that do not fit the layers (their names and channels), the batch or the ranks.

        Raises: ConfigError.
        """


@dataclass(kw_only=True)
class EpsConfig(NormConfig):
    """Settings of every norm that divides by a deviation or a root mean square."""

    eps: float | None = setting(None, above=0)
    """Added to the variance, or to the mean square, before the square root. null: each layer keeps the
    model's own."""


class RunningStats(Enum):
    """Which running statistics a model is evaluated and exported with, where each rank has its own."""

    rank0 = "rank0"
    pooled = "pooled"
    precise = "precise"


@dataclass(kw_only=True)
class BatchStatisticsConfig(NormConfig):
    """Settings of every norm that keeps running statistics of its batches."""

    needs_batch = True
    running_statistics = RunningStatistics.kept
    unit = "channel"
    remedy = "use a larger batch_size, or norm=gn"

    running_stats: RunningStats = RunningStats.rank0
    """Which statistics an evaluation uses: rank 0's (as under DDP), those of all ranks pooled, or precise ones
    that are computed for it."""

    precise_samples: int = setting(1024, minimum=2)
    """For running_stats=precise: the number of unaugmented training samples to compute the statistics on."""

    momentum: float | None = setting(None, above=0, maximum=1)
    """Share of the new batch in the running statistics. null: each layer keeps the model's own."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int:
        return math.prod(shape[2:]) * self.normalization_batch_size(shape[0], ranks)


@choice("bn")
@dataclass(kw_only=True)
class BatchNormConfig(BatchStatisticsConfig, EpsConfig):
    """BatchNorm: statistics over the samples and pixels of one rank."""

    builder = "normlab.norms.virtual_batch_norm:batch_norm"
    remedy = "use a larger batch_size, norm=syncbn on several ranks, or norm=gn"
    when = "The default for image classification with about 16 samples per rank or more."
    colour, marker = "#0072B2", "o"

    name: str = "bn"


@choice("syncbn")
@dataclass(kw_only=True)
class SyncBatchNormConfig(BatchStatisticsConfig, EpsConfig):
    """SyncBatchNorm: statistics over the samples and pixels of every rank in a sync group."""

    builder = "normlab.norms.sync_groups:sync_batch_norm"
    defined_by = "normlab.norms.sync_batch_norm:SyncBatchNorm"
    needs_ranks = True
    unit = "channel of all ranks in a sync group"
    remedy = "use a larger batch_size, more ranks (or a larger norm.sync_group_size), or norm=gn"
    when = "Few samples per rank, many ranks, and a fast network between them."
    colour, marker = "#D55E00", "s"

    name: str = "syncbn"

    sync_group_size: int | None = setting(None, minimum=1)
    """Contiguous logical ranks that share statistics; it must divide the number of logical ranks. null: all."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return batch_size * (self.sync_group_size or ranks)

    def check(self, channels: Mapping[str, int], batch_size: int, ranks: int, virtual_ranks: int) -> None:
        check_sync_group_size(self.sync_group_size, ranks, virtual_ranks)


def check_sync_group_size(size: int | None, ranks: int, virtual_ranks: int = 1) -> None:
    """What `size` contiguous logical ranks (None: all) of `ranks` can share, `virtual_ranks` in each process.

    Raises: ConfigError where `size` does not divide their number, or a group would end within a process.
    """
    if size is None:
        return
    fits = [d for d in divisors(ranks) if d % virtual_ranks == 0 or virtual_ranks % d == 0]
    if ranks % size:
        raise ConfigError(
            f"norm.sync_group_size={size} does not divide the {ranks} ranks; "
            f"choose one of {fits}, or null for all ranks."
        )
    if size not in fits:
        raise ConfigError(
            f"norm.sync_group_size={size} with virtual_ranks={virtual_ranks} would end within a process; "
            f"choose one of {fits}, null for all ranks, or another virtual_ranks."
        )


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


class Nondivisible(Enum):
    """What to do where the groups do not divide a layer's channels."""

    error = "error"
    nearest = "nearest"


@choice("gn")
@dataclass(kw_only=True)
class GroupNormConfig(EpsConfig):
    """GroupNorm: statistics over groups of channels and all pixels of each sample."""

    builder = "normlab.norms.sample_norms:group_norm"
    unit = "group of channels of a sample"
    remedy = "use fewer groups, larger images, or norm=ln"
    when = "Few samples per rank: detection, segmentation, video, large models."
    colour, marker = "#009E73", "^"

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

    def groups_of(self, channels: int, layer: str = "") -> int:
        """Groups of a layer with that many channels.

        Where the wish does not divide and norm.nondivisible=nearest, the nearest divisor, of two the larger.
        Raises: ConfigError naming the layer where it does not divide otherwise.
        """
        key = "num_groups" if self.num_groups is not None else "channels_per_group"
        wish = self.num_groups or self.channels_per_group
        assert wish is not None
        valid = divisors(channels)
        nearest = min(valid, key=lambda d: (abs(d - wish), -d))
        if nearest != wish and self.nondivisible is Nondivisible.error:
            raise ConfigError(
                f"norm.{key}={wish} does not divide the {channels} channels of layer "
                f"{layer or 'the model itself'}; choose one of {valid}, or set norm.nondivisible=nearest "
                f"(here {nearest})."
            )
        return nearest if key == "num_groups" else channels // nearest

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int:
        return math.prod(shape[1:]) // self.groups_of(shape[1])

    def check(self, channels: Mapping[str, int], batch_size: int, ranks: int, virtual_ranks: int) -> None:
        for layer, count in channels.items():
            self.groups_of(count, layer)


@choice("ln")
@dataclass(kw_only=True)
class LayerNormConfig(EpsConfig):
    """LayerNorm on images: statistics over the channels and pixels of each sample."""

    builder = "normlab.norms.sample_norms:layer_norm"
    unit = "sample"
    remedy = "use larger images or a wider model"
    when = "For comparison, as the extreme case of gn: a single group."
    colour, marker = "#CC79A7", "D"

    name: str = "ln"

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int:
        return math.prod(shape[1:])


@choice("in")
@dataclass(kw_only=True)
class InstanceNormConfig(EpsConfig):
    """InstanceNorm: statistics over the pixels of each sample and channel."""

    builder = "normlab.norms.sample_norms:instance_norm"
    unit = "channel of a sample"
    remedy = "use larger images, a model with fewer strides, or norm=gn"
    when = (
        "Style transfer and image generation. In classification, it discards the scale of each channel, which may "
        "be informative."
    )
    colour, marker = "#E69F00", "v"

    name: str = "in"

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int:
        return math.prod(shape[2:])


@choice("none")
@dataclass(kw_only=True)
class NoNormConfig(NormConfig):
    """No normalization: gamma and beta of each channel alone."""

    builder = "normlab.norms.sample_norms:channel_affine"
    when = "As a baseline, to see what a norm does at all. Expect to need a smaller learning rate."
    colour, marker = "#000000", "X"

    name: str = "none"


@choice("frozen_bn")
@dataclass(kw_only=True)
class FrozenBatchNormConfig(EpsConfig):
    """Frozen BatchNorm: the statistics, gamma and beta of model.init_from, none of them trained."""

    builder = "normlab.norms.frozen_batch_norm:frozen_batch_norm"
    defined_by = "normlab.norms.frozen_batch_norm:FrozenBatchNorm"
    running_statistics = RunningStatistics.fixed
    when = "To fine-tune a pretrained model with few samples per rank, as in detection."
    colour, marker = "#56B4E9", "p"

    name: str = "frozen_bn"


@choice("ghost_bn")
@dataclass(kw_only=True)
class GhostBatchNormConfig(BatchStatisticsConfig, EpsConfig):
    """Ghost BatchNorm: statistics over the samples and pixels of a part of one rank's batch."""

    builder = "normlab.norms.ghost_batch_norm:ghost_batch_norm"
    defined_by = "normlab.norms.ghost_batch_norm:GhostBatchNorm"
    unit = "channel of a ghost batch"
    remedy = "use a larger norm.ghost_batch_size, or norm=gn"
    when = "Large batches per rank, if you want the noise of a smaller normalization batch."
    colour, marker = "#56B4E9", "o"

    name: str = "ghost_bn"

    ghost_batch_size: int = setting(8, minimum=1)
    """Samples that share statistics; it must divide batch_size."""

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return self.ghost_batch_size

    def check(self, channels: Mapping[str, int], batch_size: int, ranks: int, virtual_ranks: int) -> None:
        if batch_size % self.ghost_batch_size:
            raise ConfigError(
                f"norm.ghost_batch_size={self.ghost_batch_size} does not divide batch_size={batch_size}; "
                f"choose one of {divisors(batch_size)}."
            )


@choice("batch_renorm")
@dataclass(kw_only=True)
class BatchRenormConfig(BatchStatisticsConfig, EpsConfig):
    """Batch Renormalization: BatchNorm, corrected towards its running statistics within limits that widen."""

    builder = "normlab.norms.batch_renorm:batch_renorm"
    defined_by = "normlab.norms.batch_renorm:BatchRenorm"
    when = (
        "Small batches, or batches whose samples are not independent, if evaluation must be that of bn and ranks "
        "should not wait for each other."
    )
    colour, marker = "#0072B2", "P"

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


@choice("ln2d")
@dataclass(kw_only=True)
class ChannelLayerNormConfig(EpsConfig):
    """LayerNorm over channels: statistics over the channels of each sample and pixel."""

    builder = "normlab.norms.sample_norms:channel_layer_norm"
    unit = "pixel of a sample"
    remedy = "use a wider model"
    when = "Networks like ConvNeXt and transformers, at any image size and batch."
    colour, marker = "#CC79A7", "h"

    name: str = "ln2d"

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int:
        return shape[1]


@choice("rms")
@dataclass(kw_only=True)
class RmsNormConfig(EpsConfig):
    """RMSNorm over channels: the mean square over the channels of each sample and pixel."""

    builder = "normlab.norms.sample_norms:rms_norm"
    unit = "pixel of a sample"
    remedy = "use a wider model"
    when = "Like ln2d, if subtracting the mean is not wanted or costs too much."
    colour, marker = "#CC79A7", "*"

    name: str = "rms"

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int:
        return shape[1]


@choice("frn")
@dataclass(kw_only=True)
class FilterResponseNormConfig(EpsConfig):
    """Filter Response Normalization: statistics over the pixels of each sample and channel; its TLU replaces the
    activation."""

    builder = "normlab.norms.activation_norms:filter_response_norm_tlu"
    builder_without_activation = "normlab.norms.activation_norms:filter_response_norm"
    unit = "channel of a sample"
    remedy = "use larger images, a model with fewer strides, or norm=gn"
    when = "Small batches, if the activation may be replaced as well."
    colour, marker = "#888888", ">"

    name: str = "frn"

    eps: float | None = setting(1e-6, above=0)
    """Added to the mean square before the square root; the default is the paper's. null: each layer keeps the
    model's own."""

    def statistic_size(self, shape: Sequence[int], ranks: int) -> int:
        return math.prod(shape[2:])


@choice("evonorm_s0")
@dataclass(kw_only=True)
class EvoNormS0Config(GroupNormConfig):
    """EvoNorm-S0: a norm and an activation in one, with the statistics of gn."""

    builder = "normlab.norms.activation_norms:evonorm_s0"
    builder_without_activation = "normlab.norms.sample_norms:channel_affine"
    remedy = "use fewer groups or larger images"
    when = "Small batches, if the activation may be replaced as well."
    colour, marker = "#888888", "<"

    name: str = "evonorm_s0"


@choice("switchable")
@dataclass(kw_only=True)
class SwitchableNormConfig(BatchStatisticsConfig, EpsConfig):
    """Switchable Normalization: a learned mixture of the statistics of in, ln and bn."""

    builder = "normlab.norms.mixed_norms:switchable_norm"
    defined_by = "normlab.norms.mixed_norms:SwitchableNorm"
    when = "To let each layer choose between in, ln and bn, and to see what it chose."
    colour, marker = "#009E73", "s"

    name: str = "switchable"


@choice("batch_instance")
@dataclass(kw_only=True)
class BatchInstanceNormConfig(BatchStatisticsConfig, EpsConfig):
    """Batch-Instance Normalization: a learned mixture of the outputs of bn and in, per channel."""

    builder = "normlab.norms.mixed_norms:batch_instance_norm"
    defined_by = "normlab.norms.mixed_norms:BatchInstanceNorm"
    when = "If the style of an image (contrast, colour) matters in some channels and not in others."
    colour, marker = "#E69F00", "o"

    name: str = "batch_instance"


@choice("custom")
@dataclass(kw_only=True)
class CustomNormConfig(NormConfig):
    """A norm of your own."""

    builder = "normlab.norms.custom:custom_norm"
    names: ClassVar[tuple[str, ...] | None] = None
    library: ClassVar[str] = "custom"

    name: str = ""
    """Determined by the target: my_norms.MyNorm."""

    target: str = ""
    """`module:name` of what makes each layer, in the folder of the command: called with num_features and args, it
    gives an nn.Module for inputs (B, C, ...). Its attributes needs_batch and needs_ranks, False if it has none,
    say whether in training a sample's output depends on others of its rank, or of all ranks. The module's file
    is part of the run's identity."""

    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the target by their names, such as 'norm.args={groups: 4}'."""

    def __post_init__(self) -> None:
        self.name = name_of_target(self, self.target, "my_norms:MyNorm")
        super().__post_init__()

    @property
    def needs_batch(self) -> bool:  # type: ignore[override]
        return self._declares("needs_batch") or self.needs_ranks

    @property
    def needs_ranks(self) -> bool:  # type: ignore[override]
        return self._declares("needs_ranks")

    def _declares(self, name: str) -> bool:
        """What the target says of itself. Raises: ConfigError where it cannot be imported."""
        return bool(
            getattr(imported("normlab.targets:imported_target")(self.key("target"), self.target), name, False)
        )

    def normalization_batch_size(self, batch_size: int, ranks: int) -> int:
        return (batch_size if self.needs_batch else 1) * (ranks if self.needs_ranks else 1)

    def check(self, channels: Mapping[str, int], batch_size: int, ranks: int, virtual_ranks: int) -> None:
        if virtual_ranks > 1 and self.needs_ranks:
            raise ConfigError(
                f"norm.target={self.target} needs other ranks (needs_ranks), which virtual_ranks={virtual_ranks} "
                f"cannot stand in for; use world_size={ranks} real ones."
            )


NORMS: dict[str, type[NormConfig]] = {
    name: norm for name, norm in SCHEMAS["norm"].items() if issubclass(norm, NormConfig) and not norm.library
}
"""Each of our norms by its name: documented, tested, measured and drawn. What may be chosen is SCHEMAS["norm"]."""
