"""BatchNorm over parts of a rank's batch."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config.norm import GhostBatchNormConfig
from normlab.norms.batch_statistics_norm import BatchStatisticsNorm, batch_norm_by_group
from normlab.norms.replace import Build, set_up


class GhostBatchNorm(BatchStatisticsNorm):
    """BatchNorm over the samples and pixels of each ghost batch, a part of one rank's batch.

        y = (x - mean_gc) / sqrt(var_gc + eps) * gamma_c + beta_c,   mean, var over samples, H, W of part g

    A rank's batch is split into K = batch / ghost_batch_size parts: sample j goes to part j % K, and each part is
    normalised by itself, as a virtual rank is.

    Shape: (B*V, C, ...) -> (B*V, C, ...), 2 to 5 axes. NBS: ghost_batch_size.
    Train: the biased variance normalises. A rank has one set of running statistics, updated once per batch with
    the parts' means and unbiased variances, averaged over the parts; so `momentum` has the same effect at every
    ghost_batch_size. (The paper updates them once per part, K times as fast.)
    Eval: running statistics, as BatchNorm; any number of samples. At batch 1: ghost_batch_size=1, as BatchNorm.
    Virtual ranks: V ranks of K parts each; running statistics (V, C).
    Raises: ValueError if ghost_batch_size does not divide a rank's samples, or a part has one value per
    channel.
    Source: Hoffer et al. 2017, arXiv:1705.08741, algorithm 1.
    """

    def __init__(
        self, num_features: int, ghost_batch_size: int, virtual_ranks: int = 1, *args: Any, **settings: Any
    ) -> None:
        super().__init__(num_features, virtual_ranks, *args, **settings)
        self.ghost_batch_size = ghost_batch_size

    def from_batch(self, x: Tensor, momentum: float) -> Tensor:
        parts, rest = divmod(len(x), self.groups * self.ghost_batch_size)
        if rest:
            raise ValueError(
                f"a batch of {len(x)} samples on {self.groups} virtual ranks cannot be split into parts of "
                f"{self.ghost_batch_size}"
            )
        mean = var = None
        if self.running_mean is not None:  # moved by 1, they become those of the batch
            mean, var = self.running_mean.new_zeros(2, parts * self.groups, self.num_features)
        y = batch_norm_by_group(x, parts * self.groups, 1, mean, var, self.weight, self.bias, 1.0, self.eps)
        if mean is None or var is None:
            return y
        shape = (parts, self.groups, self.num_features)
        self.move_running(mean.view(shape).mean(0), var.view(shape).mean(0), momentum)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}, virtual_ranks={self.groups}"


def ghost_batch_norm(norm: GhostBatchNormConfig, virtual_ranks: int) -> Build:
    """See GhostBatchNorm."""

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return set_up(GhostBatchNorm.from_batch_norm(layer, norm.ghost_batch_size, virtual_ranks), norm)

    return build
