"""What the fork server imports before it forks: the code of ranks, and how it leaves. Nobody else imports this."""

import atexit
import gc
import multiprocessing.forkserver
import os
from contextlib import suppress
from typing import Any

import launch.rank  # noqa: F401

gc.freeze()  # so that a rank that leaves looks for garbage among its own objects, not all of torch's
atexit.register(gc.unfreeze)  # else extension modules warn of leaks when the server ends


@atexit.register
def remove_socket() -> None:
    """Python has the process that started the server do this, which may be killed; the server outlives it."""
    server: Any = multiprocessing.forkserver._forkserver
    with suppress(OSError, ValueError):
        os.unlink(server._forkserver_address)
        os.rmdir(os.path.dirname(server._forkserver_address))
