"""The running statistics that a model is evaluated with, when each rank has its own.

Under data parallelism, every logical rank keeps running statistics of the samples that it saw. An evaluated model
has room for one set, which a policy (config.RunningStats) computes from them. Nothing here changes a live buffer.

The statistics of all layers are concatenated along one axis N, in the order of layers.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.distributed import Ranks
from normlab.norms.batch_statistics_norm import batch_norm_by_group
from normlab.norms.custom import chunked, custom_layers
from normlab.norms.mixed_norms import MixedNorm
from normlab.norms.replace import replace_layers, with_activation_of


def tracking_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Dotted name -> layer of each BatchNorm, of any kind, that keeps running statistics.

    Those inside a user's own norm are left out, since what that norm does with them is unknown.
    """
    users = {inner for layer in custom_layers(model) for inner in layer.modules()}
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer not in users
    }


@dataclass(frozen=True)
class RankStatistics:
    """Running statistics of each logical rank. Ranks that share theirs (a sync group) may have one common row."""

    mean_RN: Tensor
    """float64."""

    var_RN: Tensor
    """float64, unbiased."""

    @classmethod
    def gather(cls, model: nn.Module, ranks: Ranks) -> "RankStatistics | None":
        """All ranks' statistics, in rank order; None for a model without. Collective: every rank must call."""
        layers = tracking_layers(model).values()
        if not layers:
            return None
        own_2GN = torch.stack(
            [
                torch.cat(
                    [layer.get_buffer(name).double().view(-1, layer.num_features) for layer in layers], dim=1
                )
                for name in ("running_mean", "running_var")
            ]
        )
        mean_RGN, var_RGN = ranks.gather(own_2GN).unbind(1)
        return cls(mean_RGN.flatten(0, 1), var_RGN.flatten(0, 1))

    def rank0(self) -> tuple[Tensor, Tensor]:
        """(N,), (N,): logical rank 0's, which evaluating its model would use."""
        return self.mean_RN[0], self.var_RN[0]

    def pooled(self) -> tuple[Tensor, Tensor]:
        """(N,), (N,): all ranks' merged by the law of total variance.

        mean = E_r[mean_r],   var = E_r[var_r] + Var_r[mean_r]
        """
        return self.mean_RN.mean(0), self.var_RN.mean(0) + self.mean_RN.var(0, correction=0)

    def spread(self, eps: float = 1e-5) -> dict[str, float]:
        """How far apart ranks are, as a root mean square over all channels of all layers.

        mean_spread: deviation over ranks of the running mean, in units of the activation's own deviation.
        var_spread: deviation over ranks of the running variance, relative to its mean over ranks.
        """
        scale_N = self.var_RN.mean(0) + eps
        mean_N = self.mean_RN.var(0, correction=0) / scale_N
        var_N = self.var_RN.var(0, correction=0) / scale_N.square()
        return {
            "running_stats/mean_spread": float(mean_N.mean().sqrt()),
            "running_stats/var_spread": float(var_N.mean().sqrt()),
        }


def as_buffers(model: nn.Module, mean_N: Tensor, var_N: Tensor) -> dict[str, Tensor]:
    """The statistics under the buffer names of a model built with BatchNorm, each (C,)."""
    layers = tracking_layers(model)
    channels = [layer.num_features for layer in layers.values()]
    return {
        f"{name}.{buffer}": values_C.to(layer.get_buffer(buffer).dtype)
        for buffer, values_N in (("running_mean", mean_N), ("running_var", var_N))
        for (name, layer), values_C in zip(layers.items(), values_N.split(channels), strict=True)
    }


