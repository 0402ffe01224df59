"""Exchange of small tensors between ranks on one machine, through shared memory.

Between processes of one machine, gloo takes hundreds of microseconds for the few numbers that a norm layer sends,
twice per layer and step. Here a rank writes its numbers, then a word that announces them, and reads the others'.
"""

import mmap
import os
import platform
import secrets
import sys
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from normlab.distributed import available_cores
from normlab.older_torch import store_of

CAPACITY = 1 << 20
"""Bytes that a rank can contribute at once. Only those that are written take up memory."""

_CACHE_LINE = 64
_SLOT = _CACHE_LINE + CAPACITY
"""Bytes of a slot: a word, in a cache line of its own, and values."""

_CHECKS = 1000
"""How often a waiting rank checks for a word before it starts to sleep between checks: about 0.1 ms."""

_CHECKS_CROWDED = 100
"""The same if ranks outnumber cores: the awaited rank may be waiting for a core."""

_LONGEST_PAUSE_S = 0.01
_CHECK_FOR_LIFE_S = 0.05
"""Time between two checks of whether the other ranks are still alive."""


class Channel:
    """Memory that the ranks of a process group share; they must be on one machine, Linux on x86-64.

    A rank writes to two slots in turn. It may overwrite a slot once every rank has announced its values for the
    next exchange, because each has read the slot by then.

    Each rank locks a byte of the memory's file. The kernel drops the lock when the process ends, however it ends,
    and when the channel is deleted, so waiting ranks find out who has gone. The file has no name in any file
    system: it disappears with the last rank, and nothing can be left behind.
    """

    def __init__(self, file: int, rank: int, global_ranks: list[int], timeout_s: float) -> None:
        """`file` is a descriptor, closed together with the channel; errors name ranks by `global_ranks`."""
        import fcntl  # not on Windows

        weakref.finalize(self, os.close, file)
        self.file, self._rank, self._global_ranks, self._timeout_s = file, rank, global_ranks, timeout_s
        size = len(global_ranks)
        self._memory = mmap.mmap(file, _total_bytes(size))
        # A POSIX lock: children do not inherit it, so none can keep it when the rank has gone. A process loses
        # it when it closes any descriptor of the file, so this one and the mapping's stay open.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        self._words = memoryview(self._memory).cast("Q")
        words = [[(turn * size + r) * _SLOT // 8 for r in range(size)] for turn in (0, 1)]
        self._my_word = [of_ranks[rank] for of_ranks in words]
        self._other_words = [[(r, of_ranks[r]) for r in range(size) if r != rank] for of_ranks in words]
        self._checks = _CHECKS if size <= available_cores() else _CHECKS_CROWDED
        self._exchanges = 0
        self._views: dict[tuple[int, int, torch.dtype], tuple[Tensor, tuple[Tensor, ...]]] = {}

    def gather(self, values_S: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Every rank's values (R, S), and their rows: views of the memory, valid until the next exchange.

        Collective: every rank of the group must call, with the same shape and dtype.
        Raises: RuntimeError if another rank has another number of values, has gone, or does not come in time.
        """
        self._exchanges += 1
        turn = self._exchanges & 1
        rows_RS, each_S = self._rows(turn, values_S.numel(), values_S.dtype)
        each_S[self._rank].copy_(values_S)
        # The number of this exchange, the number of values and the bytes of each: the same on all ranks.
        word = (self._exchanges & 0xFFFFFFFF) << 32 | values_S.numel() << 4 | values_S.element_size()
        words = self._words
        # A rank that sees the word must see the values too. An x86-64 core makes its stores visible in order, and
        # does its loads in order; other processors promise less.
        words[self._my_word[turn]] = word
        for rank, index in self._other_words[turn]:
            if words[index] != word:
                self._wait_for(rank, index, word)
        return rows_RS, each_S

    def sum(self, values_S: Tensor) -> Tensor:
        """The sum of `values_S` over ranks, in place, added in rank order: bitwise the same on all of them.

        Collective and Raises: as `gather`.
        """
        _, each_S = self.gather(values_S)
        torch.add(each_S[0], each_S[1], out=values_S)
        for row_S in each_S[2:]:
            values_S += row_S
        return values_S

    def _rows(self, turn: int, numel: int, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        key = (turn, numel, dtype)
        if key not in self._views:
            size, first = len(self._global_ranks), turn * len(self._global_ranks) * _SLOT + _CACHE_LINE
            whole = torch.frombuffer(self._memory, dtype=dtype)
            rows_RS = whole.as_strided((size, numel), (_SLOT // dtype.itemsize, 1), first // dtype.itemsize)
            self._views[key] = rows_RS, rows_RS.unbind()
        return self._views[key]

    def _wait_for(self, rank: int, index: int, word: int) -> None:
        words = self._words
        for _ in range(self._checks):
            if words[index] == word:
                return
        began = time.monotonic()
        waited_s = checked_s = 0.0
        while (seen := words[index]) != word:
            if seen >> 32 == word >> 32:
                theirs, ours = (self._global_ranks[r] for r in (rank, self._rank))
                raise RuntimeError(
                    f"rank {theirs} sent {_described(seen)}, rank {ours} {_described(word)}: all ranks must run "
                    "the same SyncBatchNorm layers in the same order"
                )
            # Not sched_yield: on a busy core, others then run for milliseconds. A sleeper runs when it wakes.
            time.sleep(min(waited_s / 20, _LONGEST_PAUSE_S))
            waited_s = time.monotonic() - began
            if waited_s - checked_s > _CHECK_FOR_LIFE_S:
                checked_s = waited_s
                self._raise_if_gone(word)
            if waited_s > self._timeout_s:
                raise RuntimeError(
                    f"rank {self._global_ranks[rank]} has not come to the same SyncBatchNorm layer within "
                    f"{self._timeout_s:.0f} s: all ranks must run the same layers in the same order"
                )

    def _raise_if_gone(self, word: int) -> None:
        import fcntl

        for rank, index in self._other_words[self._exchanges & 1]:
            try:  # a shared lock, since others may be checking the same byte
                fcntl.lockf(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, rank)
            except BlockingIOError:
                continue
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, rank)
            if self._words[index] != word:  # else it ended after announcing this exchange's values
                raise RuntimeError(f"rank {self._global_ranks[rank]} left while SyncBatchNorm waited for it")


def open_channel(group: Any) -> Channel | None:
    """A channel for the ranks of `group`; None, on all of them, if one cannot take part.

    Collective: every rank of the group must call.
    """
    rank, global_ranks = dist.get_rank(group), dist.get_process_group_ranks(group)

    def attempt(open_file: Callable[[], int]) -> tuple[Channel | None, str]:
        try:
            return Channel(open_file(), rank, global_ranks, _timeout_s(group)), ""
        except OSError as error:
            return None, f"rank {global_ranks[rank]}: {error}"

    machine, channel, problem = _machine(), None, ""
    name, path = f"normlab-{secrets.token_hex(16)}", ""
    if rank == 0 and machine:
        channel, problem = attempt(lambda: _create(name, len(global_ranks)))
        if channel is not None:
            path = f"/proc/{os.getpid()}/fd/{channel.file}"
    (_, name, path), *_ = offers = _gathered((machine, name, path), group)
    if not machine or any(other != machine for other, *_ in offers):
        return None
    if rank != 0 and path:
        channel, problem = attempt(lambda: _open(name, path))
    # Once all have answered, each holds its lock.
    problems = [problem for problem in _gathered(problem, group) if problem]
    if problems and rank == 0:
        warnings.warn(
            f"the ranks of this machine cannot share memory ({problems[0]}), so SyncBatchNorm exchanges its "
            f"statistics over {dist.get_backend(group)}, which is slower; NORMLAB_SHARED_MEMORY=0 silences this",
            stacklevel=2,
        )
    return None if problems else channel


def _machine() -> str:
    """An id that ranks which can share memory have in common; empty if this rank cannot, or should not."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or os.environ.get("NORMLAB_SHARED_MEMORY") == "0":
        return ""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""


def _create(name: str, size: int) -> int:
    file = os.memfd_create(name)
    os.ftruncate(file, _total_bytes(size))
    return file


def _open(name: str, path: str) -> int:
    if (target := os.readlink(path)) != f"/memfd:{name} (deleted)":
        raise FileNotFoundError(f"{path} is {target}; the ranks may be in different containers")
    return os.open(path, os.O_RDWR)


def _total_bytes(size: int) -> int:
    return 2 * size * _SLOT


def _timeout_s(group: Any) -> float:
    """How long a rank waits for another that is alive: torch's default, or the store's timeout if that is longer.

    A group does not expose its own timeout. init_process_group passes it to the store too, unless given a store.
    """
    return max(dist.default_pg_timeout, store_of(group).timeout).total_seconds()


def _gathered(value: Any, group: Any) -> list[Any]:
    """Every rank's `value`. Collective."""
    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


def _described(word: int) -> str:
    return f"{(word & 0xFFFFFFFF) >> 4} values of {word & 0xF} bytes"
