"""Start a job's ranks on this machine, in the same way torchrun does: torch elastic."""

import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import sys
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from launch.environment import spin_briefly
from launch.process import (
    USER_ERROR,
    Surroundings,
    end_with_parent,
    stop_signals_blocked,
    stop_signals_raise,
)
from normlab.config import Config, ConfigError
from normlab.run import Run

ROOT = str(Path(__file__).parents[1])
LONGEST_TMPDIR = 103 - len("/pymp-12345678/listener-12345678")
"""A socket's path has room for 103 characters (macOS; Linux: 107)."""

LEAVE_WITHIN_S = 3600
"""How long ranks that were told to stop may take for their step and their checkpoint."""


def preload() -> None:
    """Begin importing torch in the fork server that the ranks will be forked from.

    Called early, it runs beside this process's own import: each rank then starts without one.
    Raises: ConfigError where its socket cannot be made.
    """
    spin_briefly()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    multiprocessing.set_forkserver_preload(["launch.fork_server"])
    # The server of Python 3.11 looks in its working folder alone, and passes over what it does not find there.
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
            multiprocessing.resource_tracker.ensure_running()  # it lets in, here, what it ignores itself
        with stop_signals_blocked():  # until there is the server, which removes the socket's folder
            multiprocessing.forkserver.ensure_running()
    finally:
        tempfile.tempdir = former
    # From Python 3.14 on the server asks for a key. Its children are not told that, but their parent's own.
    if key := getattr(multiprocessing.forkserver._forkserver, "_forkserver_authkey", None):
        multiprocessing.current_process().authkey = key


def run_job(cfg: Config, study: str, run: Run, surroundings: Surroundings) -> None:
    """A job of a sweep, in a process of its own forked from the fork server. Its exit code tells how it ended.

    One rank is trained right here; more are started from here.
    """
    os.setsid()  # Ctrl-C on the terminal is the sweep's to pass on, once
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
    """Fork this job's ranks from the server that it was forked from itself, torch imported.

    Python documents that a child reuses its parent's server, yet 3.11 to 3.14 start another, without preload,
    since only the server's address reaches the child, not its process id, nor its key (see `_start_fork_server`).
    """
    server: Any = multiprocessing.forkserver._forkserver
    if server._forkserver_address is not None:
        if sys.version_info >= (3, 14):
            server._forkserver_authkey = bytes(multiprocessing.current_process().authkey)
        server.ensure_running = lambda: None


def start_ranks(cfg: Config, study: str, run: Run, surroundings: Surroundings | None = None) -> int:
    """Train `run` on world_size ranks of this machine. Returns the exit code of the job.

    A stop signal is passed on to the ranks, which save and leave; so does this process, with 128 + the signal. A
    second one ends all at once, so that ranks that hang in a collective can be ended. A rank that dies takes the
    others with it, and its error is shown with its rank.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from launch.rank import run_started_rank

    # Its own account of a stop or a failure is a page; ours is a line. Each of its loggers has its own level.
    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    assert cfg.world_size is not None
    launch_config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=cfg.world_size,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else an empty folder stays in TMPDIR
        signals_to_handle="",  # ours are
        shutdown_timeout=LEAVE_WITHIN_S,
    )
    try:
        with stop_signals_raise(lambda number: SignalException("", number)):
            elastic_launch(launch_config, run_started_rank)(cfg, study, run, surroundings or Surroundings())
    except SignalException as stopped:
        return 128 + stopped.sigval
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            cause = f"rank {rank} was killed by {failure.signal_name()}"
            print(f"error: {cause}", file=sys.stderr)
            _record(run, cause)
            return 1
        if failure.exitcode == 1:
            print(f"error: rank {rank} failed; its error stands above", file=sys.stderr)
        return failure.exitcode
    return 0


def _record(run: Run, cause: str) -> None:
    """Write result.json for a rank that could not, where no other process trains the run by now."""
    with suppress(ConfigError), run.lock() as free:
        if free:
            run.fail(cause, "", overrule=True)
