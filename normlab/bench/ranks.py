"""Ranks to measure on: real processes in a process group of their own, that end with the one that asks."""

import multiprocessing
import multiprocessing.connection
import signal
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from launch.process import end_with_parent
from normlab.config import Device
from normlab.distributed import Ranks, choose_device, leave

Kept = dict[Any, Any]
"""What a rank's functions keep from one call to the next."""


class RankGroup:
    """`world_size` ranks that wait for their turn; a group of one has no process group, as in training.

    `threads` is what each rank computes with, by default its share of the cores. A context: on leaving it, the
    ranks end, and they end by themselves where this process dies.
    """

    def __init__(self, world_size: int, device: Device, threads: int | None = None) -> None:
        self.world_size = world_size
        # launch.local.preload() has one begin to import torch; without that it starts here.
        context = multiprocessing.get_context("forkserver")
        self._folder = tempfile.TemporaryDirectory(prefix="normlab-bench-")
        self._pipes: list[multiprocessing.connection.Connection] = []
        self._processes: list[Any] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            args = (rank, world_size, device, threads, str(Path(self._folder.name) / "store"), theirs)
            process = context.Process(target=_serve, args=args, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            self.threads: int = self._answers()[0]
        except BaseException:
            self.close()
            raise

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """function(ranks, kept, *args) on every rank at once; what each returned, in their order.

        `function` stands at the top level of a module.
        Raises: RuntimeError with the traceback of the first rank that failed.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        return self._answers()

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        while len(answers) < self.world_size:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]
            for pipe in multiprocessing.connection.wait(waiting):
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                try:
                    error, answers[rank] = self._pipes[rank].recv()
                except EOFError:
                    error = "it ended without an answer"
                if error:  # the others may wait for it in a collective for ever
                    raise RuntimeError(f"rank {rank} of {self.world_size}: {error}")
        return [answers[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """End the ranks: those that wait for work by themselves, others by force."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def __enter__(self) -> "RankGroup":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for process in self._processes:
                process.kill()
        self.close()


def _serve(
    rank: int,
    world_size: int,
    device: Device,
    threads: int | None,
    store: str,
    pipe: multiprocessing.connection.Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the asking process's to act on
    end_with_parent()
    kept: Kept = {}
    try:
        here = choose_device(device, world_size)
        ranks = Ranks(rank, world_size, world_size, here)
        if here.type == "cuda":
            import torch

            ranks = Ranks(rank, world_size, world_size, torch.device("cuda", rank))
            torch.cuda.set_device(ranks.device)
        threads = ranks.set_threads(threads)
        if world_size > 1:
            backend = "nccl" if here.type == "cuda" else "gloo"
            dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world_size)
        pipe.send((None, threads))
        while True:
            try:
                function, args = pipe.recv()
            except EOFError:
                break
            pipe.send((None, function(ranks, kept, *args)))
    except Exception:
        pipe.send((traceback.format_exc(), None))
    kept.clear()
    leave()
