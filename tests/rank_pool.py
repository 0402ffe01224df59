"""Four gloo ranks that live for the whole test session, since importing torch takes seconds."""

import gc
import multiprocessing
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT = timedelta(seconds=120)


class RankPool:
    """`run(fn, *args, world_size=n)` calls fn(rank, *args) on n ranks of a fresh gloo group.

    fn must stand at the top level of a test module; arguments and results travel by value.
    Returns the ranks' results in order. Raises: AssertionError with every failing rank's traceback.
    """

    def __init__(self, size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder, self._calls = folder, 0
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, fn: Callable[..., Any], *args: Any, world_size: int) -> list[Any]:
        self._calls += 1
        store = self._folder / f"store{self._calls}"
        request = pickle.dumps((fn, args, world_size, str(store)))
        for pipe in self._pipes[:world_size]:
            pipe.send_bytes(request)
        answers = [pickle.loads(pipe.recv_bytes()) for pipe in self._pipes[:world_size]]
        failures = [f"rank {r}:\n{error}" for r, (error, _) in enumerate(answers) if error]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _serve(rank: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.simplefilter("error")
    while True:
        try:
            fn, args, world_size, store = pickle.loads(pipe.recv_bytes())
        except EOFError:
            sys.exit(0)
        error, value = "", None
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=TIMEOUT
            )
            value = fn(rank, *args)
        except BaseException:
            error = traceback.format_exc()
        finally:
            gc.collect()
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send_bytes(pickle.dumps((error, value)))
