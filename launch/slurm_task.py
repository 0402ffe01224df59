"""What a submitted job runs: each task of its srun step is one rank. Light to import; torch comes when it runs."""

import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from launch.commit import Code, current_code
from launch.environment import rank_environment, spin_briefly
from launch.jobs import announce
from launch.process import StopSignal, outlive_output
from normlab.run import Run
from normlab.run_files import read_launch


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
            if state != "RUNNING":
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
        environment._requeue(self.max_requeues - _restarts())
        sys.exit(0)


def _restarts() -> int:
    """How often SLURM has started this job again."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _state(job_id: str) -> str:
    # By its array id: the plain id of one element of an array is also that of the whole array.
    listed = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"], capture_output=True, text=True
    )
    return listed.stdout.strip()


def task_of(run: Run, study: str, code: Code, *, max_requeues: int, threads: int) -> SlurmTask:
    """The task for `run`, with `threads` unless it sets its own.

    The number of cores it sees will not do: where SLURM binds each task, they are already one rank's share.
    """
    config = replace(run.config, threads=run.config.threads or threads)
    return SlurmTask(replace(run, config=config), study, code, max_requeues)
