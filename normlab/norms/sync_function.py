"""SyncBatchNorm in training, as a function of tensors: for eager autograd, and for torch.compile."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from normlab.norms.exchange import gather_statistics, merge_statistics, sum_gradients

VALUES_AT_A_TIME = 1 << 16
"""Under reduced precision: values of x that the backward holds in float32 at once, but at least one sample's."""


def _memory_format(x: Tensor) -> torch.memory_format:
    """The format that keeps x's order of axes, and in which the native kernels are fast."""
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


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
) -> tuple[Tensor, Tensor, Tensor, int]:
    """y, and for all ranks' x: mean (C,), biased variance (C,), values per channel."""
    stats_RS = gather_statistics(_local_statistics(x, _computed_in(x)), group)
    mean_C, var_C, count = merge_statistics(stats_RS)
    if count == 1:
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)} on "
            f"this rank and 1 value per channel over all {len(stats_RS)} ranks of its group"
        )
    if x.numel() == 0:
        return torch.empty_like(x), mean_C, var_C, count
    return torch.native_batch_norm(x, weight, bias, mean_C, var_C, False, 0.0, eps)[0], mean_C, var_C, count


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean_C: Tensor,
    var_C: Tensor,
    count: int,
    eps: float,
    group: Any,
    need_input: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """dx, if it is needed, and the gradients of gamma and beta (C,)."""
    dy = dy.contiguous(memory_format=_memory_format(x))
    if x.numel():
        _, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean_C, var_C, None, None, False, eps, [False, True, True]
        )
    else:
        # The native kernel divides by zero here. This rank still joins the exchange.
        grad_weight_C, grad_bias_C = torch.zeros_like(mean_C), torch.zeros_like(mean_C)
    if not need_input:
        return None, grad_weight_C, grad_bias_C
    sums_2C = sum_gradients(torch.stack([grad_weight_C, grad_bias_C]), group)
    return _input_gradient(dy, x, weight, mean_C, var_C, eps, sums_2C, count), grad_weight_C, grad_bias_C


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


def _computed_in(x: Tensor) -> torch.dtype:
    """The dtype of statistics, gamma and beta."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _as_computed(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same values in the memory format and dtypes that the native kernels take."""
    dtype = _computed_in(x)
    x = x.contiguous(memory_format=_memory_format(x))
    return x, None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)


class _SyncBatchNormFunction(Function):
    """Native BatchNorm kernels around one exchange each way.

        y  = (x - mean) / std * gamma + beta                        with mean, std of all ranks' x
        dx = gamma / std * (dy - sum(dy) / n - xhat * sum(dy xhat) / n)    with sums over all ranks

    The last two terms of dx are themselves an affine BatchNorm of x, so the eval-mode kernels do it all.
    Gradients of gamma and beta are this rank's: data parallelism sums them.
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
        x, weight, bias = _as_computed(x, weight, bias)
        y, mean_C, var_C, count = _forward(x, weight, bias, eps, group)
        if running_mean is not None and running_var is not None and count:
            running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
            running_var.lerp_((var_C * (count / (count - 1))).to(running_var.dtype), momentum)
        ctx.save_for_backward(x, weight, mean_C, var_C)
        ctx.count, ctx.eps, ctx.group = count, eps, group
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean_C, var_C = ctx.saved_tensors
        need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx, grad_weight_C, grad_bias_C = _backward(
            dy, x, weight, mean_C, var_C, ctx.count, ctx.eps, ctx.group, need_input
        )
        grad_weight = grad_weight_C if need_weight else None
        return dx, grad_weight, grad_bias_C if need_bias else None, None, None, None, None, None


def sync_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: Any,
) -> Tensor:
    """Normalise by the statistics of all ranks of `group`, and update the running ones. Collective."""
    if not torch.compiler.is_compiling():
        args = (x, weight, bias, running_mean, running_var, momentum, eps, group)
        return _SyncBatchNormFunction.apply(*args)
    # The exchange cannot be traced, so all of it is one operator of the graph.
    y, moments_2C, count = torch.ops.normlab.sync_batch_norm(x, weight, bias, eps, group.group_name)
    (mean_C, var_C), count = moments_2C.detach(), count.detach()
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean_C.to(running_mean.dtype), momentum)
        running_var.lerp_((var_C * (count / (count - 1))).to(running_var.dtype), momentum)
    return y


# --- as operators, which torch.compile takes as they are -----------------------------------------------


def _group(name: Any) -> Any:
    """The process group of a name, since operators take names, not groups."""
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(name)


@torch.library.custom_op("normlab::sync_batch_norm", mutates_args=())
def _operator(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group_name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y, [mean, biased variance] (2, C), values per channel ()."""
    group = _group(group_name)
    y, mean_C, var_C, count = _forward(*_as_computed(x, weight, bias), eps, group)
    return y, torch.stack([mean_C, var_C]), torch.tensor(count, dtype=torch.float64)


@_operator.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group_name: str
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=_memory_format(x))
    return y, x.new_empty(2, x.shape[1], dtype=_computed_in(x)), x.new_empty((), dtype=torch.float64)


@torch.library.custom_op("normlab::sync_batch_norm_backward", mutates_args=())
def _backward_operator(
    dy: Tensor, x: Tensor, weight: Tensor | None, moments_2C: Tensor, count: Tensor, eps: float, group_name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, and this rank's gradients of gamma and beta (C,)."""
    x, weight, _ = _as_computed(x, weight, None)
    group = _group(group_name)
    mean_C, var_C = moments_2C
    dx, dgamma_C, dbeta_C = _backward(dy, x, weight, mean_C, var_C, int(count), eps, group, need_input=True)
    assert dx is not None
    return dx, dgamma_C, dbeta_C


@_backward_operator.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, moments_2C: Tensor, count: Tensor, eps: float, group_name: str
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=_memory_format(x))
    return dx, torch.empty_like(moments_2C[0]), torch.empty_like(moments_2C[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.eps, ctx.group_name = inputs
    _, moments_2C, count = output
    ctx.save_for_backward(x, weight, moments_2C, count)


def _differentiate(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    dx, dgamma_C, dbeta_C = torch.ops.normlab.sync_batch_norm_backward(
        dy, *ctx.saved_tensors, ctx.eps, ctx.group_name
    )
    _, need_gamma, need_beta, *_ = ctx.needs_input_grad
    return dx, dgamma_C if need_gamma else None, dbeta_C if need_beta else None, None, None


_operator.register_autograd(_differentiate, setup_context=_keep)
