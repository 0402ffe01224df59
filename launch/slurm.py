"""A sweep on a SLURM cluster: an array of jobs for each geometry. Imports no torch but to plan the sweep."""

import os
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from launch.commit import current_code
from launch.geometry import Geometry
from launch.jobs import Ended, Job, announce, job_returns, plan_jobs, record_ended, to_train
from launch.process import StopSignal
from launch.slurm_config import SlurmConfig
from launch.slurm_task import task_of
from launch.slurm_wait import Submitted, wait_for
from normlab.config import ConfigError
from normlab.run import writable
from normlab.run_files import read_launch
from normlab.squeue import job_of, read_queue

if TYPE_CHECKING:
    import submitit

MAX_ARRAY = 1000
"""Elements of one array; SLURM's own limit, MaxArraySize, is 1001 unless a cluster sets another."""


def sweep(
    master_config: DictConfig,
    config_loader: ConfigLoader,
    sweep_overrides: Sequence[Sequence[str]],
    config: SlurmConfig,
) -> list[JobReturn]:
    """Plan the jobs, submit those that are left, wait for them if told to, and give the sweeper their values.

    Raises: ConfigError before any job is submitted.
    """
    jobs = plan_jobs(master_config, config_loader, sweep_overrides)
    left, skipped = to_train(jobs, retry_failed=config.retry_failed)
    with StopSignal():  # it counts in `wait_for`, which tells what has been submitted by then
        submitted, busy = submit(left, config)
        for each in submitted:
            print(
                f"{each.job.name}: SLURM job {each.job_id}{'' if each.new else ', queued before'}", file=sys.stderr
            )
        if config.wait:
            ended = wait_for(submitted, [*skipped, *busy], poll_s=config.poll_s)
        else:
            ended = [Ended(each.job, "queued", f"SLURM job {each.job_id}") for each in submitted]
    record_ended([*skipped, *busy, *ended])
    in_queue = {each.job.run.directory: each.job for each in submitted}
    return job_returns([in_queue.get(job.run.directory, job) for job in jobs])


def submit(jobs: Sequence[Job], config: SlurmConfig) -> tuple[list[Submitted], list[Ended]]:
    """Send `jobs` to SLURM, an array for each geometry; those that are in its queue already stay as they are.

    Returns what is in the queue, and the jobs that another process is training outside it.
    Raises: ConfigError where a run does not fit the limits, or sbatch refuses.
    """
    geometries = {id(job): config.geometry(job) for job in jobs}  # all of them, before anything is sent
    submitted: list[Submitted] = []
    busy: list[Ended] = []
    if not jobs:
        return submitted, busy
    output_dir = Path(jobs[0].run.config.output_dir).absolute()
    # Two sweeps that are started at once must not both find a run missing from the queue.
    with writable(str(output_dir)):
        output_dir.mkdir(parents=True, exist_ok=True)
        others_wait = FileLock(output_dir / ".submit.lock", fallback_to_soft=False).acquire()
    with others_wait:
        queue = read_queue()
        if queue is None:
            raise ConfigError("squeue does not answer, so what is queued already is unknown; try again.")
        arrays: dict[tuple[Geometry, str], list[Job]] = defaultdict(list)
        for job in jobs:
            launch = read_launch(job.run.directory)[0]
            if launch and job_of(launch, queue):
                # What comes of it is of the command that queued it.
                queued = replace(job, run=replace(job.run, attempt=str(launch.get("attempt", ""))))
                submitted.append(Submitted(queued, launch["job_id"], Path(launch["logs"]), new=False))
            elif _is_free(job):
                arrays[geometries[id(job)], job.study].append(job)
            else:
                busy.append(Ended(job, "skipped", "another process is training it"))
        for (geometry, study), members in arrays.items():
            for start in range(0, len(members), MAX_ARRAY):
                part = members[start : start + MAX_ARRAY]
                submitted += _submit_array(part, geometry, study, config, output_dir)
    return submitted, busy


def _is_free(job: Job) -> bool:
    """Whether no other process trains the run now. What `rerun` deletes is deleted by the job, when it begins."""
    with job.run.lock() as free:
        return free


def _submit_array(
    jobs: Sequence[Job], geometry: Geometry, study: str, config: SlurmConfig, output_dir: Path
) -> list[Submitted]:
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    # A folder of its own: job ids start anew on another cluster, and submitit would take old results for new.
    submission = f"normlab-{uuid.uuid4().hex[:12]}"
    logs = output_dir / ".slurm" / submission
    try:
        executor = SlurmExecutor(logs, max_num_timeout=config.max_requeues, python=config.python)
    except RuntimeError:
        raise ConfigError(
            "hydra/launcher=slurm finds no srun on this machine; run it on a login node of the cluster, "
            "or set hydra/launcher=local."
        ) from None
    executor.update_parameters(**config.sbatch_parameters(geometry, study, submission))
    code = current_code()
    tasks = [
        task_of(job.run, job.study, code, max_requeues=config.max_requeues, threads=geometry.cpus_per_task)
        for job in jobs
    ]
    try:
        with _outside_any_job():
            sent = executor.submit_array(tasks)
    except FailedJobError as error:
        raise ConfigError(f"sbatch refused the jobs: {' '.join(str(error).split())}") from None
    for job, each in zip(jobs, sent, strict=True):
        _announce(job, each, submission, {"geometry": asdict(geometry), "submitted": asdict(code)})
    return [Submitted(job, str(each.job_id), logs, new=True) for job, each in zip(jobs, sent, strict=True)]


def _announce(job: Job, sent: "submitit.Job[Any]", submission: str, more: dict[str, Any]) -> None:
    """Leave the job's id in the run's directory, and a way to its log."""
    logs = sent.paths.folder
    launch = {"launcher": "slurm", "job_id": sent.job_id, "submission": submission, "logs": str(logs)}
    launch["attempt"] = job.run.attempt
    announce(job.run, {**launch, **more, "overrides": list(job.overrides), "total_samples": job.total_samples})
    job.run.log_path.unlink(missing_ok=True)
    job.run.log_path.symlink_to(logs / f"{sent.job_id}_0_log.err")


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide the variables of a job that this is run from: sbatch would hand them to the new ones.

    submitit's clean_env hides SLURM_CONF as well, which sbatch needs.
    """
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    hidden = {
        key: value
        for key, value in os.environ.items()
        if (key.startswith(("SLURM", "SRUN_", "SUBMITIT_")) and key != "SLURM_CONF") or key in ranks
    }
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)
