"""Which jobs of a sweep fit side by side on this machine: on its cores, or on its GPUs."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from launch.jobs import Job


@dataclass(frozen=True)
class Share:
    """A job's share of the machine while it runs."""

    threads: int
    """Threads per rank."""

    cores: int = 0
    gpus: tuple[str, ...] = ()

    @property
    def cuda_visible_devices(self) -> str | None:
        """None: the job sees the same GPUs as this process; a job on the CPU may still ask for device=cuda."""
        return ",".join(self.gpus) or None


class Machine:
    """Cores and GPUs, which jobs take and give back.

    A rank on the CPU takes as many cores as it has threads: `threads` if that is set, else an even share of the
    cores among all ranks of the sweep, but at least one. Skipped jobs count too, so that a sweep that is started
    again resumes its runs with the same threads. A rank on CUDA takes a GPU, which `jobs_per_gpu` jobs may share.
    At least one job always runs, however large.
    """

    def __init__(self, *, cores: int, gpus: Sequence[str], jobs_per_gpu: int, ranks: int) -> None:
        self._cores = self._free = cores
        self._jobs_on = Counter(dict.fromkeys(gpus, 0))
        self._jobs_per_gpu = jobs_per_gpu
        self._threads = max(1, cores // ranks)
        self._threads_on_gpu = max(1, cores // max(1, min(ranks, len(gpus) * jobs_per_gpu)))

    @classmethod
    def here(cls, jobs: Sequence[Job], jobs_per_gpu: int, cores: int | None = None) -> "Machine":
        """This machine, or `cores` of it, for `jobs`.

        Raises: ConfigError if one of them asks for GPUs that are not here.
        """
        import torch

        from normlab.devices import choose_device, fallback_note
        from normlab.distributed import available_cores

        asked = {(job.run.config.device, world_size(job)) for job in jobs}
        for device, ranks in sorted(asked, key=lambda one: one[1]):
            if note := fallback_note(device, choose_device(device, ranks), ranks):
                print(note, file=sys.stderr)
        seen = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        gpus = seen or [str(index) for index in range(torch.cuda.device_count())]
        return cls(
            cores=cores or available_cores(),
            gpus=gpus[: torch.cuda.device_count()],
            jobs_per_gpu=jobs_per_gpu,
            ranks=sum(map(world_size, jobs)),
        )

    def take(self, job: Job) -> Share | None:
        """The job's share, until it is given back; None while it does not fit."""
        ranks = world_size(job)
        # Like devices.choose_device: auto ignores the GPUs if there are fewer than ranks.
        if job.run.config.device.value != "cpu" and ranks <= len(self._jobs_on):
            open_gpus = [gpu for gpu, jobs in self._jobs_on.items() if jobs < self._jobs_per_gpu]
            if len(open_gpus) < ranks:
                return None
            gpus = tuple(sorted(open_gpus, key=lambda gpu: self._jobs_on[gpu])[:ranks])
            self._jobs_on.update(gpus)
            return Share(job.run.config.threads or self._threads_on_gpu, gpus=gpus)
        threads = job.run.config.threads or self._threads
        cores = ranks * threads
        if cores > self._free and self._free < self._cores:
            return None
        self._free -= cores
        return Share(threads, cores=cores)

    def give_back(self, share: Share) -> None:
        self._free += share.cores
        self._jobs_on.subtract(share.gpus)


def world_size(job: Job) -> int:
    ranks = job.run.config.world_size
    assert ranks is not None
    return ranks
