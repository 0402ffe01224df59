"""Follow submitted jobs to their end, without accounting: squeue says that a job is over, result.json how."""

import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.jobs import Ended, Job, ended_well, interrupted
from launch.process import StopSignal
from normlab.config import ConfigError
from normlab.run_files import read_launch
from normlab.run_state import is_of
from normlab.squeue import job_of, read_queue

GRACE_S, GRACE_COMPLETED_S = 15.0, 120.0
"""How long a result may take to appear on a shared file system after its job has left the queue; the latter if
SLURM says that the job completed, so that a result exists."""

_STUCK = re.compile(
    r"Partition(Time|Node)Limit|\w*PerJob(Limit)?|AssocGrp\w*|BadConstraints|Invalid(Account|QOS)|JobHeld\w+"
    r"|DependencyNeverSatisfied"
)
"""Reasons for which a job is pending that do not pass by themselves."""

_ERROR = re.compile(
    r"error: |rank \d+: |slurmstepd.*: error: |stopped by SLURM|[\w.]*(Error|Exception|Interrupt)\b"
)


@dataclass(frozen=True)
class Submitted:
    """A job that is, or was, in SLURM's queue."""

    job: Job
    job_id: str
    logs: Path


@dataclass(frozen=True)
class Submission:
    """The outcome of a call of `submit`."""

    queued: list[Submitted]
    """In SLURM's queue, now or already before."""

    busy: list[Ended]
    """Being trained by another process, outside the queue."""

    left: list[Job]
    """Not submitted, since the site takes no more for now."""

    limit: str = ""
    """What sbatch said when it refused those."""


def wait_for(
    submission: Submission,
    before: Sequence[Ended],
    submit: Callable[[Sequence[Job]], Submission],
    *,
    poll_s: float,
) -> list[Ended]:
    """Block until every job has left the queue, and show their progress. `before` had already ended.

    Jobs that the site had no room for are submitted as others end. A stop signal ends the waiting, not the jobs:
    the same command waits for them again.
    Raises: ConfigError, from `submit`, if no other job is left to wait for.
    """
    from launch.table import SweepView

    waiting, unsent = list(submission.queued), submission.left
    gone_since: dict[str, float] = {}
    begun: set[Job] = set()
    warned: set[str] = set()
    fullest = math.inf  # this user's largest queue since the site last took no more
    ended: list[Ended] = []
    everyone = [*(each.job for each in waiting), *unsent, *(each.job for each in before)]
    with StopSignal() as stop_signal, SweepView(everyone) as view:
        for past in before:
            view.end(past)
        while (waiting or unsent) and not stop_signal():
            queue = read_queue()
            for each in list(waiting) if queue is not None else []:
                launch = read_launch(each.job.run.directory)[0]
                queued = job_of(launch, queue or {})
                if queued:
                    gone_since.pop(each.job_id, None)
                    if queued.state == "RUNNING" and each.job not in begun:
                        begun.add(each.job)
                        view.begin(each.job)
                    if _STUCK.fullmatch(queued.reason) and queued.reason not in warned:
                        warned.add(queued.reason)
                        tells = f"scontrol show job {each.job_id} tells what it asks for"
                        view.note(f"warning: job {each.job_id} may never start: {queued.reason}; {tells}")
                    # The last run of a job ends when the job has left the queue, so that nothing runs any more.
                    last = sum(one.job_id == each.job_id for one in waiting) == 1
                    over = not last and is_of(each.job.run.result(), launch)
                else:
                    since = gone_since.setdefault(each.job_id, time.monotonic())
                    over = bool(each.job.run.result()) or time.monotonic() - since > _grace_s(each)
                if over:
                    waiting.remove(each)
                    ended.append(how_it_ended(each))
                    view.end(ended[-1])
            if unsent and queue is not None:
                fullest = max(fullest, len(queue))
                if len(queue) < fullest or not waiting:
                    fullest = 0
                    try:
                        more = submit(unsent)
                    except ConfigError as error:  # squeue may be silent just now; keep watching the others
                        if not waiting:
                            raise
                        fullest = math.inf  # so that the next look tries again
                        if str(error) not in warned:
                            warned.add(str(error))
                            view.note(f"warning: {error}")
                    else:
                        waiting, unsent = waiting + more.queued, more.left
                        for busy in more.busy:
                            ended.append(busy)
                            view.end(busy)
            view.update()
            _sleep(poll_s, stop_signal)
    if stop_signal():
        if waiting:
            ids = " ".join(sorted({each.job_id for each in waiting}))
            print(f"no longer waiting; the jobs go on. To end them: scancel {ids}", file=sys.stderr)
        if unsent:
            print(f"{len(unsent)} runs are not submitted; the same command submits them", file=sys.stderr)
        raise SystemExit(128 + stop_signal())
    return ended


def _grace_s(submitted: Submitted) -> float:
    command = ["scontrol", "show", "job", "--oneliner", submitted.job_id]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return GRACE_S
    return GRACE_COMPLETED_S if "JobState=COMPLETED " in shown else GRACE_S


def how_it_ended(submitted: Submitted) -> Ended:
    """How a job that has left the queue ended, from its files: without accounting, its exit code is unknown."""
    job = submitted.job
    result = job.run.result()
    if ended := ended_well(job, result):
        return ended
    if result:
        return Ended(job, "failed", " ".join(str(result.get("error", "")).split()))
    words = last_words(submitted.logs, submitted.job_id, job.run.log_path)
    return interrupted(job, words) if job.run.checkpoint_path.exists() else Ended(job, "failed", words)


def last_words(folder: Path, job_id: str, own_log: Path | None = None) -> str:
    """The last line that looks like an error: in the run's own log if it shared its job, then in its ranks' logs,
    rank 0's first, with the rank.
    """
    logs = {f"rank {_rank(log)}: ": log for log in sorted(folder.glob(f"{job_id}_*_log.err"), key=_rank)}
    if own_log and own_log.is_file() and not own_log.is_symlink():
        logs = {"": own_log, **logs}
    last = ""
    for who, log in logs.items():
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.match(line)]
        if errors:
            return f"{who}{errors[-1]}"
        last = last or (lines[-1] if lines else "")
    return last or "it left nothing but its name in the queue; `sacct` may know more"


def _rank(log: Path) -> int:
    return int(log.name.split("_")[-2])


def _sleep(seconds: float, stop_signal: StopSignal) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop_signal():
        time.sleep(min(0.1, seconds))
