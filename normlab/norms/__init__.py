"""Normalization layers: SyncBatchNorm on any device, and the conversion of any model's norms."""

from normlab.norms.check import check_norms
from normlab.norms.convert import convert_norms
from normlab.norms.registry import NORMS, Norm
from normlab.norms.sync_batch_norm import SyncBatchNorm
from normlab.norms.sync_groups import sync_group
from normlab.norms.virtual_batch_norm import VirtualBatchNorm

__all__ = ["NORMS", "Norm", "SyncBatchNorm", "VirtualBatchNorm", "check_norms", "convert_norms", "sync_group"]
