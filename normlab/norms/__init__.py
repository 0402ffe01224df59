"""Normalization layers: SyncBatchNorm on any device, and the conversion of any model's norms."""

from normlab.config.norm import NORMS
from normlab.norms.check import check_norms
from normlab.norms.convert import LEFT_ALONE, NormLayer, convert_norms, format_report, to_batch_norm
from normlab.norms.sync_batch_norm import SyncBatchNorm
from normlab.norms.sync_groups import sync_group
from normlab.norms.virtual_batch_norm import VirtualBatchNorm

__all__ = [
    "LEFT_ALONE",
    "NORMS",
    "NormLayer",
    "SyncBatchNorm",
    "VirtualBatchNorm",
    "check_norms",
    "convert_norms",
    "format_report",
    "sync_group",
    "to_batch_norm",
]
