"""A sweep on a SLURM cluster: one array of jobs per geometry. Imports torch only to plan the sweep."""

import os
import re
import shutil
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from launch.cluster import Cluster, this_cluster
from launch.commit import ROOT, current_code
from launch.geometry import Geometry
from launch.jobs import Ended, Job, announce, job_returns, plan_jobs, record_ended, to_train
from launch.process import StopSignal, stop_signals_blocked
from launch.slurm_config import OVERRULING, SlurmConfig
from launch.slurm_task import task_of
from launch.slurm_wait import Submission, Submitted, wait_for
from launch.snapshot import remove_snapshots, take_snapshot
from normlab.config import ConfigError
from normlab.run import writable
from normlab.run_files import read_launch
from normlab.squeue import job_of, read_queue

_LIMIT = re.compile(r"\w*Max\w*Submit\w*|MaxJobCount|temporarily un\w+|Invalid job array")
"""What sbatch says about a site's limits, which leave room again once other jobs have ended."""


def sweep(
    master_config: DictConfig,
    config_loader: ConfigLoader,
    sweep_overrides: Sequence[Sequence[str]],
    config: SlurmConfig,
) -> list[JobReturn]:
    """Plan the jobs, submit those that are left, wait for them if asked to, and return each one's value.

    Raises: ConfigError before any job is submitted.
    """
    jobs = plan_jobs(master_config, config_loader, sweep_overrides)
    left, skipped = to_train(jobs, retry_failed=config.retry_failed)
    # `wait_for` handles a first signal, and says what has been submitted; a second one ends a SLURM that hangs.
    with StopSignal(second_ends=True):
        submission = submit(left, config)
        if submission.left:
            if not submission.queued:
                raise ConfigError(
                    f"sbatch takes no more jobs ({submission.limit}); try again when others have ended."
                )
            print(f"{_unsent(submission)}; the others follow as jobs end", file=sys.stderr)
        ended: list[Ended] = [*skipped, *submission.busy]
        if config.wait:
            ended += wait_for(submission, ended, lambda jobs: submit(jobs, config), poll_s=config.poll_s)
        else:
            ended += [Ended(each.job, "queued", f"SLURM job {each.job_id}") for each in submission.queued]
            unsent = f"not submitted ({submission.limit}); the same command submits it once others have ended"
            ended += [Ended(job, "stopped", unsent) for job in submission.left]
    if config.snapshot and jobs:
        output_dir = Path(jobs[0].run.config.output_dir).absolute()
        with _alone(output_dir):
            if (queue := read_queue()) is not None:
                remove_snapshots(output_dir, queue, this_cluster().name)
    record_ended(ended)
    in_queue = {each.job.run.directory: each.job for each in submission.queued}
    return job_returns([in_queue.get(job.run.directory, job) for job in jobs])


def _unsent(submission: Submission) -> str:
    return f"{len(submission.queued)} jobs are queued, and sbatch takes no more for now ({submission.limit})"


def submit(jobs: Sequence[Job], config: SlurmConfig) -> Submission:
    """Submit `jobs` to SLURM, one array per geometry, as far as the site's limits allow, and print their ids.

    Those that are already in its queue stay there.
    Raises: ConfigError if a run does not fit the limits of `config`, or sbatch refuses for a reason other than
    the site's limits; in the latter case, arrays of other geometries may have been queued.
    """
    geometries = {id(job): config.geometry(job) for job in jobs}  # all of them, before anything is submitted
    submission = Submission([], [], [])
    if not jobs:
        return submission
    output_dir = Path(jobs[0].run.config.output_dir).absolute()
    # Two sweeps that are started at once must not both find a run missing from the queue.
    with _alone(output_dir):
        queue = read_queue()
        if queue is None:
            raise ConfigError("squeue does not answer, so what is queued already is unknown; try again.")
        cluster = this_cluster()
        remove_snapshots(output_dir, queue, cluster.name)
        groups: dict[tuple[Geometry, str], list[Job]] = defaultdict(list)
        for job in jobs:
            launch = read_launch(job.run.directory)[0]
            if launch and (found := job_of(launch, queue)):
                # Its result belongs to the command that queued it.
                known = replace(job, run=replace(job.run, attempt=str(launch.get("attempt", ""))))
                submission.queued.append(Submitted(known, found.job_id, Path(launch["logs"])))
                print(f"{job.name}: SLURM job {found.job_id}, queued before", file=sys.stderr)
            elif _is_free(job):
                groups[geometries[id(job)], job.study].append(job)
            else:
                submission.busy.append(Ended(job, "skipped", "another process is training it"))
        return _submit_groups(groups, submission, config, output_dir, cluster)


def _alone(output_dir: Path) -> AbstractContextManager[Any]:
    """A lock for one submission below `output_dir` at a time. Raises: ConfigError if that cannot be written."""
    with writable(str(output_dir)):
        output_dir.mkdir(parents=True, exist_ok=True)
        return FileLock(output_dir / ".submit.lock", fallback_to_soft=False).acquire()


