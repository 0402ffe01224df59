"""What became of runs, read from their directories and from SLURM's queue. Imports no torch.

python -m launch.status runs [--json]
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.squeue import Queue, job_of, read_queue
from normlab.run_files import is_number, read_launch, read_points, read_result

SIGNS_OF_LIFE = ("metrics.jsonl", "checkpoint.pt", "log.txt", "lock", "config.yaml", "launch.json", "result.json")
MARKS = frozenset(("config.yaml", "launch.json", "metrics.jsonl", "result.json"))
"""A folder that holds one of these is a run's: one that lost its config.yaml is still counted."""
TAIL_BYTES = 1 << 16
STATES = ("running", "queued", "waiting", "stale", "unreadable", "failed", "diverged", "finished")


@dataclass(frozen=True)
class Progress:
    """How far a run is, from its last logged points."""

    samples_seen: int = 0
    score: float | None = None
    """val/accuracy, or val/miou, of the last evaluation."""
    images_per_second: float | None = None
    problem: str = ""
    """What could not be read."""

    def time_left_s(self, total_samples: int | None) -> float | None:
        """At the speed of the last point; evaluations not counted."""
        if not total_samples or not self.images_per_second:
            return None
        return max(0, total_samples - self.samples_seen) / self.images_per_second


@dataclass(frozen=True)
class RunStatus:
    run: str
    """Its directory."""
    state: str
    """finished, diverged, failed (result.json); running (its lock is held, or SLURM runs it); queued; waiting: not
    begun, and in nobody's queue; stale: begun, and nobody is at it; unreadable: its lock does not tell."""
    age_s: float | None
    """Since its last sign of life; None where its files cannot be looked at."""
    samples_seen: int
    total_samples: int | None
    score: float | None
    time_left_s: float | None
    detail: str
    """A failed run's error, a queued job's reason."""
    problems: tuple[str, ...]
    """Files of it that are damaged, foreign or unreadable, in words."""


def read_progress(directory: Path) -> Progress:
    """From the end of metrics.jsonl: its last 64 KiB hold the last evaluation, unless logging is very dense."""
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")[1 if start else 0 : -1]  # the first is cut, the last being written
    except FileNotFoundError:  # not begun
        return Progress()
    except OSError as error:
        return Progress(problem=f"metrics.jsonl cannot be read ({error.strerror})")
    points, broken = read_points(lines)

    def last(tag: str) -> float | None:
        return next((p[tag] for p in reversed(points) if is_number(p.get(tag))), None)

    return Progress(
        samples_seen=points[-1]["samples_seen"] if points else 0,
        score=_score(last),
        images_per_second=last("images_per_second"),
        problem=f"metrics.jsonl has {broken} damaged lines near its end" if broken else "",
    )


def _score(metric: Callable[[str], float | None]) -> float | None:
    """What the run's task is judged by."""
    accuracy = metric("val/accuracy")
    return metric("val/miou") if accuracy is None else accuracy


def read_status(directory: Path, queue: Queue) -> RunStatus:
    """What became of a run. Raises nothing: what cannot be read is named in `problems`."""
    result, no_result = read_result(directory)
    launch, no_launch = read_launch(directory)
    progress = read_progress(directory)
    state, detail = state_of(directory, result, launch, queue)
    score = _score(result["metrics"].get) if result else None
    total = (launch or {}).get("total_samples")
    total = total if isinstance(total, int) else None
    return RunStatus(
        run=str(directory),
        state=state,
        age_s=_age_s(directory),
        samples_seen=progress.samples_seen,
        total_samples=total,
        score=progress.score if score is None else score,
        time_left_s=progress.time_left_s(total) if state == "running" else None,
        detail=detail,
        problems=tuple(problem for problem in (no_result, no_launch, progress.problem) if problem),
    )


def _age_s(directory: Path) -> float | None:
    signs = []
    for name in SIGNS_OF_LIFE:
        with suppress(OSError):
            signs.append((directory / name).stat().st_mtime)
    return max(0.0, time.time() - max(signs)) if signs else None


def state_of(
    directory: Path, result: Mapping[str, Any] | None, launch: Mapping[str, Any] | None, queue: Queue
) -> tuple[str, str]:
    """(state, detail) of a run, as RunStatus has them, from what `read_result` and `read_launch` return."""
    # The lock first: a run that is trained again still has the result of the attempt before for a moment.
    locked, problem = is_locked(directory / "lock")
    if locked:
        return "running", ""
    job = job_of(launch, queue)
    if job is not None:
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


def is_locked(path: Path) -> tuple[bool, str]:
    """(whether a process holds the lock, why that is not known); of another machine, if the file system tells."""
    import fcntl

    try:
        # Without waiting: a foreign file may be a pipe.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return False, ""
    except OSError as error:
        return False, f"lock cannot be looked at ({error.strerror})"
    try:
        # Shared, and for a moment: two who look do not see each other, and who wants the lock waits longer.
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
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def find_runs(root: Path) -> list[Path]:
    """The directories of runs below `root`, or `root` itself."""
    return sorted(Path(folder) for folder, _, files in os.walk(root) if not MARKS.isdisjoint(files))


def duration(seconds: float | None) -> str:
    """12 s, 3 min, 4.5 h, 2.1 d."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.status", description="What became of runs.")
    parser.add_argument("root", type=Path, help="output_dir, a study's folder, or a run's")
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    args = parser.parse_args()
    if not args.root.is_dir():
        print(f"error: {args.root} is no folder; give the output_dir of your runs.", file=sys.stderr)
        sys.exit(2)
    queue = read_queue()
    if queue is None:
        print("warning: squeue does not answer; what it would know is missing here", file=sys.stderr)
    runs = [read_status(directory, queue or {}) for directory in find_runs(args.root)]
    for run in runs:
        for problem in run.problems:
            print(f"warning: {run.run}: {problem}", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
        return
    from launch.table import status_table

    status_table(runs, args.root)
    counts = Counter(run.state for run in runs)
    print(", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no runs")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough, and there is nothing here to lose
    main()
