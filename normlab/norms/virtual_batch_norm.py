"""BatchNorm in one process as several ranks would compute it, each on samples of its own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.norms.replace import take_over


def batch_norm_by_group(
    x: Tensor,
    groups: int,
    ranks_per_group: int,
    running_mean_GC: Tensor | None,
    running_var_GC: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Train-mode BatchNorm of each group of virtual ranks by itself; sample i of x is of rank i % ranks.

    Groups become channels, (B*G, C, ...) -> (B, G*C, ...), so one native kernel does for all of them what it
    does for one. With one rank to a group and a contiguous x that is a view, for which the order of samples
    was chosen; else they are copied together and back. Row g of the running statistics (G, C), updated in
    place, is what the ranks of group g would have.
    Raises: ValueError where the ranks do not divide the batch, or leave one value per channel.
    """
    samples, channels, *pixels = x.shape
    if samples % (groups * ranks_per_group):
        raise ValueError(
            f"a batch of {samples} samples cannot be split over {groups * ranks_per_group} virtual ranks"
        )
    as_view = ranks_per_group == 1 and x.is_contiguous()
    if as_view:
        grouped = x.view(-1, groups * channels, *pixels)
    else:
        ranked = x.movedim(1, -1).unflatten(0, (-1, groups, ranks_per_group))
        grouped = ranked.movedim(1, -2).flatten(-2).flatten(0, 1).movedim(-1, 1)
    y = F.batch_norm(
        grouped,
        None if running_mean_GC is None else running_mean_GC.view(-1),
        None if running_var_GC is None else running_var_GC.view(-1),
        None if weight is None else weight.expand(groups, channels).flatten(),
        None if bias is None else bias.expand(groups, channels).flatten(),
        True,
        momentum,
        eps,
    )
    if as_view:
        # No view to autograd: a ReLU in place after it would copy the gradient once more.
        return torch.ops.aten._unsafe_view(y, x.shape)
    ranked = y.movedim(1, -1).unflatten(-1, (groups, channels)).unflatten(0, (-1, ranks_per_group))
    y = ranked.movedim(-2, 1).flatten(0, 2).movedim(-1, 1)
    return y.contiguous() if x.is_contiguous() else y


class VirtualBatchNorm(_BatchNorm):
    """BatchNorm over the samples and pixels of each virtual rank, or of each sync group of them.

        y = (x - mean_gc) / sqrt(var_gc + eps) * gamma_c + beta_c,   mean, var over B, H, W of group g

    Shape: (B*V, C, ...) -> (B*V, C, ...), 2 to 5 axes. Sample i is of virtual rank i % V, and that one of
    group (i % V) // sync_group_size, of which there are G.
    Train: the biased variance normalises; each group's unbiased one enters its own row of running_var (G, C).
    Gradients of gamma and beta are summed over groups.
    Eval: the running statistics of group 0, or those (C,) that stand in for the buffers; any number of
    samples. Without running statistics, as in training. NBS: batch_size x sync_group_size.
    Raises: ValueError where V does not divide the samples, or a group has one value per channel.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, on each of the ranks of data parallelism.
    """

    def __init__(
        self,
        num_features: int,
        virtual_ranks: int,
        sync_group_size: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, bias=bias
        )
        assert virtual_ranks % sync_group_size == 0, (virtual_ranks, sync_group_size)
        self.virtual_ranks, self.sync_group_size = virtual_ranks, sync_group_size
        if self.running_mean is not None and self.running_var is not None:
            groups = virtual_ranks // sync_group_size
            self.running_mean = self.running_mean.repeat(groups, 1)
            self.running_var = self.running_var.repeat(groups, 1)

    @classmethod
    def from_batch_norm(
        cls, layer: _BatchNorm, virtual_ranks: int, sync_group_size: int = 1
    ) -> "VirtualBatchNorm":
        """With the Parameter objects, settings and training flag of `layer`; each group gets its buffers."""
        new = cls(
            layer.num_features,
            virtual_ranks,
            sync_group_size,
            layer.eps,
            layer.momentum,
            layer.affine,
            layer.track_running_stats,
            device="meta",  # nothing to allocate: everything is taken over
            bias=layer.bias is not None,
        )
        take_over(new, layer)
        new.num_batches_tracked = layer.num_batches_tracked
        if layer.running_mean is not None and layer.running_var is not None:
            groups = virtual_ranks // sync_group_size
            new.running_mean = layer.running_mean.repeat(groups, 1)
            new.running_var = layer.running_var.repeat(groups, 1)
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        mean, var = self.running_mean, self.running_var
        if not self.training and mean is not None and var is not None:
            mean_C, var_C = mean.view(-1, self.num_features)[0], var.view(-1, self.num_features)[0]
            return F.batch_norm(input, mean_C, var_C, self.weight, self.bias, False, 0.0, self.eps)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean over all batches seen
                momentum = 1.0 / float(self.num_batches_tracked)
        return batch_norm_by_group(
            input,
            self.virtual_ranks // self.sync_group_size,
            self.sync_group_size,
            mean if self.track_running_stats else None,
            var if self.track_running_stats else None,
            self.weight,
            self.bias,
            momentum,
            self.eps,
        )

    def extra_repr(self) -> str:
        ranks = f"virtual_ranks={self.virtual_ranks}, sync_group_size={self.sync_group_size}"
        return f"{super().extra_repr()}, {ranks}"
