"""CUDA's autocast rules and device checks on a machine without a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def fake_cuda(autocast: torch.dtype | None = None) -> Iterator[None]:
    """Tensors made inside the block have a device, a dtype and a shape, and no values.

    torch's dispatcher treats them as real ones of that device: CUDA's autocast rules hold where `autocast` is
    given, and an operation on tensors of two devices, or on a value, raises. Backward is not available.
    """
    if torch.__version__ < (2, 15):
        pytest.skip("older versions of torch abort in BatchNorm of such tensors")
    with FakeTensorMode():
        if autocast is None:
            yield
            return
        dtype = torch.get_autocast_dtype("cuda")
        # torch.autocast("cuda") turns itself off where there is no GPU.
        torch.set_autocast_dtype("cuda", autocast)
        torch.set_autocast_enabled("cuda", True)
        torch.autocast_increment_nesting()
        try:
            yield
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", dtype)
