"""What the ranks of a group exchange: one small tensor in the forward, and one in the backward.

This is all the communication of SyncBatchNorm. Ranks on one machine exchange values through shared memory, if all
of them can, and otherwise through the group's backend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch import Tensor

from normlab.norms.shared_memory import CAPACITY, Channel, open_channel

_channels: WeakKeyDictionary[Any, Channel | None] = WeakKeyDictionary()
"""A process group takes no attributes, so its channel is kept here for as long as the group exists."""


def _channel(group: Any, values: Tensor) -> Channel | None:
    """The group's shared memory; None if it has none, or if `values` cannot go through it. Collective."""
    if not values.is_cpu or values.nbytes > CAPACITY:
        return None
    if group not in _channels:
        _channels[group] = open_channel(group)
    return _channels[group]


@contextmanager
def over_backend() -> Iterator[None]:
    """Inside the block, groups that have exchanged before use their backend, where calls can be counted."""
    channels = dict(_channels)
    _channels.update(dict.fromkeys(channels))
    try:
        yield
    finally:
        _channels.update(channels)


def gather_statistics(stats_S: Tensor, group: Any) -> Tensor:
    """Every rank's statistics, row r from rank r of the group: (S,) -> (R, S), valid until the next exchange.

    Collective: every rank of the group must call, with the same shape and dtype.
    Raises: RuntimeError if another rank has gone, or runs another layer.
    """
    if (channel := _channel(group, stats_S)) is not None:
        return channel.gather(stats_S)[0]
    gathered_RS = stats_S.new_empty(dist.get_world_size(group), stats_S.numel())
    dist.all_gather_into_tensor(gathered_RS.view(-1), stats_S, group)
    return gathered_RS


def sum_gradients(sums: Tensor, group: Any) -> Tensor:
    """The sum of `sums` over the ranks of the group, in place: same shape.

    Collective: every rank of the group must call, with the same shape and dtype.
    Raises: RuntimeError if another rank has gone, or runs another layer.
    """
    if (channel := _channel(group, sums)) is not None:
        channel.sum(sums.view(-1))
    else:
        dist.all_reduce(sums, dist.ReduceOp.SUM, group)
    return sums


def merge_statistics(stats_RS: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of the union of the ranks' values, and the number of values per channel.

        mean = sum_r n_r mean_r / n,   var = sum_r n_r (var_r + (mean_r - mean)^2) / n,   n = sum_r n_r

    by the law of total variance. Shape: rows of [mean_C, var_C, n] (R, 2C + 1) -> (C,), (C,), n.
    A rank without values (n_r = 0, mean_r = var_r = 0) has no effect.
    """
    channels = (stats_RS.shape[1] - 1) // 2
    count_R1 = stats_RS[:, -1:]
    total = int(count_R1.sum())
    share_R1 = count_R1 / max(total, 1)
    weighted_S = (stats_RS * share_R1).sum(0)
    mean_C, within_C = weighted_S[:channels], weighted_S[channels:-1]
    between_C = ((stats_RS[:, :channels] - mean_C).square_() * share_R1).sum(0)
    return mean_C, within_C.add_(between_C), total
