"""SLURM's queue, and which of its jobs trains which run. Needs no accounting. Imports no torch.

A run that was submitted has a launch.json: {"launcher": "slurm", "job_id": "123_4", "submission": "...",
"element": 4, ...}. Job ids start anew on another cluster, so the submission's name, which its jobs carry as their
comment, has to agree as well. If a submission was cut off, its runs have no job id, and their jobs are found by
submission and element.
"""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class QueuedJob:
    job_id: str
    """As squeue prints it: 123, or 123_4 for an element of an array."""
    state: str
    """PENDING, RUNNING, COMPLETING, ..."""
    reason: str
    """Why it is not running: Resources, Priority, BeginTime, JobHeldUser, ..."""
    comment: str

    @property
    def element(self) -> int:
        """Its index in its array; 0 if it is a single job."""
        return int(self.job_id.partition("_")[2] or 0)


Queue = Mapping[str, QueuedJob]
"""Pending and running jobs of this user, by job id."""


def read_queue() -> Queue | None:
    """This user's jobs that have not ended; None if squeue does not answer just now.

    Empty if this machine has no squeue.
    """
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%k"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    if listed.returncode:
        return None
    jobs = (QueuedJob(*line.split("|", 3)) for line in listed.stdout.splitlines() if line.count("|") >= 3)
    return {job.job_id: job for job in jobs}


def job_of(launch: Mapping[str, Any] | None, queue: Queue) -> QueuedJob | None:
    """The job that a run's launch.json names, if it is still in the queue."""
    if not launch or launch.get("launcher") != "slurm":
        return None
    if launch["job_id"]:
        job = queue.get(launch["job_id"])
        return job if job and job.comment == launch["submission"] else None
    place = (launch["submission"], launch.get("element"))
    return next((job for job in queue.values() if (job.comment, job.element) == place), None)
