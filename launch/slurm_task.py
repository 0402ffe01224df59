"""What a submitted job runs: one run with a rank per task of its srun step, or several runs in one task.

Light to import; torch comes when it runs.
"""

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from launch.commit import Code, current_code
from launch.environment import rank_environment, spin_briefly
from launch.geometry import Geometry
from launch.jobs import Job, announce
from launch.process import StopSignal, outlive_output
from normlab.config.config import Device
from normlab.run import Run
from normlab.run_files import read_launch

PAUSES_S = (1.0, 3.0, 8.0)
"""Pauses before asking an overloaded SLURM again: in total, shorter than the shortest warning that a job gets."""

_BUSY = re.compile(r"no answer|timed out|[Uu]nable to contact|Communication|Connection|[Tt]emporarily|try again")


@dataclass(frozen=True)
class SlurmTask:
    """One rank of one run. Submitted as a pickle: it carries the composed config, and the code it came from."""

    run: Run
    study: str
    code: Code
    max_requeues: int

    def __call__(self) -> None:
        """Train, then leave with 0 or an error's exit code; a stop signal requeues the job."""
        # From the very start: a signal during the import of torch stops the run at its first step.
        outlive_output()
        with StopSignal():
            os.environ.update(rank_environment(os.environ) or {})
            spin_briefly()
            rank = int(os.environ.get("RANK", 0))
            if rank == 0:
                _record_start(self.run, self.code)
            from launch.rank import run_rank

            code = run_rank(self.run.config, self.study, self.run)
            if code > 128:  # still inside: SLURM may send USR2, and SIGTERM after it
                if rank == 0:
                    _requeue_or_leave(code, self.max_requeues)
                sys.exit(0)  # not `code`: srun would kill rank 0 before it has requeued the job
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Submitit calls this for a signal that came before we watched for one: there is nothing to save yet."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class SlurmPack:
    """Several runs on one node, trained side by side by the job's only task. Also submitted as a pickle."""

    jobs: tuple[Job, ...]
    code: Code
    max_requeues: int
    cores: int

    def __call__(self) -> None:
        """Train what has not ended, then leave with 0, or 1 if a run failed; a stop signal requeues the job."""
        outlive_output()
        left = [job for job in self.jobs if not job.run.ended()]
        if not left:  # requeued by SLURM after the last of them had ended
            return
        with StopSignal() as stop_signal:  # SLURM may send USR2, and SIGTERM after it
            from launch import local
            from launch.packing import Machine
            from launch.sweep import run_jobs
            from launch.table import SweepView

            local.preload()
            for job in left:
                _record_start(job.run, self.code)
            machine = Machine.here(left, jobs_per_gpu=1, cores=self.cores)
            with SweepView(left) as view:
                ended = run_jobs(left, machine, view, stop_signal)
            if any(one.state == "stopped" for one in ended):
                _requeue_or_leave(128 + stop_signal(), self.max_requeues)
        if any(one.state == "failed" for one in ended):
            sys.exit(1)

    checkpoint = SlurmTask.checkpoint


def _record_start(run: Run, code: Code) -> None:
    """Record in launch.json, and so in result.json, the code a job started with; `code` is what was submitted."""
    started = current_code()
    launch = read_launch(run.directory)[0] or {}
    launch |= {"started": asdict(started), "restarts": _restarts()}
    if started != code:
        launch["note"] = f"submitted from {code}, started on {started}"
        print(f"warning: {launch['note']}", file=sys.stderr)
    announce(run, launch)


def _requeue_or_leave(code: int, max_requeues: int) -> None:
    """With everything saved, requeue the job unless SLURM itself is ending it; then leave with `code`."""
    import submitit

    environment = submitit.JobEnvironment()
    if environment.cluster != "slurm":
        environment._requeue(max_requeues - _restarts())
        sys.exit(0)
    state = _state(environment.job_id)
    if state not in ("RUNNING", None):
        # Requeued or preempted by SLURM, which will start it again; or cancelled, which must be obeyed.
        print(f"stopped by SLURM ({state or 'no longer queued'})", file=sys.stderr)
        sys.exit(code)
    if _restarts() >= max_requeues:
        print(
            f"error: requeued hydra.launcher.max_requeues={max_requeues} times without finishing; "
            "the same command goes on from the checkpoint",
            file=sys.stderr,
        )
        sys.exit(code)
    _requeue(environment.job_id)


def _restarts() -> int:
    """How often SLURM has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _state(job_id: str) -> str | None:
    """The state in squeue; "" if SLURM no longer knows the job, None if it does not answer."""
    # By its array id: the plain id of an array's element may also be that of the whole array.
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
        except OSError as error:  # a container without SLURM's commands
            answer = subprocess.CompletedProcess(command, 1, "", str(error))
        if pause_s is None or not _BUSY.search(answer.stderr if answer.returncode else ""):
            break
        time.sleep(pause_s * random.uniform(0.5, 1.5))
    return answer


def task_of(
    jobs: Sequence[Job], geometry: Geometry, code: Code, max_requeues: int, *, cores: int
) -> SlurmTask | SlurmPack:
    """The task of a job with `cores` cores for `jobs`, each of which has `geometry`."""
    asked = [replace(job, run=_as_asked(job.run, geometry)) for job in jobs]
    if len(asked) > 1:
        return SlurmPack(tuple(asked), code, max_requeues, cores)
    return SlurmTask(asked[0].run, asked[0].study, code, max_requeues)


def _as_asked(run: Run, geometry: Geometry) -> Run:
    """The run with the threads that its job asks for, unless it sets its own, and with the device.

    Counting the cores in the task will not do: if SLURM binds tasks, it sees one rank's share. Nor will
    device=auto: it would train on the CPU if a driver is broken, or take a GPU that was not requested.
    """
    device = Device.cuda if geometry.gpus_per_node else Device.cpu
    threads = run.config.threads or geometry.cpus_per_task
    return replace(run, config=replace(run.config, threads=threads, device=device))
