"""BatchNorm as it was when training ended."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d


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
        """With the values, dtype and training flag of `layer`."""
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
