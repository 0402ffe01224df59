"""The configuration of each norm, with which a few samples and channels will do."""

from normlab.config.norm import NORMS, EpsConfig, GroupNormConfig, NormConfig, RunningStatistics
from tests.norms.definitions import SETTINGS

OF_BATCH = [name for name, norm in NORMS.items() if norm.needs_batch]
"""Norms whose statistics are of the batch, in training."""

OF_RANK = [name for name in OF_BATCH if not NORMS[name].needs_ranks]
"""Those for which a rank's batch is apart from the others'."""

OF_SAMPLE = [
    name
    for name, norm in NORMS.items()
    if not norm.needs_batch and norm().statistic_size((2, 8, 4, 4), ranks=1) is not None
]
OVER_PIXELS = [name for name in OF_SAMPLE if NORMS[name]().statistic_size((2, 16, 3, 5), ranks=1) == 3 * 5]
ACTIVATING = [name for name, norm in NORMS.items() if norm.builder_without_activation]
WITH_EPS = [name for name, norm in NORMS.items() if issubclass(norm, EpsConfig)]

UNFROZEN = [name for name, norm in NORMS.items() if norm.running_statistics is not RunningStatistics.fixed]
"""Norms that train without a file of statistics."""


def config(name: str, **settings: object) -> NormConfig:
    if name not in WITH_EPS:
        settings.pop("eps", None)
    return NORMS[name](**SETTINGS.get(name, {}) | settings)


def in_groups(name: str, number: int) -> dict[str, int]:
    """The settings of a norm with that many groups of channels, if it has groups."""
    return {"num_groups": number} if issubclass(NORMS[name], GroupNormConfig) else {}


def overrides_of(name: str) -> list[str]:
    """The same as `config`, as a command line."""
    return [f"norm={name}", *(f"norm.{key}={value}" for key, value in SETTINGS.get(name, {}).items())]


def without_bias(layer):
    """As bias=False makes it in torch 2.15: of older versions, and of a model's own making."""
    layer.register_parameter("bias", None)
    return layer
