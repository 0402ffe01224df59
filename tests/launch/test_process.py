"""Signals and output of one process."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest

from launch import process
from launch.process import StopSignal, stop_signals_raise
from tests.processes import ROOT


def test_a_signal_that_came_before_the_ranks_joined_counts_inside_too():
    with StopSignal() as early:
        signal.raise_signal(signal.SIGUSR2)
        with StopSignal() as late:
            assert late() == early() == signal.SIGUSR2
        assert early() == signal.SIGUSR2


def test_a_signal_inside_is_not_the_outer_ones_and_the_former_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as early:
        with StopSignal() as late:
            signal.raise_signal(signal.SIGTERM)
            assert late() == signal.SIGTERM
        assert early() == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def handler_of():
    """Sets the handler of a signal, for the test."""
    former = {number: signal.getsignal(number) for number in process.STOP_SIGNALS}
    yield signal.signal
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("ignored", [True, False], ids=["nohup", "a closed terminal"])
def test_a_hangup_is_a_stop_signal_unless_it_is_to_be_ignored(ignored, handler_of):
    handler_of(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    with StopSignal() as stop_signal:
        signal.raise_signal(signal.SIGHUP)
        assert stop_signal() == (0 if ignored else signal.SIGHUP)


class Told(Exception):
    pass


def test_a_second_stop_signal_is_not_waited_with_but_a_repeated_one_is_one(handler_of, monkeypatch):
    ended: list[int] = []
    handler_of(signal.SIGTERM, lambda number, frame: ended.append(number))
    monkeypatch.setattr(process, "REPEATED_WITHIN_S", math.inf)  # however long this process is made to wait
    with stop_signals_raise(Told):
        with pytest.raises(Told):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # `timeout` signals its child, and then the whole group
        assert ended == []
        monkeypatch.setattr(process, "REPEATED_WITHIN_S", 0.0)
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM]


TALKATIVE = """
from launch.process import begin_command
begin_command()
import os, sys
for number in range(10_000):
    print("line", number)
    print("line", number, file=sys.stderr, flush=True)
os.write(2, b"from a library")
with open("kept", "w") as file:  # takes no closed descriptor's place
    file.write("whole")
sys.exit(7)
"""


@pytest.mark.parametrize("ends", ["|& head -1", ">&- 2>&-", ">/dev/full 2>&1"])
def test_output_that_cannot_be_written_ends_nothing(ends, tmp_path):
    script = tmp_path / "talkative.py"
    script.write_text(TALKATIVE)
    command = f"{sys.executable} {script} {ends}; exit ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True).returncode == 7
    assert (tmp_path / "kept").read_text() == "whole"


def test_what_is_printed_is_out_at_once_also_without_pythons_buffers():
    code = "from launch.process import outlive_output; outlive_output(); print('said'); import os; os._exit(0)"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).stdout == b"said\n"


def test_a_second_signal_ends_who_waits_for_jobs_that_hang(handler_of, monkeypatch):
    ended: list[int] = []
    handler_of(signal.SIGTERM, lambda number, frame: ended.append(number))
    monkeypatch.setattr(process, "REPEATED_WITHIN_S", math.inf)
    with StopSignal(second_ends=True) as stop_signal:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # one order that came twice
        assert (stop_signal(), ended) == (signal.SIGTERM, [])
        monkeypatch.setattr(process, "REPEATED_WITHIN_S", 0.0)
        signal.raise_signal(signal.SIGTERM)
        assert ended == [signal.SIGTERM]


START_SERVER = """
import json, multiprocessing.forkserver, os, tempfile
from launch import local
local._start_fork_server()
address = multiprocessing.forkserver._forkserver._forkserver_address
print(json.dumps([tempfile.gettempdir(), os.path.exists(address)]))
"""


def test_a_tmpdir_too_long_for_a_socket_gives_way_for_it_alone(tmp_path):
    tmpdir = tmp_path / ("long" * 30)
    tmpdir.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmpdir)}
    done = subprocess.run([sys.executable, "-c", START_SERVER], env=env, capture_output=True, text=True)
    assert json.loads(done.stdout or "null") == [str(tmpdir), True], done.stderr