def _submit_groups(
    groups: Mapping[tuple[Geometry, str], list[Job]],
    submission: Submission,
    config: SlurmConfig,
    output_dir: Path,
    cluster: Cluster,
) -> Submission:
    limit, left = "", [job for members in groups.values() for job in members]
    packed = {group: _split(members, config.runs_per_node(group[0])) for group, members in groups.items()}
    total = sum(map(len, packed.values()))
    for (geometry, study), packs in packed.items():
        size = cluster.max_array_size
        while packs and size:
            part = packs[:size]
            # The arrays of a sweep share its parallelism in proportion to their sizes.
            limited = replace(config, array_parallelism=max(1, config.array_parallelism * len(part) // total))
            try:
                sent = _submit_array(part, geometry, study, limited, output_dir, cluster)
            except _LimitReached as error:
                limit = str(error)
                size = len(part) // 2
                continue
            submission.queued.extend(sent)
            packs = packs[size:]
            left = [job for job in left if not any(job in pack for pack in part)]
    return replace(submission, left=left, limit=limit if left else "")


def _split(jobs: Sequence[Job], most: int) -> list[Sequence[Job]]:
    """The fewest packs of at most `most` jobs, whose sizes differ by at most one, larger ones first."""
    packs = -(-len(jobs) // most)
    return [jobs[first::packs] for first in range(packs)]


class _LimitReached(Exception):
    """sbatch refused an array because of the site's limits."""


def _is_free(job: Job) -> bool:
    """Whether no other process is training the run. What `rerun` deletes is deleted by the job when it begins."""
    with job.run.lock() as free:
        return free


def _submit_array(
    packs: Sequence[Sequence[Job]],
    geometry: Geometry,
    study: str,
    config: SlurmConfig,
    output_dir: Path,
    cluster: Cluster,
) -> list[Submitted]:
    """Submit an array, each element of which is a pack.

    Raises: _LimitReached, or ConfigError if sbatch refuses for another reason; then no file is changed.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    # In a new folder: job ids start anew on another cluster, and submitit would take old results for new ones.
    submission = f"normlab-{uuid.uuid4().hex[:12]}"
    logs = output_dir / ".slurm" / submission
    try:
        executor = SlurmExecutor(logs, max_num_timeout=config.max_requeues, python=config.python)
    except RuntimeError:
        raise ConfigError(
            "hydra/launcher=slurm finds no srun on this machine; run it on a login node of the cluster, "
            "or set hydra/launcher=local."
        ) from None
    jobs = [job for pack in packs for job in pack]
    with writable(str(output_dir)):
        source = take_snapshot(logs, jobs, cluster.name) if config.snapshot else ROOT
    asked = geometry.of_runs(max(map(len, packs)))
    executor.update_parameters(**config.sbatch_parameters(asked, study, submission, source))
    code = current_code()
    tasks = [task_of(pack, geometry, code, config.max_requeues, cores=asked.cpus_per_task) for pack in packs]
    about = {"submission": submission, "logs": str(logs), "geometry": asdict(asked), "submitted": asdict(code)}
    elements = [(element, job) for element, pack in enumerate(packs) for job in pack]
    notes = [job.run.directory / "launch.json" for _, job in elements]
    before = [note.read_bytes() if note.exists() else None for note in notes]
    # Before sbatch, since this process may be killed after it: submission and element then identify the job.
    for element, job in elements:
        _announce(job, {**about, "job_id": "", "element": element})
        if len(packs[element]) > 1:  # it writes its own log, from the start
            job.run.log_path.unlink(missing_ok=True)
    try:
        # Ctrl-C signals sbatch too, whose job could then be queued without a record of it.
        with outside_any_job(), stop_signals_blocked():
            sent = executor.submit_array(tasks)
    except FailedJobError as error:
        if config.snapshot:
            shutil.rmtree(source)
        for note, held in zip(notes, before, strict=True):
            note.unlink(missing_ok=True) if held is None else note.write_bytes(held)
        words = " ".join(str(error).split())
        if found := _LIMIT.search(words):
            raise _LimitReached(found[0]) from None
        raise ConfigError(f"sbatch refused the jobs: {words}") from None
    for element, job in elements:
        job_id = str(sent[element].job_id)
        _announce(job, {**about, "job_id": job_id, "element": element})
        if len(packs[element]) == 1:
            job.run.log_path.unlink(missing_ok=True)
            job.run.log_path.symlink_to(logs / f"{job_id}_0_log.err")
        print(f"{job.name}: SLURM job {job_id}", file=sys.stderr)
    return [Submitted(job, str(sent[element].job_id), logs) for element, job in elements]


def _announce(job: Job, about: Mapping[str, Any]) -> None:
    """Record in the run's directory which job is to train it."""
    launch = {"launcher": "slurm", "attempt": job.run.attempt, **about}
    announce(job.run, {**launch, "overrides": list(job.overrides), "total_samples": job.total_samples})


@contextmanager
def outside_any_job() -> Iterator[None]:
    """Hide the variables of a surrounding job, which sbatch would pass on to the new ones, and those that would
    overrule what the launcher asks sbatch for.

    submitit's clean_env hides SLURM_CONF and SLURM_JWT as well, which sbatch needs.
    """
    ranks = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    of_a_job = ("SLURM", "SRUN_", "SUBMITIT_")
    hidden = {
        key: value
        for key, value in os.environ.items()
        if (key.startswith(of_a_job) and key not in ("SLURM_CONF", "SLURM_JWT")) or key in (*ranks, *OVERRULING)
    }
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)
