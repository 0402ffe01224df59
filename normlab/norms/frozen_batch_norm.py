"""BatchNorm as it was when training ended."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from normlab.config.norm import FrozenBatchNormConfig
from normlab.config.section import ConfigError
from normlab.norms.replace import Build, eps_of, layer_label


class FrozenBatchNorm(FrozenBatchNorm2d):
    """BatchNorm with fixed statistics and fixed gamma and beta, in training too.

        y = (x - running_mean_c) / sqrt(running_var_c + eps) * gamma_c + beta_c

    The definition of detection practice: all four are buffers, so nothing of it is trained. torchvision's
    layer, with its state dict; the native kernel makes it serve any number of axes and keep bfloat16.

    Shape: (B, C, ...) -> (B, C, ...), 2 to 5 axes. NBS 1. Train and eval are identical, at any batch.
    Source: He et al. 2015, arXiv:1512.03385, appendix A (for detection, BN is fixed).
    """

    @classmethod
    def from_batch_norm(cls, layer: _BatchNorm, eps: float) -> "FrozenBatchNorm":
        """A layer with the values, dtype and training flag of `layer`."""
        assert layer.running_mean is not None
        new = cls(layer.num_features, eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(layer, name)
            new.register_buffer(name, None if value is None else value.detach())
        return new.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.running_mean.numel()}, eps={self.eps})"


def frozen_batch_norm(norm: FrozenBatchNormConfig, virtual_ranks: int) -> Build:
    """See FrozenBatchNorm.

    Raises: ConfigError if a layer keeps no running statistics.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        if layer.running_mean is None:
            raise ConfigError(
                f"norm=frozen_bn cannot freeze layer {layer_label(name, layer)}, which keeps no running "
                "statistics; choose another norm or model."
            )
        return FrozenBatchNorm.from_batch_norm(layer, eps_of(norm, layer))

    return build
