"""What the ranks of a group tell each other: one small tensor forward, one backward.

SyncBatchNorm knows of nothing else, so a faster transport can take the place of these two functions.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor


def gather_statistics(stats_S: Tensor, group: Any) -> Tensor:
    """Every rank's statistics, row r from rank r of the group: (S,) -> (R, S).

    Collective: every rank of the group must call, with the same shape and dtype.
    """
    gathered_RS = stats_S.new_empty(dist.get_world_size(group), stats_S.numel())
    dist.all_gather_single(gathered_RS.view(-1), stats_S, group)
    return gathered_RS


def sum_gradients(sums: Tensor, group: Any) -> Tensor:
    """The sum of `sums` over the ranks of the group, in place: same shape.

    Collective: every rank of the group must call, with the same shape and dtype.
    """
    dist.all_reduce(sums, dist.ReduceOp.SUM, group)
    return sums


def merge_statistics(stats_RS: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of the union of the ranks' values, and how many values a channel has.

        mean = sum_r n_r mean_r / n,   var = sum_r n_r (var_r + (mean_r - mean)^2) / n,   n = sum_r n_r

    the law of total variance. Shape: rows of [mean_C, var_C, n] (R, 2C + 1) -> (C,), (C,), n.
    A rank without values (n_r = 0, mean_r = var_r = 0) counts for nothing.
    """
    channels = (stats_RS.shape[1] - 1) // 2
    count_R1 = stats_RS[:, -1:]
    total = int(count_R1.sum())
    share_R1 = count_R1 / max(total, 1)
    weighted_S = (stats_RS * share_R1).sum(0)
    mean_C, within_C = weighted_S[:channels], weighted_S[channels:-1]
    between_C = ((stats_RS[:, :channels] - mean_C).square_() * share_R1).sum(0)
    return mean_C, within_C.add_(between_C), total
