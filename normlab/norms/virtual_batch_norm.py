"""BatchNorm in one process as several ranks would compute it, each on its own samples."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config.norm import BatchNormConfig
from normlab.norms.batch_statistics_norm import BatchStatisticsNorm, batch_norm_by_group
from normlab.norms.replace import Build, set_up


class VirtualBatchNorm(BatchStatisticsNorm):
    """BatchNorm over the samples and pixels of each virtual rank, or of each sync group of them.

        y = (x - mean_gc) / sqrt(var_gc + eps) * gamma_c + beta_c,   mean, var over B, H, W of group g

    Shape: (B*V, C, ...) -> (B*V, C, ...), 2 to 5 axes. Sample i belongs to virtual rank i % V, which belongs
    to one of G groups, (i % V) // sync_group_size.
    Train: the biased variance normalises; each group's unbiased one enters its own row of running_var (G, C).
    Gradients of gamma and beta are summed over groups.
    Eval: the running statistics of group 0, or statistics (C,) that replace the buffers; any number of
    samples. Without running statistics, as in training. NBS: batch_size x sync_group_size.
    Raises: ValueError if V does not divide the samples, or a group has one value per channel.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, on each of the ranks of data parallelism.
    """

    def __init__(
        self, num_features: int, virtual_ranks: int, sync_group_size: int = 1, *args: Any, **settings: Any
    ) -> None:
        assert virtual_ranks % sync_group_size == 0, (virtual_ranks, sync_group_size)
        super().__init__(num_features, virtual_ranks // sync_group_size, *args, **settings)
        self.virtual_ranks, self.sync_group_size = virtual_ranks, sync_group_size

    def from_batch(self, x: Tensor, momentum: float) -> Tensor:
        return batch_norm_by_group(
            x,
            self.groups,
            self.sync_group_size,
            self.running_mean if self.track_running_stats else None,
            self.running_var if self.track_running_stats else None,
            self.weight,
            self.bias,
            momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        ranks = f"virtual_ranks={self.virtual_ranks}, sync_group_size={self.sync_group_size}"
        return f"{super().extra_repr()}, {ranks}"


def batch_norm(norm: BatchNormConfig, virtual_ranks: int) -> Build:
    """BatchNorm: the layer itself, with norm.eps and norm.momentum if they are given.

        y = (x - mean_c) / sqrt(var_c + eps) * gamma_c + beta_c,   mean, var over B, H, W of this rank

    Shape: (B, C, ...) -> (B, C, ...). NBS: batch_size. Virtual ranks: normlab.norms.VirtualBatchNorm.
    Train: the biased variance normalises; running = (1 - momentum) * running + momentum * batch, with the
    unbiased variance. Eval: running statistics.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        new = layer if virtual_ranks == 1 else VirtualBatchNorm.from_batch_norm(layer, virtual_ranks)
        return set_up(new, norm)

    return build