def from_buffers(model: nn.Module, buffers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(N,), (N,): the statistics in `buffers`, one set under buffer names, in the order of the model's layers."""
    names = tracking_layers(model)
    mean_N, var_N = (
        torch.cat([buffers[f"{name}.{buffer}"].double() for name in names])
        for buffer in ("running_mean", "running_var")
    )
    return mean_N, var_N


def precise_statistics(
    model: nn.Module,
    batches: Iterable[Tensor],
    chunk_size: int,
    ranks: Ranks,
    *,
    autocast: torch.autocast,
) -> tuple[Tensor, Tensor]:
    """(N,), (N,): mean and unbiased variance of each layer's input over all ranks' `batches`, in train mode.

    Each layer normalises chunks of `chunk_size` samples separately: the run's NBS, so that later layers see what
    they saw in training. (BatchRenorm does this as BatchNorm would, without the running statistics that are being
    replaced.) Chunks and ranks are merged by the law of total variance. In a batch of k chunks, sample i belongs
    to chunk i % k. A copy of the model is run, which shares the model's parameters but not its buffers.
    Collective: every rank must call, with its own batches, of which there may be none.
    Source: Wu & Johnson 2021, arXiv:2105.07576, section 3 (PreciseBN).
    """
    twin, observers = chunked_twin(model, chunk_size)
    with torch.no_grad(), autocast:
        for images_BCHW in batches:
            twin(images_BCHW)
    return observed_moments(observers, ranks)


def chunked_twin(model: nn.Module, chunk_size: int) -> "tuple[nn.Module, list[_ChunkObserver]]":
    """A copy of `model` in train mode in which layers that need the batch normalise each chunk separately.

    It shares the model's parameters, not its modules and buffers, and has dropout off. The observers, one for each
    layer with running statistics, accumulate the layers' inputs.
    """
    groups = [layer.process_group for layer in model.modules() if hasattr(layer, "process_group")]
    shared: dict[int, Any] = {id(thing): thing for thing in [*model.parameters(), *groups]}
    twin = copy.deepcopy(model, shared)  # objects in the memo are not copied
    observers = {layer: _ChunkObserver(layer, chunk_size) for layer in tracking_layers(twin).values()}
    replacements: dict[nn.Module, nn.Module] = {
        layer: with_activation_of(observer, layer) for layer, observer in observers.items()
    } | {layer: chunked(layer, chunk_size) for layer in custom_layers(twin)}
    twin = replace_layers(twin, replacements).train()
    for module in twin.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()  # otherwise it would use the RNG
    return twin, list(observers.values())


def observed_moments(observers: "Sequence[_ChunkObserver]", ranks: Ranks) -> tuple[Tensor, Tensor]:
    """(N,), (N,): mean and unbiased variance of all that the observers of all ranks saw.

    Collective: every rank must call.
    """
    count_N, sum_N, square_N = ranks.sum(torch.cat([observer.sums_3C for observer in observers], dim=1))
    mean_N = sum_N / count_N
    biased_N = (square_N / count_N - mean_N.square()).clamp_(min=0)
    return mean_N, biased_N * count_N / (count_N - 1)


class _ChunkObserver(nn.Module):
    """Runs a layer on each chunk separately, and sums each channel's values and their squares, in float64."""

    def __init__(self, layer: _BatchNorm, chunk_size: int) -> None:
        super().__init__()
        self.layer, self.chunk_size = layer, chunk_size
        like = layer.get_buffer("running_mean")
        self.sums_3C = torch.zeros(3, layer.num_features, dtype=torch.float64, device=like.device)
        self.dtype = like.dtype

    def forward(self, x: Tensor) -> Tensor:
        chunks = len(x) // self.chunk_size
        values = x.numel() // (chunks * x.shape[1])  # per channel and chunk
        y, mean_KC, biased_KC = self._normalised(x, chunks, values)
        self.sums_3C[0] += values * chunks
        self.sums_3C[1] += values * mean_KC.double().sum(0)
        self.sums_3C[2] += values * (biased_KC.double() + mean_KC.double().square()).sum(0)
        return y

    def _normalised(self, x: Tensor, chunks: int, values: int) -> tuple[Tensor, Tensor, Tensor]:
        """(y, mean of each chunk (K, C), biased variance (K, C))."""
        layer = self.layer
        if isinstance(layer, MixedNorm):
            return layer.by_group(x, chunks)
        mean_KC, var_KC = torch.zeros(2, chunks, x.shape[1], dtype=self.dtype, device=x.device)
        y = batch_norm_by_group(x, chunks, 1, mean_KC, var_KC, layer.weight, layer.bias, 1.0, layer.eps)
        return y, mean_KC, var_KC.double() * ((values - 1) / values)
