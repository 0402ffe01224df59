"""train.py in real processes, for tests: started, watched, signalled, and never left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from normlab import checkpoint

ROOT = Path(__file__).parents[1]
TRAIN = str(ROOT / "train.py")
TINY = ["data.num_train=96", "data.num_test=50", "eval_batch_size=16", "eval_train_samples=20", "log_every=1"]
TINY += ["diagnostics_samples=20"]
LONG = [*TINY, "epochs=1000", "checkpoint_every_s=0", "batch_size=4", "progress=false"]
PATIENCE_S = 300
"""How long a condition may take to come true before a test fails; none waits for time to pass."""


def until(condition: Callable[[], object]) -> None:
    deadline = monotonic() + PATIENCE_S
    while not condition():
        assert monotonic() < deadline, "timed out"
        sleep(0.02)


def hear_signals() -> None:
    """In a child: take signals as a terminal's processes do, also where the tests run under nohup or with an &."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


class Job:
    """`command` in `folder`, in a process group of its own."""

    def __init__(self, folder: Path, *command: str) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "RANK", "WORLD"))}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=hear_signals,
        )

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """End whatever is left."""
        if self.process.returncode is None:  # else its id may be another process's by now
            for pid in [self.process.pid, *descendants(self.process.pid)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process.returncode is None or not self.process.stdout.closed:
            self.process.communicate()

    def directory(self) -> Path | None:
        return next(iter(self.folder.glob("runs/*/*")), None)

    def wait_for_step(self, step: int) -> None:
        """Until a checkpoint of at least `step` stands on disk."""

        def reached() -> bool:
            assert self.process.poll() is None, self.end()
            directory = self.directory()
            path = directory / "checkpoint.pt" if directory else None
            return path is not None and path.exists() and checkpoint.load(path)["step"] >= step

        until(reached)

    def ranks(self) -> list[int]:
        """Process ids of the ranks: every descendant with the trainer's threads, launcher excluded."""
        return descendants(self.process.pid)


def descendants(pid: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(c) for c in children] + [d for c in children for d in descendants(int(c))]


def read_proc(pid: int, name: str) -> str:
    """A file of /proc about a process; empty if it has ended, also while it is read."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    return born(pid) is not None


def born(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot: with its id, the only one of all time."""
    state, *fields = read_proc(pid, "stat").rpartition(")")[2].split() or "Z"
    return None if state == "Z" else int(fields[18])
