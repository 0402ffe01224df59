"""Where and in which numbers a model computes."""

from dataclasses import dataclass

import torch
from torch import nn

from normlab.config.config import Precision, check_tf32


@dataclass(frozen=True)
class Numerics:
    """The device, the dtype of parameters and images, the autocast around forwards, and the memory format."""

    device: torch.device
    dtype: torch.dtype
    autocast: torch.autocast
    memory_format: torch.memory_format

    @classmethod
    def of(cls, precision: Precision, device: torch.device, *, channels_last: bool = False) -> "Numerics":
        """Also says whether this process may use TF32 on CUDA, which torch keeps for the whole process.

        torch's own default is that convolutions do.
        Raises: ConfigError for tf32 on a CPU.
        """
        check_tf32(precision, device.type)
        # Not by the newer `fp32_precision`: once that is set, reading these raises, and inductor reads them.
        torch.backends.cudnn.allow_tf32 = precision is Precision.tf32
        torch.backends.cuda.matmul.allow_tf32 = precision is Precision.tf32
        # On meta, which stands in for a device where only shapes matter, there is none: nothing is cast.
        autocast_on = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
        return cls(
            device,
            torch.float64 if precision is Precision.fp64 else torch.float32,
            torch.autocast(autocast_on, dtype=torch.bfloat16, enabled=precision is Precision.bf16),
            torch.channels_last if channels_last else torch.contiguous_format,
        )

    def module(self, module: nn.Module) -> nn.Module:
        """`module` with its parameters and buffers as they are computed with."""
        return module.to(self.device, self.dtype).to(memory_format=self.memory_format)

    def images(self, images_BHWC: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        """(x / 255 - mean_c) / std_c, as a model takes it: uint8 (B, H, W, C) to (B, C, H, W)."""
        images_BHWC = images_BHWC.to(self.device)  # as bytes: a quarter of what floats would take
        shift = (mean_C * 255).to(self.device, self.dtype).view(-1, 1, 1)
        scale = (1 / (255 * std_C)).to(self.device, self.dtype).view(-1, 1, 1)
        images_BCHW = images_BHWC.permute(0, 3, 1, 2)
        images_BCHW = images_BCHW.to(self.dtype, memory_format=torch.contiguous_format, copy=True)
        return images_BCHW.sub_(shift).mul_(scale).contiguous(memory_format=self.memory_format)
