"""Telling users what ended a rank."""

import errno
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from normlab.run import Run
from normlab.targets import said_in

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LAUNCHER_NOTICES_WITHIN_S = 5.0
_PEER_GONE = re.compile(r"Connection (closed|reset) by peer|remote process exited|rank \d+ left")
"""What gloo, nccl and SyncBatchNorm say if a rank has gone."""
_NO_MEMORY = re.compile(r"out of memory\.|DefaultCPUAllocator: can't allocate memory")
_ASKED_FOR = re.compile(r"tried to (allocate [\d.]+ \w+)", re.IGNORECASE)
_GPU_HAS = re.compile(r"total capacity of ([\d.]+ \w+)")


def report_failure(error: Exception, rank: int, run: Run | None, stop_signal: Callable[[], int]) -> None:
    """Print what ended this rank, and record it in result.json of `run`, unless another rank was first.

    Call it where the error is handled. A rank that fails because another has gone is not the cause: it waits until
    the launcher has noticed the other one and tells this one to stop.
    """
    cause, trace = f"rank {rank}: {_in_words(error, run)}", traceback.format_exc()
    said = f"rank {rank}:\n{trace}"
    if run is not None and (full := _no_room(error)):
        cause = said = f"error: rank {rank}: {_what_to_do(full, run)}"
    elif run is not None and (isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))):
        cause = said = f"error: rank {rank}: {_with_less_memory(str(error), run)}"
    elif gone := _PEER_GONE.search(str(error)):
        deadline = time.monotonic() + LAUNCHER_NOTICES_WITHIN_S
        while not stop_signal() and time.monotonic() < deadline:
            time.sleep(0.05)
        cause = f"rank {rank}: another rank has gone ({gone[0]}); its own output says why"
        said = f"error: {cause}"
    if run is None or run.fail(cause.removeprefix("error: "), trace):
        print(said, file=sys.stderr)


def _in_words(error: Exception, run: Run | None) -> str:
    """The error's message, with type and place if it is empty or may come from the user's own code."""
    sections = [] if run is None else [run.config.model, run.config.data, run.config.norm]
    has_own_code = any(getattr(section, "target", None) for section in sections)
    return said_in(error) if has_own_code or not str(error) else str(error)


def _no_room(error: BaseException) -> OSError | None:
    """The OSError of a full disk behind `error`, since torch.save wraps it in an error of its own."""
    found = (each for each in _chain(error) if isinstance(each, OSError) and each.errno in NO_ROOM)
    return next(found, None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _what_to_do(full: OSError, run: Run) -> str:
    file = full.filename or f"a file in {run.directory}"
    kept = f"Nothing had been saved yet; once there is room, {run.command_again} begins again."
    if run.checkpoint_path.exists():
        kept = f"{run.checkpoint_path} is kept; once there is room, {run.command_again} goes on from it."
    free_mib = shutil.disk_usage(run.directory).free / 2**20
    disk = f"{free_mib:.0f} MiB are free on the disk at {_mount_point(run.directory)}"
    return f"{file} cannot be written: {full.strerror} ({disk}). {kept}"


def _with_less_memory(error: str, run: Run) -> str:
    asked, gpu = _ASKED_FOR.search(error), _GPU_HAS.search(error)
    detail = "; ".join(filter(None, [asked and f"tried to {asked[1]}", gpu and f"the GPU has {gpu[1]}"]))
    cfg = run.config
    keys = [key for key in ("batch_size", "virtual_ranks") if key == "batch_size" or getattr(cfg, key) > 1]
    found = " ".join(f"{key}={getattr(cfg, key)}" for key in keys)
    fixes = [f"lower {' or '.join(keys)}"]
    if cfg.precision.value != "bf16":
        fixes.append("try precision=bf16")
    if gpu:
        fixes.append("see that nothing else uses the GPU, as hydra.launcher.jobs_per_gpu lets other runs do")
    return f"out of memory{f' ({detail})' if detail else ''} at {found}; {', or '.join(fixes)}."


def _mount_point(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if os.path.ismount(folder))
