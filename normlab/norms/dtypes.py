"""In which dtypes norms compute: a norm's output has its input's dtype, and statistics are float32 at least.

That is so on every device, whatever autocast does there. Its rules differ: CUDA's casts group_norm, layer_norm and
rms_norm to float32 and gives that to the rest of the model; the CPU's leaves them as they are.
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

    The CPU's kernels take bfloat16 x beside float32 parameters, with float32 statistics, and round once. CUDA's
    refuse the mixture, so everything is upcast there, and is rounded once as well.
    """
    if x.device.type == "cpu":
        return x, weight, bias
    return upcast(x), None if weight is None else upcast(weight), None if bias is None else upcast(bias)
