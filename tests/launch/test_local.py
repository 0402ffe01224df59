"""Ranks are waited for, and ended, together."""

import multiprocessing
import os
import signal
import time

import pytest

from launch import local, sweep
from launch.local import _end, _first_to_fail
from launch.packing import Share
from launch.process import StopSignal
from tests.slurm.sweeps import job

FORKSERVER = multiprocessing.get_context("forkserver")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def start():
    started = []

    def start(target, *args):
        process = FORK.Process(target=target, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def _ended(process):
    process.join()
    return process


def test_ranks_that_leave_one_after_another_have_not_failed(start):
    assert _first_to_fail([start(os._exit, 0), start(time.sleep, 0.3), _ended(start(os._exit, 0))]) is None


@pytest.mark.parametrize(("other", "first"), [(0, 1), (1, 1), (None, 1)])
def test_a_rank_that_is_killed_is_the_cause_though_others_fail_of_it_or_have_left_or_go_on(other, first, start):
    left = start(time.sleep, 1000) if other is None else _ended(start(os._exit, other))
    killed = _ended(start(signal.raise_signal, signal.SIGKILL))
    assert _first_to_fail([left, killed]) == first


def test_the_first_of_several_that_fail_speaks_for_them(start):
    assert _first_to_fail([_ended(start(os._exit, 0)), *(_ended(start(os._exit, 2)) for _ in range(2))]) == 1


def _deaf(pipe):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.send("deaf")
    time.sleep(1000)


def test_ranks_that_do_not_leave_in_time_are_killed_and_none_is_left(start):
    here, there = FORK.Pipe()
    ranks = [start(time.sleep, 1000), _ended(start(os._exit, 3)), start(_deaf, there), FORK.Process(target=_deaf)]
    here.recv()
    _end(ranks, signal.SIGTERM, 1.0)
    assert [rank.exitcode for rank in ranks] == [-signal.SIGTERM, 3, -signal.SIGKILL, None]


class Standin:
    """In the place of a process, whose start a stop signal falls into."""

    def __init__(self, **_):
        self.pid = None

    def start(self):
        self.pid = 1
        signal.raise_signal(signal.SIGTERM)


def test_a_stop_signal_while_ranks_are_started_is_passed_on_to_all_of_them(tmp_path, monkeypatch):
    two = job(tmp_path, "seed=0", world_size=2)
    told = []
    monkeypatch.setattr(FORKSERVER, "Process", Standin)
    monkeypatch.setattr(local, "_end", lambda ranks, number, within_s: told.extend((r.pid, number) for r in ranks))
    assert local.start_ranks(two.run.config, two.study, two.run) == 128 + signal.SIGTERM
    assert told == [(1, signal.SIGTERM)] * 2


def test_a_job_does_not_write_to_the_log_of_an_earlier_slurm_job_which_may_be_gone(tmp_path, monkeypatch):
    one = job(tmp_path, "seed=0")
    one.run.directory.mkdir(parents=True)
    one.run.log_path.symlink_to("/gone/71_0_0_log.err")
    monkeypatch.setattr(FORKSERVER, "Process", Standin)
    with StopSignal():
        sweep.start(one, Share(threads=1))
    assert not one.run.log_path.is_symlink()
