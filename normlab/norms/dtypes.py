"""The dtypes in which norms compute: the output has the input's dtype, and statistics are at least float32.

That holds on every device, whatever autocast does there: CUDA's casts group_norm, layer_norm and rms_norm to
float32 and passes that to the rest of the model; the CPU's leaves them alone.
"""

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """x in the dtype that its statistics are computed in: float32 for bfloat16 and float16."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def for_native_kernel(
    x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x, gamma and beta as torch's group_norm and layer_norm take them; the caller rounds the output to x.dtype.

    The CPU's kernels accept bfloat16 x with float32 parameters, compute float32 statistics, and round once. CUDA's
    refuse the mixture, so everything is upcast there, which is also rounded once.
    """
    if x.device.type == "cpu":
        return x, weight, bias
    return upcast(x), None if weight is None else upcast(weight), None if bias is None else upcast(bias)
