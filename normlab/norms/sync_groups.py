"""Which ranks share their statistics."""

from typing import Any

import torch.distributed as dist

from normlab.config.norm import SyncBatchNormConfig, check_sync_group_size
from normlab.norms.replace import Build, set_up
from normlab.norms.sync_batch_norm import SyncBatchNorm
from normlab.norms.virtual_batch_norm import VirtualBatchNorm


def real_ranks() -> int:
    """The number of ranks in the process group; 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sync_group(size: int | None) -> Any | None:
    """This rank's group of `size` contiguous ranks; None (torch's word for all ranks) if it is all of them.

    With 4 ranks and size 2: ranks 0 and 1, ranks 2 and 3. Every call makes new groups, so keep the result.
    Collective: every rank must call (each creates every group, in the same order).
    Raises: ConfigError if `size` does not divide the number of ranks.
    """
    ranks = real_ranks()
    check_sync_group_size(size, ranks)
    if size is None or size == ranks:
        return None
    group, _ = dist.new_subgroups(size)
    return group


def all_apart() -> Any | None:
    """A separate group of all ranks if nccl connects them, else None.

    nccl runs the collectives of a group in the order in which they were started. In DDP's group, each small sum
    of SyncBatchNorm's backward would wait for gradients already on their way.
    Collective: every rank must call.
    """
    return dist.new_group() if real_ranks() > 1 and dist.get_backend() == "nccl" else None


def sync_batch_norm(norm: SyncBatchNormConfig, virtual_ranks: int) -> Build:
    """See SyncBatchNorm.

    The virtual ranks of a process that is whole within a group are one rank with all of their samples; groups
    that lie within a process need no other: normlab.norms.VirtualBatchNorm.
    Collective: every rank must call (it creates the sync groups).
    """
    size = norm.sync_group_size
    check_sync_group_size(size, real_ranks() * virtual_ranks, virtual_ranks)
    if size is not None and size < virtual_ranks:
        return lambda layer, name: set_up(VirtualBatchNorm.from_batch_norm(layer, virtual_ranks, size), norm)
    group = sync_group(size and size // virtual_ranks) or all_apart()
    return lambda layer, name: set_up(SyncBatchNorm.from_batch_norm(layer, group), norm)
