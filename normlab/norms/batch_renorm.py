"""BatchNorm that trains with nearly the statistics that it evaluates with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config.norm import BatchRenormConfig
from normlab.norms.batch_statistics_norm import BatchStatisticsNorm, batch_norm_by_group, group_moments
from normlab.norms.replace import Build, set_up


class BatchRenorm(BatchStatisticsNorm):
    """BatchNorm corrected towards its running statistics, within limits.

        y = ((x - mean_c) / std_c * r_c + d_c) * gamma_c + beta_c,   mean, std = sqrt(var + eps) over B, H, W
        r = clip(std / running_std, 1 / r_max, r_max),   d = clip((mean - running_mean) / running_std, ±d_max)

    Without clipping, this equals (x - running_mean) / running_std, as in evaluation. No gradient flows through
    r and d, whose running statistics are those of the batches before.
    Training starts as BatchNorm (r = 1, d = 0) for the first `bn_batches` forwards. Then the limit of d grows
    linearly to d_max until `d_max_batches`, and that of r to r_max until `r_max_batches`. The buffer
    num_batches_tracked counts the batches, so a resumed run continues where it was.

    Shape: (B*V, C, ...) -> (B*V, C, ...), 2 to 5 axes. NBS: batch_size.
    Train: as above; running statistics are updated as BatchNorm's, with the unbiased variance. (The paper updates
    the deviation; here it is the variance, which can be pooled over ranks.)
    Eval: running statistics, as BatchNorm. Batch 1: as BatchNorm, at least two values per channel.
    Virtual ranks: each is corrected towards its own row of running statistics (V, C).
    Raises: ValueError if V does not divide the samples, or a rank has one value per channel.
    Source: Ioffe 2017, arXiv:1702.03275, algorithm 1 and section 4.
    """

    def __init__(
        self,
        num_features: int,
        virtual_ranks: int = 1,
        r_max: float = 3.0,
        d_max: float = 5.0,
        bn_batches: int = 500,
        d_max_batches: int = 2500,
        r_max_batches: int = 4000,
        *args: Any,
        **settings: Any,
    ) -> None:
        super().__init__(num_features, virtual_ranks, *args, **settings)
        self.r_max, self.d_max, self.bn_batches = r_max, d_max, bn_batches
        self.d_max_batches, self.r_max_batches = d_max_batches, r_max_batches

    def limits(self, batches: Tensor) -> tuple[Tensor, Tensor]:
        """(limit of r, limit of d) for a forward after `batches` batches; 0-d tensors, like `batches`."""

        def grown(end: int) -> Tensor:
            # Grows from bn_batches on and is 1 from `end` on: with both at 0, it is 1 from the first batch.
            return ((batches.double() - self.bn_batches + 1) / (end - self.bn_batches + 1)).clamp(0, 1)

        return 1 + (self.r_max - 1) * grown(self.r_max_batches), self.d_max * grown(self.d_max_batches)

    def from_batch(self, x: Tensor, momentum: float) -> Tensor:
        if len(x) % self.groups:
            raise ValueError(f"a batch of {len(x)} samples cannot be split over {self.groups} virtual ranks")
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                mean_GC, var_GC = group_moments(x, self.groups)
                r_limit, d_limit = self.limits(self.num_batches_tracked - 1)  # without this batch
                running_std = (self.running_var + self.eps).sqrt()
                shape = running_std.shape
                r = ((var_GC + self.eps).sqrt().view(shape) / running_std).clamp(1 / r_limit, r_limit)
                d = ((mean_GC.view(shape) - self.running_mean) / running_std).clamp(-d_limit, d_limit)
                if torch.compiler.is_compiling():
                    r, d = _kept(r), _kept(d)
                values = x.numel() // mean_GC.numel()
                self.move_running(mean_GC, var_GC * (values / max(values - 1, 1)), momentum)
            weight = r if self.weight is None else r * self.weight
            shift = d if self.weight is None else d * self.weight
            bias = shift if self.bias is None else shift + self.bias
        return batch_norm_by_group(x, self.groups, 1, None, None, weight, bias, 0.0, self.eps)

    def extra_repr(self) -> str:
        limits = f"r_max={self.r_max:g}, d_max={self.d_max:g}, virtual_ranks={self.groups}"
        return f"{super().extra_repr()}, {limits}"


@torch.library.custom_op("normlab::kept", mutates_args=())
def _kept(x: Tensor) -> Tensor:
    """x, which torch.compile keeps for the backward. It would otherwise recompute r and d there (torch 2.15,
    pytorch/pytorch#197039), from running statistics that have moved by then.
    """
    return x.clone()


@_kept.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def batch_renorm(norm: BatchRenormConfig, virtual_ranks: int) -> Build:
    """See BatchRenorm."""
    limits = (norm.r_max, norm.d_max, norm.bn_batches, norm.d_max_batches, norm.r_max_batches)

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        return set_up(BatchRenorm.from_batch_norm(layer, virtual_ranks, *limits), norm)

    return build
