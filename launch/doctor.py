"""What a SLURM site offers, found out before the first sweep.

python -m launch.doctor partition=gpu account=vision gpus_per_node=8

It takes the keys of hydra.launcher, without that prefix. It looks at this machine, submits one job of two ranks,
on two nodes if it can have them, and prints what it found. Exit code 1 if something is missing that a sweep needs.
"""

import argparse
import fcntl
import getpass
import json
import math
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from launch.cluster import this_cluster
from launch.environment import rank_environment
from launch.geometry import Geometry
from launch.process import USER_ERROR, StopSignal, stop_signals_blocked
from launch.slurm import outside_any_job
from launch.slurm_config import SlurmConfig
from launch.slurm_wait import GRACE_S, last_words
from normlab.atomic import atomic_write
from normlab.config import ConfigError
from normlab.console import plain_console
from normlab.run import writable
from normlab.run_files import parse_yaml, read_object
from normlab.squeue import read_queue

COMMANDS = ("sbatch", "squeue", "srun", "scontrol", "scancel")
MESSAGES = 50
"""All-reduces whose median time is reported."""
SIOCGIFADDR = 0x8915
"""Linux: the address of a network interface."""


@dataclass(frozen=True)
class Finding:
    holds: bool | None
    """None: neither good nor bad, or unknown."""
    text: str


