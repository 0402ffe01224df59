"""Every key a user may set: its type, meaning, unit and range. Imports no torch.

The YAML files under conf/ hold values only; these dataclasses are their schema, so a misspelt key or a bad
value fails while Hydra composes, before any rank starts. Library code takes these typed sections or plain
values, never a DictConfig.
"""

from normlab.config.config import Config, Device, Precision
from normlab.config.data import (
    CifarConfig,
    ClassWeighting,
    DataConfig,
    ImageFolderConfig,
    MaskFilesConfig,
    MaskFolderConfig,
    SegmentationConfig,
    ShapesConfig,
    ShapesSegConfig,
    TorchvisionMasksConfig,
)
from normlab.config.model import (
    CifarResNetConfig,
    FcnCifarResNetConfig,
    ModelConfig,
    SegmentationModelConfig,
    Stem,
    TimmConfig,
    TorchvisionConfig,
    TorchvisionSegmentationConfig,
)
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
    "ClassWeighting",
    "Config",
    "ConfigError",
    "DataConfig",
    "Device",
    "FcnCifarResNetConfig",
    "GroupNormConfig",
    "ImageFolderConfig",
    "InstanceNormConfig",
    "LayerNormConfig",
    "LrScaling",
    "MaskFilesConfig",
    "MaskFolderConfig",
    "ModelConfig",
    "Nondivisible",
    "NormConfig",
    "OptimConfig",
    "Precision",
    "RunningStats",
    "Schedule",
    "Section",
    "SegmentationConfig",
    "SegmentationModelConfig",
    "SgdConfig",
    "ShapesConfig",
    "ShapesSegConfig",
    "Stem",
    "SyncBatchNormConfig",
    "TimmConfig",
    "TorchvisionConfig",
    "TorchvisionMasksConfig",
    "TorchvisionSegmentationConfig",
    "describe_keys",
    "plain",
    "register_schemas",
    "setting",
    "to_typed",
]
