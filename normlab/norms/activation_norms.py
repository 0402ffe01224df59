"""Norms that also replace the activation."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config.norm import EvoNormS0Config, FilterResponseNormConfig
from normlab.norms.dtypes import upcast
from normlab.norms.replace import Build, eps_of, with_parameters_of
from normlab.norms.sample_norms import AffineNorm, affine_norm, per_channel


class FilterResponseNorm(AffineNorm):
    """y = x / sqrt(mean(x^2) + eps) * gamma_c + beta_c, the mean over pixels: FRN if no activation follows.

    Shape: (B, C, ...) -> (B, C, ...), with at least one axis of pixels.
    Raises: ValueError on (B, C), since only the signs of values would be left.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise ValueError(f"{type(self).__name__} takes pixels, got {tuple(x.shape)}; use norm=ln or norm=bn.")
        square_BC = upcast(x).square().mean(tuple(range(2, x.dim())), keepdim=True)
        return self.affine(x * (square_BC + self.eps).rsqrt()).to(x.dtype)


class FilterResponseNormTLU(FilterResponseNorm):
    """max(y, tau_c), with y of FilterResponseNorm. tau starts at 0, which is ReLU."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.tau = nn.Parameter(torch.zeros(self.num_features))

    def no_weight_decay(self) -> set[str]:
        return {"tau"}

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(super().forward(x), per_channel(self.tau, x).to(x.dtype))


class EvoNormS0(AffineNorm):
    """y = x sigmoid(v_c x) / sqrt(var_g + eps) * gamma_c + beta_c; v starts at 1, which is SiLU.

    Statistics of float64 input stay in float64 (timm's layer, otherwise the same, computes them in float32).
    Shape: (B, C, ...) -> (B, C, ...).
    """

    def __init__(self, num_features: int, num_groups: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_features, eps, affine)
        self.num_groups = num_groups
        self.v = nn.Parameter(torch.ones(num_features))

    def no_weight_decay(self) -> set[str]:
        return {"v"}

    def forward(self, x: Tensor) -> Tensor:
        grouped = upcast(x).unflatten(1, (self.num_groups, -1))
        var = grouped.var(tuple(range(2, grouped.dim())), correction=0)
        scale_BC = (var + self.eps).rsqrt().repeat_interleave(x.shape[1] // self.num_groups, dim=1)
        activated = x * (x * per_channel(self.v, x)).sigmoid()
        return self.affine(activated * scale_BC.view(*scale_BC.shape, *[1] * (x.dim() - 2))).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"


def filter_response_norm_tlu(norm: FilterResponseNormConfig, virtual_ranks: int) -> Build:
    """Filter Response Normalization with a thresholded linear unit (TLU) in place of the activation.

        y = max(x / sqrt(mean(x^2) + eps) * gamma_c + beta_c, tau_c),   the mean over H, W

    If no activation follows, as before the sum of a residual block, there is no TLU either, and the activation
    after the sum stays. eps is fixed (the paper also learns it, for layers with few pixels). tau has no weight
    decay (the paper mentions none; decay would pull tau back to ReLU's 0).
    Shape: (B, C, ...) -> (B, C, ...), with at least one axis of pixels.
    Train and eval are identical: no buffers. NBS 1.
    Source: Singh & Krishnan 2019, arXiv:1911.09737, section 3.
    """
    return lambda layer, name: affine_norm(FilterResponseNormTLU, layer, eps_of(norm, layer))


def filter_response_norm(norm: FilterResponseNormConfig, virtual_ranks: int) -> Build:
    """FRN if no activation follows: without TLU."""
    return lambda layer, name: affine_norm(FilterResponseNorm, layer, eps_of(norm, layer))


def evonorm_s0(norm: EvoNormS0Config, virtual_ranks: int) -> Build:
    """EvoNorm-S0: x gated by itself, over the deviation of a group of channels; norm and activation in one.

        y = x * sigmoid(v_c x) / sqrt(var_g + eps) * gamma_c + beta_c,   var over C/G, H, W of group g

    If no activation follows, as before the sum of a residual block, only gamma and beta remain, as in timm, and
    the activation after the sum stays. v has no weight decay, as in the authors' code (where gamma and beta have
    none either: optim.norm_weight_decay=0).
    Shape: (B, C, ...) -> (B, C, ...). Train and eval are identical: no buffers. NBS 1.
    Raises: ConfigError if the groups do not divide a layer's channels.
    Source: Liu et al. 2020, arXiv:2004.02967, table 2.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        groups = norm.groups_of(layer.num_features, name)
        return with_parameters_of(EvoNormS0(layer.num_features, groups, eps_of(norm, layer), layer.affine), layer)

    return build
