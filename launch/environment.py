"""Whether torchrun or SLURM started this process as a rank of a job; its threads and memory. No torch."""

import ctypes
import os
import re
import sys
from collections.abc import Mapping

from normlab.config import ConfigError

SlurmEnvironment = Mapping[str, str]

SPIN_COUNT = 5000
"""Rounds that a waiting OpenMP thread spins before it sleeps: some tenths of a millisecond."""


def spin_briefly() -> None:
    """Have waiting threads sleep soon, unless the user says otherwise. Call before importing torch.

    By default they spin for 300,000 rounds at each operation. If other processes use the cores too, that takes
    time from the very thread that they wait for. No result depends on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


KEPT_BYTES = 1 << 30
"""Freed memory that a rank keeps for its next step."""

LARGEST_KEPT_BYTES = 32 << 20
"""The largest block that is kept: the most that every glibc accepts."""


def keep_freed_memory() -> None:
    """Have glibc keep what a training step frees for the next one, unless the user has set its allocator.

    By default it returns the step's activations to the kernel, which has to clear the same pages again for the
    next step. No result depends on it.
    """
    chosen = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name in os.environ for name in chosen):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, LARGEST_KEPT_BYTES)
        mallopt(trim_threshold, KEPT_BYTES)


def training_command(starter: str = "") -> str:
    """The user's command for train.py, or for the installed equivalent: alone, or under torchrun as `starter`."""
    if sys.argv[0].endswith(".py"):
        return f"{starter or 'python'} {sys.argv[0]}"
    return f"{starter} -m launch train" if starter else sys.argv[0]


def rank_environment(env: Mapping[str, str]) -> dict[str, str] | None:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; None outside a job.

    A process is a rank if RANK, WORLD_SIZE and MASTER_ADDR are set (torchrun), or if it is one of several tasks of
    a SLURM step (SLURM_NTASKS alone proves nothing: a batch script has it without ranks) or of submitit's local
    executor.
    """
    if all(key in env for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        keys = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return {key: env[key] for key in keys if key in env}
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return {
            "RANK": env["SLURM_PROCID"],
            "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": env["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(_tasks_on_this_node(env)),
            "MASTER_ADDR": env.get("MASTER_ADDR") or _first_host(env["SLURM_STEP_NODELIST"]),
            # Steps of one job may run side by side, so the port depends on both numbers.
            "MASTER_PORT": env.get("MASTER_PORT")
            or _port(int(env["SLURM_JOB_ID"]) * 7 + int(env["SLURM_STEP_ID"])),
        }
    if int(env.get("SUBMITIT_LOCAL_NTASKS", 1)) > 1:  # submitit's local executor: tasks on this machine
        return {
            "RANK": env["SUBMITIT_LOCAL_GLOBALID"],
            "WORLD_SIZE": env["SUBMITIT_LOCAL_NTASKS"],
            "LOCAL_RANK": env["SUBMITIT_LOCAL_LOCALID"],
            "LOCAL_WORLD_SIZE": env["SUBMITIT_LOCAL_NTASKS"],
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": _port(int(env["SUBMITIT_LOCAL_JOB_ID"])),
        }
    return None


def _port(number: int) -> str:
    """A port for ranks to meet at, below those that Linux gives to outgoing connections (32768 and more)."""
    return str(20000 + number % 12000)


def _tasks_on_this_node(env: SlurmEnvironment) -> int:
    """SLURM_STEP_TASKS_PER_NODE is run-length coded: "2(x3),1" is 2, 2, 2, 1."""
    tasks: list[int] = []
    for part in env["SLURM_STEP_TASKS_PER_NODE"].split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        assert match, part
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks[int(env["SLURM_NODEID"])]


def _first_host(nodelist: str) -> str:
    """The first host of a compressed list such as "gpu[03-07,9]". A container may have no scontrol to ask."""
    first = re.split(r",(?![^\[]*\])", nodelist)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def choose_world_size(asked: int | None, environment: Mapping[str, str] | None) -> int:
    """The number of ranks: what the job has, else what was asked for, else 1.

    Raises: ConfigError if the two contradict each other.
    """
    if environment is None:
        return asked or 1
    found = int(environment["WORLD_SIZE"])
    if asked is not None and asked != found:
        raise ConfigError(
            f"world_size={asked} contradicts the {found} ranks that this job has; "
            f"leave world_size out, or start {asked} ranks."
        )
    return found
