"""Joining and leaving the process group, and all communication between ranks except gradients."""

import gc
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from normlab.config import ConfigError
from normlab.config.config import Device
from normlab.devices import OwnGpu, all_have_one, fallback_note

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place in the job. A single rank has no process group, and collectives do nothing."""

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    def set_threads(self, threads: int | None) -> int:
        """Give this rank `threads` threads, or its share of the cores. Returns how many."""
        torch.set_num_threads(threads or self.cores())
        return torch.get_num_threads()

    def cores(self) -> int:
        """This rank's share of the machine's cores, at least 1."""
        return max(1, available_cores() // self.local_world_size)

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
        dist.all_gather_into_tensor(gathered, tensor.flatten())
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
        """What `call` returns on rank 0, or its ConfigError, on every rank. Collective: every rank must call."""
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
        """Begin the sum over ranks of `values`, in place; the returned function waits for it.

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
        """Begin the maximum over ranks of `flags`, in place; the returned function waits for it and returns it.

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
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """The name of the hardware, which results keep."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor() or platform.machine()}, {available_cores()} cores"


def join(device: Device, prepare: Callable[[], T]) -> tuple[Ranks, T]:
    """Call `prepare`, then join the group that RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR describe.

    Without RANK, this process is the only rank. A rank that is prepared waits for the others at the store, not in
    a collective, whose timeout may be shorter than the first decode of a folder.
    nccl on CUDA, gloo on CPU. Collective: every rank must call.
    Raises: on every rank, the ConfigError of the first rank that has one.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    store = next(dist.rendezvous("env://"))[0] if world_size > 1 else dist.HashStore()
    gpu, prepared, problem = OwnGpu(-1, "", 0), None, ""
    try:
        gpu = OwnGpu.find(device, local_rank, local_world_size)
        prepared = prepare()
    except ConfigError as error:
        problem = str(error)
    except Exception:  # the others must not wait for a rank that leaves
        store = dist.PrefixStore("prepared", store)
        store.add("heard", 1)
        store.set(
            str(rank),
            json.dumps((*astuple(gpu), f"rank {rank} failed before it joined; its own output says why.")),
        )
        raise
    told = exchange(dist.PrefixStore("prepared", store), rank, world_size, (*astuple(gpu), problem))
    for *_, problem in told:
        if problem:
            raise ConfigError(problem)
    # auto may find a GPU on some machines and none on others; all ranks compute on one kind of device.
    on_gpus = all_have_one(device, [OwnGpu(*found) for *found, _ in told])
    chosen = torch.device("cuda", gpu.index) if on_gpus else torch.device("cpu")
    if rank == 0 and (note := fallback_note(device, chosen, local_world_size)):
        print(note, file=sys.stderr)
    _init(store, rank, world_size, chosen)
    return Ranks(rank, world_size, local_world_size, chosen), prepared  # type: ignore[return-value]


def _init(store: dist.Store, rank: int, world_size: int, device: torch.device) -> None:
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group(
            "nccl" if on_cuda else "gloo",
            store=dist.PrefixStore("default_pg", store),
            rank=rank,
            world_size=world_size,
            device_id=device if on_cuda else None,
        )


def exchange(store: dist.Store, rank: int, world_size: int, words: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The `words`, strings and numbers, of every rank, in the order of ranks.

    Collective: every rank must call. It waits for up to a day.
    """
    store.set(str(rank), json.dumps(words))
    keys = [str(other) for other in range(world_size)]
    store.wait(keys, timedelta(days=1))
    told = [tuple(json.loads(store.get(key))) for key in keys]
    if store.add("heard", 1) == world_size:
        store.set("all heard", "")
    if rank == 0:  # the store may end with its process
        store.wait(["all heard"])
    return told


def leave() -> None:
    """Leave the process group. Call it when nothing refers to the model or its optimizer any more.

    When a DDP model outlived its group, about one process in ten aborted at exit (gloo, torch 2.14.1; with 2.15.0
    it did not happen in 48 processes).
    """
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
