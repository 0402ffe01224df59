"""Norms that learn how much of the batch's statistics to use, and how much of each sample's own."""

from typing import Any

import torch
from torch import Tensor, nn

from normlab.config.norm import BatchInstanceNormConfig, SwitchableNormConfig
from normlab.norms.batch_statistics_norm import BatchStatisticsNorm
from normlab.norms.dtypes import upcast
from normlab.norms.replace import Build, set_up


def instance_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C), (B, C): mean and biased variance over pixels."""
    pixels = upcast(x) if x.dim() > 2 else upcast(x).unsqueeze(-1)
    var_BC, mean_BC = torch.var_mean(pixels, list(range(2, pixels.dim())), correction=0)
    return mean_BC, var_BC


def union_moments(mean: Tensor, var: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Moments of the union of equal parts along `axis` (kept, with size 1), by the law of total variance."""
    between, mean_of_all = torch.var_mean(mean, axis, correction=0, keepdim=True)
    return mean_of_all, var.mean(axis, keepdim=True) + between


class MixedNorm(BatchStatisticsNorm):
    """Base of norms that compute one scale and one shift per sample and channel from several moments."""

    def scale_and_shift(
        self, instance: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(B, C), (B, C) from each sample's own moments (B, C), and those of its batch, (B, C) or (1, C).

        y = x * scale + shift, before gamma and beta.
        """
        raise NotImplementedError

    def by_group(self, x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
        """(y, mean_GC, biased var_GC) in train mode; sample i belongs to group i % G.

        Raises: ValueError if groups do not divide the samples, or have one value per channel.
        """
        if len(x) % groups:
            raise ValueError(f"a batch of {len(x)} samples cannot be split over {groups} virtual ranks")
        if x.numel() == groups * x.shape[1]:
            raise ValueError(f"expected more than 1 value per channel when training, got {tuple(x.shape)}")
        instance = instance_moments(x)
        mean_NGC, var_NGC = (moment_BC.unflatten(0, (-1, groups)) for moment_BC in instance)
        batch = union_moments(mean_NGC, var_NGC, axis=0)
        of_samples = (moment_1GC.expand_as(mean_NGC).flatten(0, 1) for moment_1GC in batch)
        y = self._affine(x, *self.scale_and_shift(instance, tuple(of_samples)))  # type: ignore[arg-type]
        return y, batch[0].squeeze(0), batch[1].squeeze(0)

    def from_batch(self, x: Tensor, momentum: float) -> Tensor:
        y, mean_GC, var_GC = self.by_group(x, self.groups)
        values = x.numel() // mean_GC.numel()
        self.move_running(mean_GC, var_GC * (values / (values - 1)), momentum)
        return y

    def from_running(self, x: Tensor, mean_C: Tensor, var_C: Tensor) -> Tensor:
        return self._affine(x, *self.scale_and_shift(instance_moments(x), (mean_C[None], var_C[None])))

    def _affine(self, x: Tensor, scale_BC: Tensor, shift_BC: Tensor) -> Tensor:
        if self.weight is not None:
            scale_BC, shift_BC = scale_BC * self.weight, shift_BC * self.weight
        if self.bias is not None:
            shift_BC = shift_BC + self.bias
        shape = (*scale_BC.shape, *[1] * (x.dim() - 2))
        return (x * scale_BC.view(shape) + shift_BC.view(shape)).to(x.dtype)


class SwitchableNorm(MixedNorm):
    """Normalise by a learned mixture of the statistics of InstanceNorm, LayerNorm and BatchNorm.

        y = (x - sum_k w_k mean_k) / sqrt(sum_k v_k var_k + eps) * gamma_c + beta_c,   k in {in, ln, bn}

    mean_in, var_in over H, W; mean_ln, var_ln over C, H, W; mean_bn, var_bn over B, H, W.
    w = softmax(mean_weight), v = softmax(var_weight): three of each per layer, equal at the start.

    Shape: (B*V, C, ...) -> (B*V, C, ...), 2 to 5 axes. NBS: batch_size.
    Train: the bn part's running statistics are updated as BatchNorm's, with the unbiased variance.
    The six weights have no weight decay, which would pull every layer towards the equal mixture (the authors'
    code decays them).
    Eval: running statistics replace mean_bn and var_bn (as in the authors' code; the paper averages over
    batches after training, which norm.running_stats=precise does).
    Batch 1: defined if a channel has at least two pixels; bn then equals in. Virtual ranks: (V, C) rows.
    Raises: ValueError if V does not divide the samples, or a rank has one value per channel.
    Source: Luo et al. 2018, arXiv:1806.10779, section 3.
    """

    def __init__(self, num_features: int, virtual_ranks: int = 1, *args: Any, **settings: Any) -> None:
        super().__init__(num_features, virtual_ranks, *args, **settings)
        self.mean_weight, self.var_weight = (nn.Parameter(torch.zeros(3)) for _ in range(2))

    def no_weight_decay(self) -> set[str]:
        return {"mean_weight", "var_weight"}

    def scale_and_shift(
        self, instance: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        layer = union_moments(*instance, axis=1)
        mean_BC, var_BC = (
            sum(share * moment for share, moment in zip(weight.softmax(0), moments, strict=True))
            for weight, moments in zip(
                (self.mean_weight, self.var_weight), zip(instance, layer, batch, strict=True), strict=True
            )
        )
        scale_BC = (var_BC + self.eps).rsqrt()
        return scale_BC, -mean_BC * scale_BC


class BatchInstanceNorm(MixedNorm):
    """A learned mixture, per channel, of the outputs of BatchNorm and InstanceNorm.

        y = (gate_c * xhat_bn + (1 - gate_c) * xhat_in) * gamma_c + beta_c,   gate in [0, 1]
        xhat_bn = (x - mean_c) / sqrt(var_c + eps) over B, H, W,   xhat_in the same over H, W

    The gate starts at 1, which is BatchNorm. The paper clips it to [0, 1] after each step of the optimizer;
    here each train-mode forward begins with the clipping, so the gate that is used and differentiated is always
    clipped, and the steps are the paper's. Evaluation uses the clipped gate too. As in the authors' code, the
    gate has no weight decay. (They raise its learning rate tenfold; here it has the same as all parameters.)

    Shape: (B*V, C, ...) -> (B*V, C, ...), 2 to 5 axes. NBS: batch_size.
    Train: running statistics are updated as BatchNorm's, with the unbiased variance. Eval: they give xhat_bn.
    Batch 1: defined if a channel has at least two pixels; xhat_bn then equals xhat_in. With one pixel per
    channel, xhat_in is 0. Virtual ranks: (V, C) rows.
    Raises: ValueError if V does not divide the samples, or a rank has one value per channel.
    Source: Nam & Kim 2018, arXiv:1805.07925, section 3.
    """

    def __init__(self, num_features: int, virtual_ranks: int = 1, *args: Any, **settings: Any) -> None:
        super().__init__(num_features, virtual_ranks, *args, **settings)
        self.gate = nn.Parameter(torch.ones(num_features))

    def no_weight_decay(self) -> set[str]:
        return {"gate"}

    def from_batch(self, x: Tensor, momentum: float) -> Tensor:
        # .data: a second forward before the backward (a shared layer) clips nothing, and must not count as a
        # modification of what the first one saved.
        self.gate.data.clamp_(0, 1)
        return super().from_batch(x, momentum)

    def scale_and_shift(
        self, instance: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        # clamp alone has no gradient at 0 and 1, where gates start and stay.
        clipped_C = self.gate.detach().clamp(0, 1)
        gate_C = torch.where(self.gate == clipped_C, self.gate, clipped_C)
        own_BC, batch_BC = ((var + self.eps).rsqrt() for _, var in (instance, batch))
        own_BC, batch_BC = own_BC * (1 - gate_C), batch_BC * gate_C
        return own_BC + batch_BC, -(instance[0] * own_BC + batch[0] * batch_BC)


def switchable_norm(norm: SwitchableNormConfig, virtual_ranks: int) -> Build:
    """See SwitchableNorm."""
    return lambda layer, name: set_up(SwitchableNorm.from_batch_norm(layer, virtual_ranks), norm)


def batch_instance_norm(norm: BatchInstanceNormConfig, virtual_ranks: int) -> Build:
    """See BatchInstanceNorm."""
    return lambda layer, name: set_up(BatchInstanceNorm.from_batch_norm(layer, virtual_ranks), norm)
