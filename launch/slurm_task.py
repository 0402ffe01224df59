"""What a submitted job runs: each task of its srun step is one rank. Light to import; torch comes when it runs."""

import os
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from launch.commit import Code, current_code
from launch.environment import rank_environment, spin_briefly
from launch.jobs import announce
from launch.process import StopSignal, outlive_output
from normlab.config.config import Device
from normlab.run import Run
from normlab.run_files import read_launch

PAUSES_S = (1.0, 3.0, 8.0)
"""Between questions to an overloaded SLURM: less, in sum, than the shortest warning that a job gets."""

_BUSY = re.compile(r"no answer|timed out|[Uu]nable to contact|Communication|Connection|[Tt]emporarily|try again")


@dataclass(frozen=True)
class SlurmTask:
    """One rank of one run. Submitted as a pickle: it carries the composed config, and the code it came from."""

    run: Run
    study: str
    code: Code
    max_requeues: int

    def __call__(self) -> None:
        """Train, then leave with 0, or with what went wrong; a stop signal requeues the job."""
        # From the first moment: a signal during the import of torch stops the run at its first step.
        outlive_output()
        with StopSignal():
            os.environ.update(rank_environment(os.environ) or {})
            spin_briefly()
            rank = int(os.environ.get("RANK", 0))
            if rank == 0:
                self._record_start()
            from launch.rank import run_rank

            code = run_rank(self.run.config, self.study, self.run)
            if code > 128:  # still inside: SLURM may send USR2, and SIGTERM after it
                self._stopped(rank, code)
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Submitit calls this for a signal that came before ours was watched: there is nothing to save yet."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _record_start(self) -> None:
        """Say in launch.json, and so in result.json, on which code the job started."""
        started = current_code()
        launch = read_launch(self.run.directory)[0] or {}
        launch |= {"started": asdict(started), "restarts": _restarts()}
        if started != self.code:
            launch["note"] = f"submitted from {self.code}, started on {started}"
            print(f"warning: {launch['note']}", file=sys.stderr)
        announce(self.run, launch)

    def _stopped(self, rank: int, code: int) -> None:
        """The checkpoint is saved: put the job back into the queue, unless SLURM is ending it itself."""
        if rank != 0:
            sys.exit(0)  # not `code`: srun would kill rank 0 before it has requeued the job
        import submitit

        environment = submitit.JobEnvironment()
        if environment.cluster == "slurm":
            state = _state(environment.job_id)
            if state not in ("RUNNING", None):
                # Requeued or preempted by SLURM, which starts it again; or cancelled, which is to be obeyed.
                print(f"stopped by SLURM ({state or 'no longer queued'})", file=sys.stderr)
                sys.exit(code)
            if _restarts() >= self.max_requeues:
                print(
                    f"error: requeued hydra.launcher.max_requeues={self.max_requeues} times without finishing; "
                    "the same command goes on from the checkpoint",
                    file=sys.stderr,
                )
                sys.exit(code)
            _requeue(environment.job_id)
        else:
            environment._requeue(self.max_requeues - _restarts())
        sys.exit(0)


def _restarts() -> int:
    """How often SLURM has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _state(job_id: str) -> str | None:
    """The state in squeue; "" where SLURM does not know the job any more, None where it does not answer."""
    # By its array id: the plain id of one element of an array is also that of the whole array.
    listed = _asked("squeue", "--noheader", "--format=%T", f"--jobs={job_id}")
    if listed.returncode == 0:
        return listed.stdout.strip()
    return "" if "Invalid job id" in listed.stderr else None


def _requeue(job_id: str) -> None:
    asked = _asked("scontrol", "requeue", job_id)
    if asked.returncode:
        print(f"error: the job could not be requeued: {asked.stderr.strip()}", file=sys.stderr)
        sys.exit(1)
    print(f"requeued as job {job_id}", file=sys.stderr)


def _asked(*command: str) -> "subprocess.CompletedProcess[str]":
    """SLURM's answer. It is asked again if it is overloaded, as when all elements of an array ask at once."""
    for pause_s in (*PAUSES_S, None):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except subprocess.TimeoutExpired:
            answer = subprocess.CompletedProcess(command, 1, "", "no answer within 10 s")
        if pause_s is None or not _BUSY.search(answer.stderr if answer.returncode else ""):
            break
        time.sleep(pause_s * random.uniform(0.5, 1.5))
    return answer


def task_of(run: Run, study: str, code: Code, *, max_requeues: int, threads: int, on_gpus: bool) -> SlurmTask:
    """The task for `run`, with `threads` unless it sets its own, and with the device that its job asks for.

    Counting the cores in the task will not do: if SLURM binds tasks, it sees the share of one rank. Nor will
    device=auto: it would train on the CPU if a driver is broken, or take a GPU that was not asked for.
    """
    device = Device.cuda if on_gpus else Device.cpu
    config = replace(run.config, threads=run.config.threads or threads, device=device)
    return SlurmTask(replace(run, config=config), study, code, max_requeues)
