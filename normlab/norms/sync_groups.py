"""Which ranks share their statistics."""

from typing import Any

import torch.distributed as dist

from normlab.config import ConfigError


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def real_ranks() -> int:
    """Ranks of the process group; 1 where there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_sync_group_size(size: int | None, ranks: int, virtual_ranks: int = 1) -> None:
    """What `size` contiguous logical ranks (None: all) of `ranks` can share, `virtual_ranks` in each process.

    Raises: ConfigError where `size` does not divide their number, or a group would end within a process.
    """
    if size is None:
        return
    fits = [d for d in divisors(ranks) if d % virtual_ranks == 0 or virtual_ranks % d == 0]
    if ranks % size:
        raise ConfigError(
            f"norm.sync_group_size={size} does not divide the {ranks} ranks; "
            f"choose one of {fits}, or null for all ranks."
        )
    if size not in fits:
        raise ConfigError(
            f"norm.sync_group_size={size} with virtual_ranks={virtual_ranks} would end within a process; "
            f"choose one of {fits}, null for all ranks, or another virtual_ranks."
        )


def sync_group(size: int | None) -> Any | None:
    """This rank's group of `size` contiguous ranks; None (torch's word for all ranks) where it is all.

    With 4 ranks and size 2: ranks 0 and 1, ranks 2 and 3. Every call makes new groups, so keep the result.
    Collective: every rank must call (each creates every group, in the same order).
    Raises: ConfigError where `size` does not divide the number of ranks.
    """
    ranks = real_ranks()
    check_sync_group_size(size, ranks)
    if size is None or size == ranks:
        return None
    group, _ = dist.new_subgroups(size)
    return group
