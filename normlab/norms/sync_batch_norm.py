"""BatchNorm whose statistics are those of all ranks, on any device and backend."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.norms.exchange import gather_statistics, merge_statistics, sum_gradients
from normlab.norms.replace import (
    BATCH_NORMS,
    find_batch_norms,
    refuse_hooks,
    replace_layers,
    settings_of,
    with_activation_of,
    with_parameters_of,
)

VALUES_AT_A_TIME = 1 << 16
"""Under reduced precision: values of x that the backward holds in float32 at once, where a sample has no more."""


def _memory_format(x: Tensor) -> torch.memory_format:
    """The format that keeps x's order of axes and that the native kernels are fast in."""
    if not x.is_contiguous():
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
        if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
            return torch.channels_last_3d
    return torch.contiguous_format


def _local_statistics(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[mean_C, biased var_C, values per channel] of this rank's x, (2C + 1,)."""
    channels = x.shape[1]
    if x.numel() == 0:
        return x.new_zeros(2 * channels + 1, dtype=dtype)
    # Under reduced precision the kernel takes its statistics' dtype from the running ones it is given.
    like = None if x.dtype == dtype else x.new_zeros(channels, dtype=dtype)
    mean_C, var_C = torch.batch_norm_update_stats(x, like, like, 0.0)
    return torch.cat([mean_C, var_C, mean_C.new_full((1,), x.numel() // channels)])


class _SyncBatchNormFunction(Function):
    """Native BatchNorm kernels around one exchange each way.

        y  = (x - mean) / std * gamma + beta                        with mean, std of all ranks' x
        dx = gamma / std * (dy - sum(dy) / n - xhat * sum(dy xhat) / n)    with sums over all ranks

    The last two terms of dx are themselves an affine BatchNorm of x, so the eval-mode kernels do it all.
    Gradients of gamma and beta are this rank's: summing them is the business of data parallelism.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        group: Any,
    ) -> Tensor:
        x = x.contiguous(memory_format=_memory_format(x))
        dtype = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        if weight is not None:
            weight = weight.to(dtype)
        if bias is not None:
            bias = bias.to(dtype)

        stats_RS = gather_statistics(_local_statistics(x, dtype), group)
        mean_C, var_C, count = merge_statistics(stats_RS)
        if count == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)} on "
                f"this rank and 1 value per channel over all {len(stats_RS)} ranks of its group"
            )
        if running_mean is not None and running_var is not None and count:
            running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
            running_var.lerp_((var_C * (count / (count - 1))).to(running_var.dtype), momentum)

        ctx.save_for_backward(x, weight, mean_C, var_C)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        if x.numel() == 0:
            return torch.empty_like(x)
        return torch.native_batch_norm(x, weight, bias, mean_C, var_C, False, 0.0, eps)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, var_C = ctx.saved_tensors
        need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
        dy = dy.contiguous(memory_format=_memory_format(x))
        if x.numel():
            _, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean_C, var_C, None, None, False, ctx.eps, [False, True, True]
            )
        else:
            # The native kernel divides by zero here. This rank still joins the exchange.
            grad_weight_C, grad_bias_C = torch.zeros_like(mean_C), torch.zeros_like(mean_C)

        dx = None
        if need_input:
            sums_2C = sum_gradients(torch.stack([grad_weight_C, grad_bias_C]), ctx.group)
            dx = _input_gradient(dy, x, weight, mean_C, var_C, ctx.eps, sums_2C, ctx.count)
        grad_weight = grad_weight_C if need_weight else None
        return dx, grad_weight, grad_bias_C if need_bias else None, None, None, None, None, None


def _input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean_C: Tensor,
    var_C: Tensor,
    eps: float,
    sums_2C: Tensor,
    count: int,
) -> Tensor:
    """dx, rounded once; sums_2C holds sum(dy xhat) and sum(dy) over all ranks."""
    if x.numel() == 0:
        return torch.empty_like(x)
    scale_C = (var_C + eps).rsqrt_()
    if weight is not None:
        scale_C *= weight
    gamma_C, beta_C = sums_2C * (scale_C / -count)
    scale = scale_C.view(1, -1, *[1] * (x.dim() - 2))

    def of(x: Tensor, dy: Tensor) -> Tensor:
        return torch.native_batch_norm(x, gamma_C, beta_C, mean_C, var_C, False, 0.0, eps)[0].addcmul_(dy, scale)

    if x.dtype == mean_C.dtype:
        return of(x, dy)
    # Both terms in float32, and only their sum rounded: a few samples at a time, which a core's cache holds.
    dx = torch.empty_like(x)
    samples = max(1, VALUES_AT_A_TIME // x[0].numel())
    for part_of_dx, part_of_x, part_of_dy in zip(*(t.split(samples) for t in (dx, x, dy)), strict=True):
        part_of_dx.copy_(of(part_of_x.to(mean_C.dtype), part_of_dy.to(mean_C.dtype)))
    return dx


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
        if not bias:  # not left to torch: before 2.15, a layer has both weight and bias or neither
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
        apply = _SyncBatchNormFunction.apply
        if torch.compiler.is_compiling():  # what the exchange does cannot be traced
            apply = torch.compiler.disable(apply)
        return apply(
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
        """The group whose ranks share this batch's statistics; None where this rank's own do."""
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

        Parameters and buffers stay the same objects; a layer that stands at several places is converted once.
        Where anything is refused, nothing has been changed.
        Raises: TypeError on other subclasses of BatchNorm, ValueError on a layer with hooks.
        """
        known = (*BATCH_NORMS, nn.SyncBatchNorm, cls)
        layers = find_batch_norms(module, known, TypeError)
        refuse_hooks(layers, ValueError)
        new = {layer: cls.from_batch_norm(layer, process_group) for layer in layers.values()}
        return replace_layers(module, {old: with_activation_of(layer, old) for old, layer in new.items()})
