"""What older versions of torch lack or name differently: the one place that distinguishes versions."""

from inspect import signature
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

_KNOWN = signature(DistributedDataParallel).parameters
NO_BUFFER_SYNC: dict[str, Any] = {
    next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _KNOWN): False
}
"""An argument of DistributedDataParallel, which has the latter name before torch 2.15."""


def store_of(group: Any) -> Any:
    """The store of a process group, which torch 2.8 does not expose."""
    if hasattr(group, "get_group_store"):
        return group.get_group_store()
    return dist.distributed_c10d._get_process_group_store(group)
