"""A sweep on this machine: its jobs side by side, each in a process forked with torch already imported."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from launch import local
from launch.jobs import (
    Ended,
    Job,
    announce,
    ended_well,
    interrupted,
    job_returns,
    plan_jobs,
    record_ended,
    to_train,
)
from launch.packing import Machine, Share, world_size
from launch.process import RUN_IS_BUSY, StopSignal, Surroundings
from launch.table import SweepView
from normlab.run_state import began_at

LOOK_EVERY_S = 0.25


def sweep(
    master_config: DictConfig,
    config_loader: ConfigLoader,
    sweep_overrides: Sequence[Sequence[str]],
    *,
    jobs_per_gpu: int,
    retry_failed: bool,
) -> list[JobReturn]:
    """Plan the jobs, train those that are left, and return each one's value to the sweeper.

    A stop signal is passed on to every job, once; when all have saved and left, so does this process, with 128
    + the signal. A second one ends this process, and its jobs with it.
    Raises: ConfigError before any job is started.
    """
    local.preload()
    jobs = plan_jobs(master_config, config_loader, sweep_overrides)
    machine = Machine.here(jobs, jobs_per_gpu)
    left, skipped = to_train(jobs, retry_failed=retry_failed)
    pid = os.getpid()
    here = {"launcher": "local", "host": socket.gethostname(), "pid": pid, "began": began_at(pid)}
    for job in left:
        announce(job.run, {**here, "overrides": job.overrides, "total_samples": job.total_samples})
    with StopSignal(second_ends=True) as stop_signal, SweepView(jobs) as view:
        for ended in skipped:
            view.end(ended)
        trained = run_jobs(left, machine, view, stop_signal)
        stopped = stop_signal()
    record_ended([*skipped, *trained])
    if stopped:
        raise SystemExit(128 + stopped)
    return job_returns(jobs)


@dataclass
class Running:
    job: Job
    share: Share
    process: ForkServerProcess


def run_jobs(
    jobs: Sequence[Job], machine: Machine, view: SweepView, stop_signal: Callable[[], int]
) -> list[Ended]:
    """Train all jobs, as many at once as fit on the machine; none is begun after a stop signal."""
    # Jobs of many ranks first: at the end, they would wait behind small ones and leave cores idle.
    waiting = sorted(jobs, key=lambda job: -world_size(job))
    running: list[Running] = []
    ended: list[Ended] = []
    told = False
    while running or (waiting and not stop_signal()):
        if stop_signal() and not told:
            told = True
            for one in running:
                tell(one.process, stop_signal())
        for job in [] if stop_signal() else list(waiting):
            if share := machine.take(job):
                waiting.remove(job)
                running.append(Running(job, share, start(job, share)))
                view.begin(job)
        view.update()
        wait([one.process.sentinel for one in running], timeout=LOOK_EVERY_S)
        for one in [one for one in running if not one.process.is_alive()]:
            running.remove(one)
            machine.give_back(one.share)
            ended.append(how_it_ended(one.job, one.process.exitcode or 0, stop_signal()))
            view.end(ended[-1])
    return [*ended, *(Ended(job, "stopped", "not begun") for job in waiting)]


def start(job: Job, share: Share) -> ForkServerProcess:
    """Begin a job in a process of its own, forked from the fork server; its output goes to log.txt."""
    run = replace(job.run, config=replace(job.run.config, threads=share.threads))
    if job.run.log_path.is_symlink():  # to the log of an earlier SLURM job, which may be gone
        job.run.log_path.unlink()
    surroundings = Surroundings(job.run.log_path.absolute(), share.cuda_visible_devices)
    process = multiprocessing.get_context("forkserver").Process(
        target=local.run_job, args=(run.config, job.study, run, surroundings), name=job.name
    )
    process.start()
    return process


def tell(process: ForkServerProcess, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid or 0, number)


def how_it_ended(job: Job, code: int, stop_signal: int) -> Ended:
    """How a job ended, from its exit code and its files."""
    result = job.run.result()
    if code == RUN_IS_BUSY:
        return Ended(job, "skipped", "another process is training it")
    if ended := ended_well(job, result):  # even if it was killed while leaving
        return ended
    # Checked before failures: a job that was stopped or killed early still has an earlier attempt's failure.
    if code > 128 or (stop_signal and (code < 0 or not result)):
        return interrupted(job)
    if code < 0:
        return Ended(job, "failed", f"killed by {signal.Signals(-code).name}")
    if result:
        return Ended(job, "failed", last_line(str(result.get("error", ""))))
    try:
        log = job.run.log_path.read_text(errors="replace")
    except OSError as error:
        return Ended(job, "failed", f"its log cannot be read ({error.strerror})")
    return Ended(job, "failed", last_line(log))


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
