"""The configuration of each norm, with which a few samples and channels will do."""

from normlab.config import SCHEMAS, NormConfig

OF_BATCH = ["bn", "syncbn", "ghost_bn", "batch_renorm", "switchable", "batch_instance"]
"""Norms whose statistics are of the batch, in training."""

OF_SAMPLE = ["gn", "ln", "in", "ln2d", "rms", "frn", "evonorm_s0"]
ACTIVATING = ["frn", "evonorm_s0"]

_FEW = {
    "ghost_bn": {"ghost_batch_size": 2},
    "batch_renorm": {"bn_batches": 0, "d_max_batches": 4, "r_max_batches": 8},
}


def config(name: str, **settings: object) -> NormConfig:
    if name == "none":
        settings.pop("eps", None)
    return SCHEMAS["norm"][name](**_FEW.get(name, {}) | settings)  # type: ignore[return-value]
