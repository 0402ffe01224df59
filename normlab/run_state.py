"""The state of a run, from its files, its lock, and SLURM's queue. Imports no torch."""

import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.run_files import ENDED
from normlab.squeue import Queue, job_of

STATES = ("running", "queued", "waiting", "stale", "unreadable", *reversed(ENDED))
"""The states of a run, those that have ended last.

running      its lock is held, or SLURM runs it
queued       in SLURM's queue, or in that of a running sweep
waiting      not begun, and in no queue
stale        begun, and no process is training it
unreadable   its lock cannot be read
failed       result.json says so: an error ended it
diverged     the same: its loss was no longer finite
finished     the same: trained to its end
"""

STYLES = {
    "finished": "green",
    "diverged": "yellow",
    "failed": "red",
    "running": "bold",
    "stopped": "yellow",
    "stale": "yellow",
}
"""The style in which a terminal shows a run's state, or how a sweep's job ended."""


def counted(states: Iterable[str], order: Sequence[str]) -> str:
    """The number of each, as in "2 running, 1 failed"."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in order if counts[state])


def state_of(
    directory: Path, result: Mapping[str, Any] | None, launch: Mapping[str, Any] | None, queue: Queue
) -> tuple[str, str]:
    """(one of STATES, a failed run's error or another remark), from what `run_files` read."""
    # The lock first: a run that is trained again briefly still has the previous attempt's result.
    locked, problem = is_locked(directory / "lock")
    if locked:
        return "running", ""
    job = job_of(launch, queue)
    if job is not None and not is_of(result, launch):
        waits = job.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD")
        return ("queued", job.reason) if waits else ("running", job.state.lower())
    if result is not None:
        return result["status"], str(result.get("error", "")).strip().rpartition("\n")[2]
    if problem:
        return "unreadable", problem
    if launch and launch["launcher"] == "local" and _lives_here(launch):
        return "queued", "waits for its turn"
    if any(directory.glob("checkpoint*.pt")):  # the newest, or the one before it
        return "stale", "the command that began it goes on from its checkpoint"
    if os.path.lexists(directory / "config.yaml"):
        return "stale", "it has no checkpoint yet; the command that began it starts it over"
    return "waiting", "not begun; the command that planned it begins it"


def is_of(result: Mapping[str, Any] | None, launch: Mapping[str, Any] | None) -> bool:
    """Whether the job named in launch.json wrote this result. It may be training other runs by now."""
    return result is not None and result.get("launch") == launch


def is_locked(path: Path) -> tuple[bool, str]:
    """(whether a process holds the lock, why that is unknown); across machines if the file system supports it."""
    import fcntl

    try:
        # Without waiting: a foreign file may be a pipe.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False, ""
    except OSError as error:
        return False, f"lock cannot be looked at ({error.strerror})"
    try:
        # Shared and brief: two readers do not see each other's lock, and a run that wants the lock waits longer.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, ""
    except OSError as error:
        return False, f"lock cannot be looked at ({error.strerror})"
    finally:
        os.close(file)
    return False, ""


def _lives_here(launch: Mapping[str, Any]) -> bool:
    if launch["host"] != socket.gethostname():
        return False
    try:
        os.kill(launch["pid"], 0)
    except PermissionError:  # it is alive, and another user's
        pass
    except (ProcessLookupError, OverflowError):
        return False
    began = began_at(launch["pid"])
    return not began or launch.get("began", began) == began


def began_at(pid: int) -> str:
    """When a process started, in ticks since boot, which tells it apart from a later process with the same pid.

    Empty if /proc does not say.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    # The 22nd field; the 2nd, a name in parentheses, may hold spaces.
    return stat.rpartition(b")")[2].split()[19].decode()
