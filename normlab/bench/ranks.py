"""Real ranks on this machine that are kept ready, since importing torch takes seconds."""

import multiprocessing
import os
import pickle
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from launch.process import end_with_parent
from normlab.distributed import available_cores, leave

TIMEOUT = timedelta(seconds=120)
"""How long a rank waits for the others in a collective."""


class RankPool:
    """`size` processes, forked from one that has imported torch. `run` calls a function on some or all of them.

    Ranks on "cuda" have one GPU each and talk over nccl, others over gloo. Each computes with `threads` threads,
    by default its share of the cores. A context manager: the processes end with the block, or when this process
    dies.
    """

    def __init__(self, size: int, device: str = "cpu", threads: int | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # no effect after launch.local.preload()
        self._folder = tempfile.TemporaryDirectory(prefix="normlab-ranks-")
        self._calls = 0
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, device, threads, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, world_size: int) -> list[Any]:
        """function(rank, *args) on ranks 0 to world_size - 1 of a new process group; their results in rank order.

        A single rank has no process group, as in training. `function` is defined at the top level of a module;
        arguments and results are copied.
        Raises: RuntimeError with the traceback of each rank that failed.
        """
        self._calls += 1
        store = os.path.join(self._folder.name, f"store{self._calls}")
        request = pickle.dumps((function, args, world_size, store))
        for pipe in self._pipes[:world_size]:
            with suppress(BrokenPipeError):  # it has ended, as `_answer` will report
                pipe.send_bytes(request)
        answers = [self._answer(rank) for rank in range(world_size)]
        failures = [f"rank {rank} of {world_size}:\n{error}" for rank, (error, _) in enumerate(answers) if error]
        if failures:
            raise RuntimeError("\n".join(failures))
        return [value for _, value in answers]

    def _answer(self, rank: int) -> tuple[str, Any]:
        try:
            error, value = pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, ConnectionResetError):
            self._processes[rank].join()
            return f"it ended with exit code {self._processes[rank].exitcode}", None
        return error, value

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()
        self._folder.cleanup()

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # they may be in the middle of a call
            for process in self._processes:
                process.kill()
        self.close()


def _serve(rank: int, device: str, threads: int | None, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the calling process decides what Ctrl-C does
    end_with_parent()
    if device == "cuda":
        torch.cuda.set_device(rank)
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        error, value = "", None
        try:
            function, args, world_size, store = pickle.loads(request)
            torch.set_num_threads(threads or max(1, available_cores() // world_size))
            if world_size > 1:
                dist.init_process_group(
                    "nccl" if device == "cuda" else "gloo",
                    init_method=f"file://{store}",
                    rank=rank,
                    world_size=world_size,
                    timeout=TIMEOUT,
                )
            value = function(rank, *args)
        except BaseException:
            error = traceback.format_exc()
        leave()  # also after a failure, so that ranks waiting for this one fail at once
        pipe.send_bytes(pickle.dumps((error, value)))
