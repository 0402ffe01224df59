"""Layers whose statistics are of one sample, where torch's own do not serve."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normlab.norms.grouped_batch_norm import wide


def per_channel(values_C: Tensor, x: Tensor) -> Tensor:
    """values_C in the shape in which they meet the channels of x."""
    return values_C.view(1, -1, *[1] * (x.dim() - 2))


class InstanceNorm1d(nn.InstanceNorm1d):
    """torch's, for (B, C, L) alone: it would read BatchNorm1d's (B, C) as one sample of B channels.

    Raises: ValueError on (B, C), whose channels have one value each.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 3:
            raise ValueError(f"InstanceNorm1d takes (B, C, L), got {tuple(input.shape)}; use norm=ln or norm=bn.")


class AffineNorm(nn.Module):
    """Base of layers of `num_features` channels with BatchNorm's gamma and beta, or neither."""

    def __init__(self, num_features: int, eps: float, affine: bool = True, *, bias: bool = True) -> None:
        super().__init__()
        self.num_features, self.eps = num_features, eps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine and bias else None

    def affine(self, x: Tensor) -> Tensor:
        """x * gamma_c + beta_c."""
        if self.weight is not None:
            x = x * per_channel(self.weight, x)
        return x if self.bias is None else x + per_channel(self.bias, x)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"


class ChannelAffine(AffineNorm):
    """y = x * gamma_c + beta_c, and no normalization. Shape: (B, C, ...) -> (B, C, ...)."""

    def __init__(self, num_features: int, affine: bool = True, *, bias: bool = True) -> None:
        super().__init__(num_features, 0.0, affine, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(x).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}"


class ChannelLayerNorm(AffineNorm):
    """torch's layer_norm over channels, at each pixel. Shape: (B, C, ...) -> (B, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.movedim(1, -1), (self.num_features,), self.weight, self.bias, self.eps)
        return y.movedim(-1, 1).to(x.dtype)


class ChannelRmsNorm(AffineNorm):
    """torch's rms_norm over channels, at each pixel, and beta. Shape: (B, C, ...) -> (B, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.rms_norm(wide(x).movedim(1, -1), (self.num_features,), self.weight, self.eps).movedim(-1, 1)
        return (y if self.bias is None else y + per_channel(self.bias, y)).to(x.dtype)


class FilterResponseNorm(AffineNorm):
    """y = x / sqrt(mean(x^2) + eps) * gamma_c + beta_c, the mean over pixels: FRN where no activation follows.

    Shape: (B, C, ...) -> (B, C, ...), with at least one axis of pixels.
    Raises: ValueError on (B, C), where only the sign of a value would be left.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise ValueError(f"{type(self).__name__} takes pixels, got {tuple(x.shape)}; use norm=ln or norm=bn.")
        square_BC = wide(x).square().mean(tuple(range(2, x.dim())), keepdim=True)
        return self.affine(x * (square_BC + self.eps).rsqrt()).to(x.dtype)


class FilterResponseNormTLU(FilterResponseNorm):
    """max(y, tau_c), y as of FilterResponseNorm. tau starts at 0, which is ReLU."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.tau = nn.Parameter(torch.zeros(self.num_features))

    def no_weight_decay(self) -> set[str]:
        return {"tau"}

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(super().forward(x), per_channel(self.tau, x).to(x.dtype))


class EvoNormS0(AffineNorm):
    """y = x sigmoid(v_c x) / sqrt(var_g + eps) * gamma_c + beta_c; v starts at 1, which is SiLU.

    Statistics in float64 stay there (timm's, which is else the same, goes through float32).
    Shape: (B, C, ...) -> (B, C, ...).
    """

    def __init__(
        self, num_features: int, num_groups: int, eps: float = 1e-5, affine: bool = True, *, bias: bool = True
    ) -> None:
        super().__init__(num_features, eps, affine, bias=bias)
        self.num_groups = num_groups
        self.v = nn.Parameter(torch.ones(num_features))

    def no_weight_decay(self) -> set[str]:
        return {"v"}

    def forward(self, x: Tensor) -> Tensor:
        grouped = wide(x).unflatten(1, (self.num_groups, -1))
        var = grouped.var(tuple(range(2, grouped.dim())), correction=0)
        scale_BC = (var + self.eps).rsqrt().repeat_interleave(x.shape[1] // self.num_groups, dim=1)
        activated = x * (x * per_channel(self.v, x)).sigmoid()
        return self.affine(activated * scale_BC.view(*scale_BC.shape, *[1] * (x.dim() - 2))).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"
