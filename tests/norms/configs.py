"""The configuration of each norm, with which a few samples and channels will do."""

from normlab.config.norm import NORMS, NormConfig

OF_BATCH = [name for name, norm in NORMS.items() if norm.needs_batch]
"""Norms whose statistics are of the batch, in training."""

OF_SAMPLE = [
    name
    for name, norm in NORMS.items()
    if not norm.needs_batch and norm().statistic_size((2, 8, 4, 4), ranks=1) is not None
]
ACTIVATING = [name for name, norm in NORMS.items() if norm.builder_without_activation]

_FEW = {
    "ghost_bn": {"ghost_batch_size": 2},
    "batch_renorm": {"bn_batches": 0, "d_max_batches": 4, "r_max_batches": 8},
}


def config(name: str, **settings: object) -> NormConfig:
    if name == "none":
        settings.pop("eps", None)
    return NORMS[name](**_FEW.get(name, {}) | settings)
