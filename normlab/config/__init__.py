"""Every key a user may set: its type, meaning, unit and range. Imports no torch.

The YAML files under conf/ hold values only; these dataclasses are their schema, so a misspelt key or a bad
value fails while Hydra composes, before any rank starts. Library code takes these typed sections or plain
values, never a DictConfig.
"""

from normlab.config.config import Config, Device, Precision
from normlab.config.data import CifarConfig, DataConfig, ImageFolderConfig, ShapesConfig
from normlab.config.model import CifarResNetConfig, ModelConfig, Stem, TimmConfig, TorchvisionConfig
from normlab.config.norm import (
    BatchNormConfig,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    Nondivisible,
    NormConfig,
    RunningStats,
    SyncBatchNormConfig,
)
from normlab.config.optim import AdamWConfig, LrScaling, OptimConfig, Schedule, SgdConfig
from normlab.config.schema import SCHEMAS, describe_keys, plain, register_schemas, to_typed
from normlab.config.section import ConfigError, Section, setting

__all__ = [
    "SCHEMAS",
    "AdamWConfig",
    "BatchNormConfig",
    "CifarConfig",
    "CifarResNetConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "Device",
    "GroupNormConfig",
    "ImageFolderConfig",
    "InstanceNormConfig",
    "LayerNormConfig",
    "LrScaling",
    "ModelConfig",
    "Nondivisible",
    "NormConfig",
    "OptimConfig",
    "Precision",
    "RunningStats",
    "Schedule",
    "Section",
    "SgdConfig",
    "ShapesConfig",
    "Stem",
    "SyncBatchNormConfig",
    "TimmConfig",
    "TorchvisionConfig",
    "describe_keys",
    "plain",
    "register_schemas",
    "setting",
    "to_typed",
]
