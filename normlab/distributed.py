"""Join and leave the process group, and what ranks tell each other outside the gradients."""

import gc
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

from normlab.config import ConfigError, Device

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the job's. A job of one rank has no process group; its collectives are identities."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    def set_threads(self, threads: int | None) -> int:
        """Give this rank its share of the cores, or `threads`; returns the number of threads."""
        torch.set_num_threads(threads or max(1, available_cores() // self.local_world_size))
        return torch.get_num_threads()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks. Collective: every rank must call."""
        if self.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """(...) on each rank -> (world_size, ...) on every rank. Collective: every rank must call."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty(self.world_size * tensor.numel())
        dist.all_gather_single(gathered, tensor.flatten())
        return gathered.view(self.world_size, *tensor.shape)

    def rank0_copy(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rank 0's values of `tensors`, as copies on every rank. Collective: every rank must call."""
        if not tensors:
            return {}
        flat = torch.cat([t.detach().to(torch.float64).flatten() for t in tensors.values()])
        if self.world_size > 1:
            dist.broadcast(flat, src=0)
        parts = flat.split([t.numel() for t in tensors.values()])
        return {
            name: part.to(t.dtype).view(t.shape) for (name, t), part in zip(tensors.items(), parts, strict=True)
        }

    def on_rank0(self, call: Callable[[], T]) -> T:
        """What `call` returns on rank 0, told to all; its ConfigError too. Collective: every rank must call."""
        if self.world_size == 1:
            return call()
        told: list[tuple[T | None, str | None]] = [(None, None)]
        if self.rank == 0:
            try:
                told = [(call(), None)]
            except ConfigError as error:
                told = [(None, str(error))]
        dist.broadcast_object_list(told, src=0)
        value, problem = told[0]
        if problem is not None:
            raise ConfigError(problem)
        return value  # type: ignore[return-value]

    def start_sum(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin the sum over ranks of `values`, in place; the returned call waits for it.

        Collective: every rank must call, in the same order as other collectives.
        """
        if self.world_size == 1:
            return lambda: values
        work = dist.all_reduce(values, async_op=True)

        def wait() -> torch.Tensor:
            work.wait()
            return values

        return wait

    def start_max(self, flags: torch.Tensor) -> Callable[[], list[float]]:
        """Begin the maximum over ranks of `flags`, in place; the returned call waits and gives the numbers.

        Collective: every rank must call, in the same order as other collectives.
        """
        if self.world_size == 1:
            return flags.tolist
        work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, async_op=True)

        def wait() -> list[float]:
            work.wait()
            return flags.tolist()

        return wait


def available_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """The hardware, for results that say what they were made on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor() or platform.machine()}, {available_cores()} cores"


def choose_device(device: Device, local_world_size: int) -> torch.device:
    """cpu, or cuda with an index still to be chosen.

    Raises: ConfigError for cuda without a device, or with more ranks on this machine than devices.
    """
    count = torch.cuda.device_count()
    if device is Device.cpu or (device is Device.auto and count == 0):
        return torch.device("cpu")
    if count < local_world_size:
        raise ConfigError(
            f"device={device.value} with {local_world_size} ranks on this machine needs as many CUDA devices, "
            f"but {count} are visible; lower world_size to {max(count, 1)}, or set device=cpu."
        )
    return torch.device("cuda")


def join(device: Device) -> Ranks:
    """Join the group that RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR describe; alone where RANK is not set.

    nccl on CUDA, gloo on CPU. Collective: every rank must call.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    chosen = choose_device(device, local_world_size)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    if world_size > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=chosen if chosen.type == "cuda" else None)
    return Ranks(rank, world_size, local_world_size, chosen)


def leave() -> None:
    """The one teardown: call when nothing refers to the model or its optimizer any more.

    A DDP model that is still alive when its group goes made about one process in ten abort at exit
    (gloo, torch 2.14.1; with 2.15.0 it was not seen in 48 processes that skipped this).
    """
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
