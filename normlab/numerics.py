"""The device and the number formats in which a model computes."""

import os
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
    def of(
        cls,
        precision: Precision,
        device: torch.device,
        *,
        channels_last: bool = False,
        deterministic: bool = False,
        one_size: bool = False,
    ) -> "Numerics":
        """This also sets how the process computes on CUDA: whether it uses TF32, torch's own default for
        convolutions, and whether it uses only `deterministic` algorithms. If not, and if images have `one_size`,
        cuDNN tries the algorithms for each convolution at each new shape and uses the fastest.

        Raises: ConfigError for tf32 on a CPU.
        """
        check_tf32(precision, device.type)
        # The newer `fp32_precision` is not used: once it is set, reading these raises, and inductor reads them.
        torch.backends.cudnn.allow_tf32 = precision is Precision.tf32
        torch.backends.cuda.matmul.allow_tf32 = precision is Precision.tf32
        torch.backends.cudnn.benchmark = one_size and not deterministic
        if device.type == "cuda":
            torch.use_deterministic_algorithms(deterministic)
            if deterministic:  # cuBLAS reads it at its first use
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # The meta device, which only has shapes, has no autocast, and nothing is cast there.
        autocast_on = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
        return cls(
            device,
            torch.float64 if precision is Precision.fp64 else torch.float32,
            torch.autocast(autocast_on, dtype=torch.bfloat16, enabled=precision is Precision.bf16),
            torch.channels_last if channels_last else torch.contiguous_format,
        )

    def module(self, module: nn.Module) -> nn.Module:
        """`module` with its parameters and buffers on the device and in the formats it computes with."""
        return module.to(self.device, self.dtype).to(memory_format=self.memory_format)

    def images(self, images_BHWC: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        """(x / 255 - mean_c) / std_c, as a model takes it: uint8 (B, H, W, C) to (B, C, H, W)."""
        images_BHWC = images_BHWC.to(self.device)  # as bytes: a quarter of what floats would take
        shift = (mean_C * 255).to(self.device, self.dtype).view(-1, 1, 1)
        scale = (1 / (255 * std_C)).to(self.device, self.dtype).view(-1, 1, 1)
        images_BCHW = images_BHWC.permute(0, 3, 1, 2)
        images_BCHW = images_BCHW.to(self.dtype, memory_format=torch.contiguous_format, copy=True)
        return images_BCHW.sub_(shift).mul_(scale).contiguous(memory_format=self.memory_format)
