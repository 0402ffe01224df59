"""BatchNorm whose statistics are those of all ranks, on any device and backend."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.norms.replace import (
    BATCH_NORMS,
    find_batch_norms,
    refuse_hooks,
    replace_layers,
    settings_of,
    with_activation_of,
    with_parameters_of,
)
from normlab.norms.sync_function import sync_batch_norm


class SyncBatchNorm(_BatchNorm):
    """Normalise each channel over the samples and pixels of every rank in the group.

        y = (x - mean_c) / sqrt(var_c + eps) * gamma_c + beta_c,   mean, var over B, H, W of all ranks

    A drop-in for torch.nn.SyncBatchNorm that works on CPU too (on CUDA, torch's own does the work). It is not
    a subclass of it, because DistributedDataParallel refuses those on CPU.

    Shape: (B, C, ...) -> (B, C, ...), 2 to 5 axes; B may differ between ranks, and may be 0.
    Train: the biased variance normalises, the unbiased one enters running_var; float32 statistics under
    bfloat16. One all-gather forward, one all-reduce backward; on the CPU, ranks of one machine do both in shared
    memory. Collective: every rank of the group must call, and its input must require a gradient on all of them or
    on none.
    Eval: running statistics, no communication; without them, those of this rank's batch.
    With one rank in the group, or no process group, it is plain BatchNorm. NBS: batch_size x ranks in the group.
    torch.compile takes it as one operator of the graph (on CPU).
    State dict: that of BatchNorm, either way.
    Raises: ValueError in training if all ranks together have one value per channel; RuntimeError if another rank
    has gone.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167; over ranks: Peng et al. 2018, arXiv:1711.07240.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if not bias:  # not left to torch: before 2.15, a layer has either both weight and bias or neither
            self.register_parameter("bias", None)
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def _check_non_zero_input_channels(self, input: Tensor) -> None:
        if input.size(1) == 0:
            raise ValueError("SyncBatchNorm number of input channels should be non-zero")

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
        self._check_input_dim(input)
        self._check_non_zero_input_channels(input)
        group = self._group_to_sync()
        if group is None:
            return super().forward(input)

        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the mean over all batches seen
                momentum = 1.0 / float(self.num_batches_tracked)
        return sync_batch_norm(
            input,
            self.weight,
            self.bias,
            self.running_mean if self.track_running_stats else None,
            self.running_var if self.track_running_stats else None,
            momentum,
            self.eps,
            group,
        )

    def _group_to_sync(self) -> Any | None:
        """The group whose ranks share this batch's statistics; None if the rank uses its own."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return None
        group = self.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None

    @classmethod
    def from_batch_norm(cls, layer: _BatchNorm, process_group: Any | None = None) -> "SyncBatchNorm":
        """A SyncBatchNorm with the Parameter objects, buffers, settings and training flag of `layer`."""
        new = cls(**settings_of(layer), process_group=process_group)
        with_parameters_of(new, layer)
        new.running_mean, new.running_var = layer.running_mean, layer.running_var
        new.num_batches_tracked = layer.num_batches_tracked
        if hasattr(layer, "qconfig"):
            new.qconfig = layer.qconfig
        return new

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any | None = None) -> nn.Module:
        """`module` with every BatchNorm1d, 2d, 3d and torch.nn.SyncBatchNorm in it (or itself) as this class.

        Parameters and buffers stay the same objects; a layer that is used in several places is converted once.
        If anything is refused, nothing has been changed.
        Raises: TypeError on other subclasses of BatchNorm, ValueError on a layer with hooks.
        """
        known = (*BATCH_NORMS, nn.SyncBatchNorm, cls)
        layers = find_batch_norms(module, known, TypeError)
        refuse_hooks(layers, ValueError)
        new = {layer: cls.from_batch_norm(layer, process_group) for layer in layers.values()}
        return replace_layers(module, {old: with_activation_of(layer, old) for old, layer in new.items()})
