"""Start a job's ranks on this machine, and end them together."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from launch.environment import spin_briefly
from launch.process import (
    USER_ERROR,
    StopSignal,
    Surroundings,
    end_with_parent,
    stop_signals_blocked,
    stop_signals_raise,
)
from normlab.config import Config, ConfigError
from normlab.run import Run

ROOT = str(Path(__file__).parents[1])
LONGEST_TMPDIR = 103 - len("/pymp-12345678/listener-12345678")
"""The path of a socket has at most 103 characters (macOS; Linux: 107)."""

LEAVE_WITHIN_S = 3600
"""How long ranks that were told to stop may take for their step and their checkpoint."""

FOLLOW_WITHIN_S = 30
"""How long ranks may take to leave once another has failed."""


def preload() -> None:
    """Start the fork server, which imports torch and from which the ranks will be forked.

    Called early, it imports while this process goes on, and ranks start without an import of their own.
    Raises: ConfigError if its socket cannot be made.
    """
    spin_briefly()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.set_forkserver_preload(["launch.fork_server"])
    # The server of Python 3.11 looks only in its working folder, and ignores modules that are not there.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = ROOT + (os.pathsep + path if path else "")
    try:
        _start_fork_server()
    except OSError as error:
        raise ConfigError(
            f"TMPDIR={tempfile.gettempdir()}: ranks need a socket there ({error.strerror or error}); "
            "set TMPDIR to a folder with a short path that can be written, such as /tmp."
        ) from None
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def _start_fork_server() -> None:
    former = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST_TMPDIR:
        tempfile.tempdir = "/tmp"
    try:
        with stop_signals_blocked():
            multiprocessing.resource_tracker.ensure_running()  # this unblocks SIGINT and SIGTERM in this process
        with stop_signals_blocked():  # until the server runs, since it removes the socket's folder
            multiprocessing.forkserver.ensure_running()
    finally:
        tempfile.tempdir = former
    # From Python 3.14 on, the server asks for a key. Children do not learn it, but they learn their parent's.
    if key := getattr(multiprocessing.forkserver._forkserver, "_forkserver_authkey", None):
        multiprocessing.current_process().authkey = key


def run_job(cfg: Config, study: str, run: Run, surroundings: Surroundings) -> None:
    """Run a sweep's job, in a process forked from the fork server. Its exit code says how it ended.

    A single rank is trained in this process; several are started from it.
    """
    os.setsid()  # the sweep passes Ctrl-C on, so the terminal must not
    end_with_parent()
    try:
        surroundings.enter()
    except OSError as error:
        print(f"error: {surroundings.log} cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(USER_ERROR)
    from launch.rank import run_rank

    if cfg.world_size == 1:
        sys.exit(run_rank(cfg, study, run))
    _reuse_fork_server()
    sys.exit(start_ranks(cfg, study, run, surroundings))


def _reuse_fork_server() -> None:
    """Fork this job's ranks from the server that it was itself forked from, which has torch imported.

    Python documents that a child reuses its parent's server. But 3.11 to 3.14 start another one, without preload,
    since a child learns only the server's address, not its process id or key (see `_start_fork_server`).
    """
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_address is not None:
        if sys.version_info >= (3, 14):
            server._forkserver_authkey = bytes(multiprocessing.current_process().authkey)
        server.ensure_running = lambda: None


def start_ranks(cfg: Config, study: str, run: Run, surroundings: Surroundings | None = None) -> int:
    """Train `run` on world_size ranks of this machine. Returns the exit code of the job.

    A stop signal is passed on to the ranks, which save and leave; then this process leaves with 128 + the signal.
    A second signal ends everything at once, even ranks that hang in a collective. If a rank dies, the others are
    ended, and its error is shown with its rank.
    """
    from torch.distributed import TCPStore

    from launch.rank import run_started_rank

    assert cfg.world_size is not None
    # In this process, not in rank 0, so that its port is known before any rank starts, and no rank outlives it.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    ranks = [
        context.Process(
            target=run_started_rank,
            args=(
                _rank_environment(rank, cfg.world_size, store.port),
                cfg,
                study,
                run,
                surroundings or Surroundings(),
            ),
        )
        for rank in range(cfg.world_size)
    ]
    with stop_signals_raise(_Stopped):
        try:
            with StopSignal() as early:  # the ranks would wait for one that never starts, ignoring signals
                for process in ranks:
                    process.start()
            if early():
                raise _Stopped(signal.Signals(early()))
            failed = _first_to_fail(ranks)
            if failed is not None:
                _end(ranks, signal.SIGTERM, FOLLOW_WITHIN_S)
        except _Stopped as stopped:
            _end(ranks, stopped.signal, LEAVE_WITHIN_S)
            return 128 + stopped.signal
    if failed is None:
        return 0
    code = ranks[failed].exitcode
    assert code is not None
    if code < 0:
        cause = f"rank {failed} was killed by {signal.Signals(-code).name}"
        print(f"error: {cause}", file=sys.stderr)
        _record(run, cause)
        return 1
    if code == 1:
        print(f"error: rank {failed} failed; see its error above", file=sys.stderr)
    return code


class _Stopped(Exception):
    def __init__(self, number: signal.Signals) -> None:
        self.signal = number


def _rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The variables that torchrun would set for a rank, so that it joins in the same way."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # even rank 0 uses its parent's store
    }


def _first_to_fail(ranks: Sequence[BaseProcess]) -> int | None:
    """Wait until all ranks have left or one has failed. Returns its rank; of several, a killed one's."""
    running = dict(enumerate(ranks))
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running.values()])
        codes = {rank: process.exitcode for rank, process in running.items() if process.exitcode is not None}
        if failed := {rank: code for rank, code in codes.items() if code != 0}:
            return min(failed, key=lambda rank: (failed[rank] > 0, rank))
        running = {rank: process for rank, process in running.items() if rank not in codes}
    return None


def _end(ranks: Sequence[BaseProcess], number: signal.Signals, within_s: float) -> None:
    """Send the signal to the remaining ranks, and SIGKILL to those that are still there after `within_s`."""
    started = [process for process in ranks if process.pid is not None]
    for process in started:
        assert process.pid is not None
        if process.exitcode is None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
    deadline = time.monotonic() + within_s
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _record(run: Run, cause: str) -> None:
    """Write result.json on behalf of a rank that could not, unless another process is training the run by now."""
    with suppress(ConfigError), run.lock() as free:
        if free:
            run.fail(cause, "", overrule=True)
