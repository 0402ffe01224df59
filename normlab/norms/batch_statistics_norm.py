"""Shared code of norms with batch statistics: each group of virtual ranks is normalised separately."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.norms.dtypes import upcast
from normlab.norms.replace import settings_of, with_parameters_of


def group_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(G, C), (G, C): mean and biased variance over samples and pixels; sample i of x belongs to group i % G."""
    grouped = upcast(x).unflatten(0, (-1, groups))
    over = [0, *range(3, grouped.dim())]
    var_GC, mean_GC = torch.var_mean(grouped, over, correction=0)
    return mean_GC, var_GC


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
    """Train-mode BatchNorm of each group of virtual ranks separately; sample i of x belongs to rank i % ranks.

    Groups become channels, (B*G, C, ...) -> (B, G*C, ...), so one call of the native kernel normalises all of
    them. With one rank per group and a contiguous x, that is a view: the order of samples was chosen for this.
    Otherwise the samples are copied together and back. Row g of the running statistics (G, C), updated in
    place, is what the ranks of group g would have. weight and bias: (C,), or (G, C) with those of each group.
    Raises: ValueError if the ranks do not divide the batch, or leave one value per channel.
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
        # Not a view to autograd: an in-place ReLU after it would copy the gradient once more.
        return torch.ops.aten._unsafe_view(y, x.shape)
    ranked = y.movedim(1, -1).unflatten(-1, (groups, channels)).unflatten(0, (-1, ranks_per_group))
    y = ranked.movedim(-2, 1).flatten(0, 2).movedim(-1, 1)
    return y.contiguous() if x.is_contiguous() else y


class BatchStatisticsNorm(_BatchNorm):
    """Base of norms whose running statistics have a row for each group of virtual ranks.

    Sample i belongs to virtual rank i % V. running_mean and running_var are (C,), like BatchNorm's, if there is
    one group, else (G, C). Subclasses define the train-mode forward (`from_batch`), and the eval-mode one
    (`from_running`) if it differs from BatchNorm's.
    Eval: row 0, or statistics (C,) that replace the buffers; any number of samples. Without running
    statistics, as in training.
    """

    def __init__(
        self,
        num_features: int,
        groups: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.groups = groups
        self._set_rows(self.running_mean, self.running_var)

    @classmethod
    def from_batch_norm(cls, layer: _BatchNorm, *args: Any) -> Self:
        """A layer with the Parameter objects, settings and training flag of `layer`; each group gets its buffers.

        `args` are the constructor's, between num_features and eps.
        """
        settings = settings_of(layer)
        kind: Any = cls  # subclasses take other arguments
        new = kind(settings.pop("num_features"), *args, **settings)
        with_parameters_of(new, layer)
        new.num_batches_tracked = layer.num_batches_tracked
        new._set_rows(layer.running_mean, layer.running_var)
        return new

    def _set_rows(self, mean_C: Tensor | None, var_C: Tensor | None) -> None:
        if self.groups > 1 and mean_C is not None and var_C is not None:
            mean_C, var_C = mean_C.repeat(self.groups, 1), var_C.repeat(self.groups, 1)
        self.running_mean, self.running_var = mean_C, var_C

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        mean, var = self.running_mean, self.running_var
        if not self.training and mean is not None and var is not None:
            return self.from_running(
                input, mean.view(-1, self.num_features)[0], var.view(-1, self.num_features)[0]
            )
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean over all batches seen
                momentum = 1.0 / float(self.num_batches_tracked)
        return self.from_batch(input, momentum)

    def from_batch(self, x: Tensor, momentum: float) -> Tensor:
        """A train-mode forward, which moves the running statistics (if there are any) by `momentum`."""
        raise NotImplementedError

    def from_running(self, x: Tensor, mean_C: Tensor, var_C: Tensor) -> Tensor:
        return F.batch_norm(x, mean_C, var_C, self.weight, self.bias, False, 0.0, self.eps)

    def move_running(self, mean_GC: Tensor, var_GC: Tensor, momentum: float) -> None:
        """running = (1 - momentum) running + momentum batch; var_GC is unbiased."""
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            for running, batch_GC in ((self.running_mean, mean_GC), (self.running_var, var_GC)):
                running.lerp_(batch_GC.detach().to(running.dtype).view(running.shape), momentum)
