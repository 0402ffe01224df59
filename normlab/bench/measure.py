"""What one norm layer costs: time, memory kept for backward, and what its ranks send each other."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from normlab.config.norm import CustomNormConfig, NormConfig
from normlab.norms import NORMS, convert_norms
from normlab.norms.exchange import over_backend
from normlab.step_cost import saved_bytes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
Times = tuple[float, float]
"""Seconds of a forward and of a backward."""


@dataclass(frozen=True)
class Case:
    """One norm on one input, on each of `world_size` ranks."""

    norm: str
    shape: tuple[int, int, int, int]
    """(B, C, H, W) on each rank."""

    dtype: str
    """bf16: the input is bfloat16 and the layer's parameters float32, as under autocast."""

    memory_format: str
    world_size: int


@dataclass(frozen=True)
class Collective:
    """One collective call by a rank."""

    name: str
    """all_gather, all_reduce, ..."""

    message_bytes: int
    """Bytes that this rank contributes. How much goes over the wire, and how often, depends on the backend."""


@dataclass(frozen=True)
class Facts:
    """Facts that are the same in every step of a case."""

    saved_bytes: int
    """See `saved_bytes`."""

    collectives: list[Collective]
    """One forward's and one backward's, in order."""

    threads: int
    """The threads that this rank computes with."""

    step_s: float
    """A first estimate of a step's time."""


class Traffic(TorchDispatchMode):
    """Inside the block, `calls` collects every collective that this process takes part in.

    They are read from torch's dispatcher, which sees the calls of every backend, also those of DDP's C++, but not
    exchanges through shared memory.
    """

    NAMES = {"_allgather_base_": "all_gather", "allgather_": "all_gather", "allreduce_": "all_reduce"}

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Collective] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
            sent = next((v for name, v in given.items() if name.startswith("input")), given.get("tensors", []))
            tensors = [sent] if isinstance(sent, Tensor) else sent
            name = func._schema.name.partition("::")[2]
            self.calls.append(Collective(self.NAMES.get(name, name.strip("_")), sum(t.nbytes for t in tensors)))
        return func(*args, **(kwargs or {}))


class LayerStep:
    """Forward and backward of one layer, the way training calls it, on random input."""

    def __init__(self, case: Case, device: str) -> None:
        dtype = DTYPES[case.dtype]
        self.device = device
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=case.dtype == "bf16")
        layer = convert_norms(nn.Sequential(nn.BatchNorm2d(case.shape[1])), norm_config(case.norm))
        self.layer = layer.to(device, torch.promote_types(dtype, torch.float32)).train()
        x_BCHW = torch.randn(case.shape, device=device, dtype=dtype)
        self.x_BCHW = x_BCHW.contiguous(memory_format=LAYOUTS[case.memory_format]).requires_grad_()
        self.dy_BCHW = torch.randn_like(self.x_BCHW.detach())
        self.inputs = [self.x_BCHW, *(p for p in self.layer.parameters() if p.requires_grad)]

    def forward(self) -> Tensor:
        with self.autocast:
            return self.layer(self.x_BCHW)

    def backward(self, y_BCHW: Tensor) -> None:
        torch.autograd.grad(y_BCHW, self.inputs, self.dy_BCHW.to(y_BCHW.dtype), allow_unused=True)

    def times(self, steps: int) -> Times:
        """Medians over `steps` of forward and backward in turn."""
        forward_s, backward_s = [], []
        for _ in range(steps):
            began = self._clock()
            y_BCHW = self.forward()
            between = self._clock()
            self.backward(y_BCHW)
            forward_s.append(between - began)
            backward_s.append(self._clock() - between)
        return median(forward_s), median(backward_s)

    def _clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def norm_config(name: str) -> NormConfig:
    """A norm with the values that `norm=name` alone gives it; a user's own is named as module:name."""
    return CustomNormConfig(target=name) if ":" in name else NORMS[name](name=name)


def examine(rank: int, cases: Sequence[Case], device: str) -> list[Facts]:
    """Measure what does not need repeating. Collective: every rank must call."""
    seen = []
    for case in cases:
        step = LayerStep(case, device)
        step.times(2)  # first calls choose kernels and open connections
        owned = [*step.layer.parameters(), *step.layer.buffers()]
        with over_backend(), Traffic() as traffic:
            step.backward(step.forward())
        saved = saved_bytes(step.forward, owned)
        seen.append(Facts(saved, traffic.calls, torch.get_num_threads(), sum(step.times(3))))
    return seen


def time_steps(rank: int, cases: Sequence[tuple[Case, int]], device: str) -> list[Times]:
    """Times of each (case, number of steps), one case after the other. Collective: every rank must call."""
    seen = []
    for case, steps in cases:
        step = LayerStep(case, device)
        step.times(2)
        if dist.is_initialized():
            dist.barrier()
        seen.append(step.times(steps))
    return seen