def on_this_machine(output_dir: Path) -> Iterator[Finding]:
    """Findings on the login node."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    yield Finding(not missing, f"commands: {', '.join(missing)} not found" if missing else "commands: all found")
    if missing:
        return
    told = _answer("sbatch", "--version")
    yield Finding(bool(told), f"{told or 'sbatch does not answer'}, submitit {version('submitit')}")
    queue = read_queue()
    told = "squeue does not answer" if queue is None else f"squeue answers; {len(queue)} jobs of yours are queued"
    yield Finding(queue is not None, told)
    partitions = ", ".join(_answer("sinfo", "--noheader", "--format=%P up to %l, %D nodes").splitlines())
    yield Finding(None, f"partitions: {partitions or 'sinfo does not answer'}")
    yield Finding(None, f"arrays of up to {this_cluster().max_array_size} jobs")
    limits = "format=Account%20,QOS%20,MaxJobs,MaxSubmit,MaxWall"
    accounts = _answer(
        "sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={getpass.getuser()}", limits
    )
    shown = "; ".join(line for line in accounts.splitlines() if line.strip("|"))
    yield Finding(None, f"account|QOS|MaxJobs|MaxSubmit|MaxWall: {shown or 'no accounting, or no limits'}")
    yield _flock_here(output_dir)
    overruling = sorted(key for key in os.environ if key.startswith("SBATCH_"))
    if overruling:
        yield Finding(None, f"sbatch also takes {', '.join(overruling)} from the environment")


def in_a_job(config: SlurmConfig, output_dir: Path) -> Iterator[Finding]:
    """Findings of two ranks of a job, on two nodes or on one.

    A stop signal ends the job too.
    Raises: ConfigError if sbatch refuses it, or output_dir cannot be written; SystemExit for a stop signal.
    """
    with StopSignal(second_ends=True) as stop_signal:
        yield from _findings_of_job(config, output_dir, stop_signal)


def _findings_of_job(config: SlurmConfig, output_dir: Path, stop_signal: StopSignal) -> Iterator[Finding]:
    folder = output_dir / ".slurm" / f"doctor-{uuid.uuid4().hex[:8]}"
    with writable(str(output_dir)):
        folder.mkdir(parents=True)
    job_id, nodes, refused = _submit_hello(config, folder)
    where = "two nodes" if nodes == 2 else f"one node, since two were refused ({refused})"
    yield Finding(None, f"job {job_id} of two ranks on {where}")
    pending, gone_at = "", math.inf
    while len(found := _reports(folder)) < 2 and time.monotonic() < gone_at + GRACE_S:
        queue = read_queue()
        job = None if queue is None else queue.get(job_id)
        if job and job.state == "PENDING" and job.reason not in ("None", pending):
            pending = job.reason
            yield Finding(None, f"job {job_id} is pending: {pending}")
        if queue is not None and job is None:
            gone_at = min(gone_at, time.monotonic())
        if stop_signal():
            _answer("scancel", job_id)
            print(f"job {job_id} is cancelled; its logs: {folder}", file=sys.stderr)
            raise SystemExit(128 + stop_signal())
        time.sleep(min(1.0, config.poll_s))
    if len(found) < 2:
        yield Finding(False, f"job {job_id} ended early: {last_words(folder, job_id)}; its logs: {folder}")
        return
    yield from _judge(found, nodes)
    leaves_by = time.monotonic() + GRACE_S  # until then its tasks still write logs there
    while job_id in (read_queue() or {}) and time.monotonic() < leaves_by:
        time.sleep(min(1.0, config.poll_s))
    shutil.rmtree(folder, ignore_errors=True)


def _reports(folder: Path) -> list[dict[str, Any]]:
    return [found for rank in (0, 1) if (found := read_object(folder / f"rank{rank}.json")[0])]


def _submit_hello(config: SlurmConfig, folder: Path) -> tuple[str, int, str]:
    """(the job's id, its nodes, why they are not two)."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    refused = ""
    for nodes in (2, 1):
        gpus = min(config.gpus_per_node, 2 // nodes)
        geometry = Geometry(nodes, 2 // nodes, gpus, config.cpus_per_task)
        executor = SlurmExecutor(folder, python=config.python)
        executor.update_parameters(**config.sbatch_parameters(geometry, "normlab-doctor", folder.name))
        try:
            with outside_any_job(), stop_signals_blocked():  # Ctrl-C signals sbatch too
                sent = executor.submit(Hello(folder, gpus > 0))
        except FailedJobError as error:
            refused = " ".join(str(error).split())
            continue
        return str(sent.job_id), nodes, refused
    raise ConfigError(f"sbatch refused a job of two ranks: {refused}")


def _judge(found: Sequence[dict[str, Any]], nodes: int) -> Iterator[Finding]:
    first, second = found
    hosts = " and ".join(dict.fromkeys(one["host"] for one in found))
    yield Finding(True, f"the ranks ran on {hosts}, and wrote to output_dir")
    same = first["torch"] == second["torch"] and first["python"] == second["python"]
    both = f"{first['python']}, torch {first['torch']}"
    yield Finding(same, both if same else f"ranks differ: {both}; {second['python']}, torch {second['torch']}")
    yield Finding(True, f"{first['backend']} all-reduce: {first['message_ms']:.2f} ms over {MESSAGES}")
    for one in found:
        yield Finding(
            None, f"{one['host']}: {one['cpus']} cores, {one['gpus']} GPUs, {', '.join(one['interfaces'])}"
        )
    between = "between nodes" if nodes == 2 else "between processes of one node; nodes are untested"
    told = f"a lock (flock) of rank 0 is respected by rank 1 {between}"
    yield Finding(second["flock"], told if second["flock"] else told.replace("is respected", "is not respected"))


@dataclass(frozen=True)
class Hello:
    """The task of each of the two ranks; writes rank<r>.json."""

    folder: Path
    on_gpus: bool

    def __call__(self) -> None:
        os.environ.update(rank_environment(os.environ) or {})
        import torch
        import torch.distributed as dist

        rank = int(os.environ["RANK"])
        device = torch.device("cpu")
        if self.on_gpus:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
            torch.cuda.set_device(device)
        backend = "nccl" if self.on_gpus else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=2))
        took_s = []
        for _ in range(MESSAGES):
            began = time.perf_counter()
            total = torch.ones(1, device=device)
            dist.all_reduce(total)
            assert total.item() == 2, total
            took_s.append(time.perf_counter() - began)
        found = {
            "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
            "python": f"Python {platform.python_version()} ({sys.executable})",
            "torch": torch.__version__,
            "backend": backend,
            "message_ms": 1000 * median(took_s),
            "cpus": len(os.sched_getaffinity(0)),
            "gpus": torch.cuda.device_count(),
            "interfaces": interfaces(),
            "flock": self._lock_is_respected(rank, dist.barrier),
        }
        with atomic_write(self.folder / f"rank{rank}.json") as file:
            json.dump(found, file)
        dist.destroy_process_group()

    def _lock_is_respected(self, rank: int, barrier: Callable[[], object]) -> bool:
        """Rank 0 holds a lock, and rank 1 can have it only after that."""
        lock = FileLock(self.folder / "lock", timeout=0, fallback_to_soft=False)
        if rank == 0:
            lock.acquire()
        barrier()
        free_too_early = rank == 1 and _try(lock)
        barrier()
        lock.release()
        barrier()
        return rank == 0 or (not free_too_early and _try(lock))


def _try(lock: FileLock) -> bool:
    try:
        lock.acquire()
    except Timeout:
        return False
    lock.release()
    return True


def interfaces() -> list[str]:
    """The network interfaces of this machine with their IPv4 addresses: "ib0 10.0.0.7"."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
                found.append(f"{name} {socket.inet_ntoa(answer[20:24])}")
    return found


def _flock_here(output_dir: Path) -> Finding:
    lock = FileLock(output_dir / f".doctor-{uuid.uuid4().hex[:8]}.lock", timeout=0, fallback_to_soft=False)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with lock:
            pass
        Path(lock.lock_file).unlink(missing_ok=True)
    except (OSError, NotImplementedError) as error:
        return Finding(False, f"{output_dir.absolute()} cannot be written and locked ({error})")
    return Finding(True, f"{output_dir.absolute()} can be written and locked (flock)")


def _answer(*command: str) -> str:
    """What a SLURM command prints; empty if it fails."""
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def _settings(words: Sequence[str]) -> SlurmConfig:
    """Raises: ConfigError for a word that is not a key of hydra.launcher with a valid value."""
    known = {spec.name for spec in fields(SlurmConfig)}
    given = {}
    for word in words:
        key, is_one, value = word.removeprefix("hydra.launcher.").partition("=")
        if not is_one or key not in known:
            raise ConfigError(f"{word} is no key=value of hydra.launcher; docs/slurm.md lists its keys.")
        try:
            given[key] = parse_yaml(value)
            OmegaConf.merge(SlurmConfig, given)
        except (ValueError, YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"hydra.launcher.{key}={value}: {str(error).splitlines()[0]}") from None
    settings: SlurmConfig = OmegaConf.to_object(OmegaConf.merge(SlurmConfig, given))  # type: ignore[assignment]
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m launch.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="partition=gpu: as for hydra.launcher")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs"), help="where sweeps will write; default: runs"
    )
    args = parser.parse_args()
    console = plain_console(soft_wrap=True)
    marks = {True: ("ok ", "green"), False: ("BAD", "red"), None: ("   ", "")}

    def show(findings: Iterator[Finding]) -> int:
        bad = 0
        for finding in findings:
            mark, style = marks[finding.holds]
            console.print(mark, style=style, end=" ")
            console.print(finding.text)
            bad += finding.holds is False
        return bad

    try:
        config = _settings(args.settings)
        bad = show(on_this_machine(args.output_dir)) or show(in_a_job(config, args.output_dir.absolute()))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    print(f"{bad} of these a sweep needs; docs/slurm.md says why" if bad else "a sweep can run here")
    sys.exit(min(bad, 1))


if __name__ == "__main__":
    main()
