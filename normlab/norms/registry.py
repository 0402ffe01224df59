"""The one list of norms: how each is made, what it needs, and how many values its statistics have."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from normlab.config import ConfigError, GroupNormConfig, NormConfig
from normlab.norms import builders
from normlab.norms.batch_renorm import BatchRenorm
from normlab.norms.builders import Build, num_groups
from normlab.norms.ghost_batch_norm import GhostBatchNorm
from normlab.norms.mixed_norms import BatchInstanceNorm, SwitchableNorm
from normlab.norms.sync_batch_norm import SyncBatchNorm

# --- how many values a statistic is made of, from the shape of a layer's input on one rank --------------


def _per_channel(shape: Sequence[int], norm: NormConfig, ranks: int) -> int:
    """Of the samples of NBS: the batch axis holds one rank's batch."""
    return math.prod(shape[2:]) * norm.normalization_batch_size(shape[0], ranks)


def _per_group(shape: Sequence[int], norm: GroupNormConfig, ranks: int) -> int:
    return math.prod(shape[1:]) // num_groups(shape[1], norm, "")


def _per_sample(shape: Sequence[int], norm: NormConfig, ranks: int) -> int:
    return math.prod(shape[1:])


def _per_instance(shape: Sequence[int], norm: NormConfig, ranks: int) -> int:
    return math.prod(shape[2:])


def _per_pixel(shape: Sequence[int], norm: NormConfig, ranks: int) -> int:
    return shape[1]


class RunningStatistics(Enum):
    """What a norm keeps from batch to batch."""

    none = "no"
    fixed = "fixed"
    kept = "yes"


@dataclass(frozen=True, kw_only=True)
class Norm:
    """What the harness knows of a norm."""

    builder: Callable[[Any, int], Build]
    """From the norm's config and virtual_ranks, what makes its layers."""

    definition: Any = None
    """Whose docstring defines the norm; None: that of `builder`."""

    needs_batch: bool = False
    """Whether, in training, a sample's output depends on other samples of its rank's batch."""

    needs_ranks: bool = False
    """Whether it depends on samples of other ranks: each forward and backward has a collective."""

    running_statistics: RunningStatistics = RunningStatistics.none
    """Whether it keeps running statistics, with which it is evaluated."""

    linear: Callable[[Any, int], Build] | None = None
    """Of a norm that takes the place of the activation as well: what stands where none follows."""

    values: Callable[[Sequence[int], Any, int], int] | None = None
    """(shape of a layer's input on one rank, config, ranks) -> values that one statistic is made of."""

    unit: str = ""
    """What has one statistic."""

    remedy: str = ""
    """What helps where a statistic would be made of one value."""

    when: str
    """When to use it."""


_OF_BATCH: dict[str, Any] = {
    "needs_batch": True,
    "running_statistics": RunningStatistics.kept,
    "values": _per_channel,
}

NORMS: dict[str, Norm] = {
    "bn": Norm(
        builder=builders.batch_norm,
        **_OF_BATCH,
        unit="channel",
        remedy="use a larger batch_size, norm=syncbn on several ranks, or norm=gn",
        when="The default for image classification with about 16 samples per rank or more.",
    ),
    "syncbn": Norm(
        builder=builders.sync_batch_norm,
        definition=SyncBatchNorm,
        **_OF_BATCH,
        needs_ranks=True,
        unit="channel of all ranks in a sync group",
        remedy="use a larger batch_size, more ranks (or a larger norm.sync_group_size), or norm=gn",
        when="Few samples per rank, many ranks, and a fast network between them.",
    ),
    "ghost_bn": Norm(
        builder=builders.ghost_batch_norm,
        definition=GhostBatchNorm,
        **_OF_BATCH,
        unit="channel of a ghost batch",
        remedy="use a larger norm.ghost_batch_size, or norm=gn",
        when="Large batches per rank, if you want the noise of a smaller normalization batch.",
    ),
    "batch_renorm": Norm(
        builder=builders.batch_renorm,
        definition=BatchRenorm,
        **_OF_BATCH,
        unit="channel",
        remedy="use a larger batch_size, or norm=gn",
        when="Small batches, or batches whose samples are not independent, if evaluation must be that of bn and "
        "ranks should not wait for each other.",
    ),
    "switchable": Norm(
        builder=builders.switchable_norm,
        definition=SwitchableNorm,
        **_OF_BATCH,
        unit="channel",
        remedy="use a larger batch_size, or norm=gn",
        when="To let each layer choose between in, ln and bn, and to see what it chose.",
    ),
    "batch_instance": Norm(
        builder=builders.batch_instance_norm,
        definition=BatchInstanceNorm,
        **_OF_BATCH,
        unit="channel",
        remedy="use a larger batch_size, or norm=gn",
        when="If the style of an image (contrast, colour) matters in some channels and not in others.",
    ),
    "frozen_bn": Norm(
        builder=builders.frozen_batch_norm,
        running_statistics=RunningStatistics.fixed,
        when="To fine-tune a pretrained model with few samples per rank, as in detection.",
    ),
    "gn": Norm(
        builder=builders.group_norm,
        values=_per_group,
        unit="group of channels of a sample",
        remedy="use fewer groups, larger images, or norm=ln",
        when="Few samples per rank: detection, segmentation, video, large models.",
    ),
    "ln": Norm(
        builder=builders.layer_norm,
        values=_per_sample,
        unit="sample",
        remedy="use larger images or a wider model",
        when="For comparison, as the extreme case of gn: a single group.",
    ),
    "in": Norm(
        builder=builders.instance_norm,
        values=_per_instance,
        unit="channel of a sample",
        remedy="use larger images, a model with fewer strides, or norm=gn",
        when="Style transfer and image generation. In classification, it discards the scale of each "
        "channel, which may be informative.",
    ),
    "ln2d": Norm(
        builder=builders.channel_layer_norm,
        values=_per_pixel,
        unit="pixel of a sample",
        remedy="use a wider model",
        when="Networks like ConvNeXt and transformers, at any image size and batch.",
    ),
    "rms": Norm(
        builder=builders.rms_norm,
        values=_per_pixel,
        unit="pixel of a sample",
        remedy="use a wider model",
        when="Like ln2d, if subtracting the mean is not wanted or costs too much.",
    ),
    "frn": Norm(
        builder=builders.filter_response_norm_tlu,
        linear=builders.filter_response_norm,
        values=_per_instance,
        unit="channel of a sample",
        remedy="use larger images, a model with fewer strides, or norm=gn",
        when="Small batches, if the activation may be replaced as well.",
    ),
    "evonorm_s0": Norm(
        builder=builders.evonorm_s0,
        linear=builders.channel_affine,
        values=_per_group,
        unit="group of channels of a sample",
        remedy="use fewer groups or larger images",
        when="Small batches, if the activation may be replaced as well.",
    ),
    "none": Norm(
        builder=builders.channel_affine,
        when="As a baseline, to see what a norm does at all. Expect to need a smaller learning rate.",
    ),
}
"""The one list of norms."""


def definition(name: str) -> str:
    """The docstring that defines a norm."""
    entry = NORMS[name]
    return inspect.getdoc(entry.definition or entry.builder) or ""


def find_norm(name: str) -> Norm:
    """Raises: ConfigError listing the norms where `name` is none of them."""
    if name not in NORMS:
        raise ConfigError(f"norm={name} is unknown; choose one of {', '.join(NORMS)}.")
    return NORMS[name]
