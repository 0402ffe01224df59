"""Imported only by the fork server, before it forks: the code of ranks, and what the server does at its end."""

import atexit
import gc
import multiprocessing.forkserver
import os
from contextlib import suppress
from typing import Any

import launch.rank  # noqa: F401

gc.freeze()  # so that a leaving rank looks for garbage only among its own objects, not torch's
atexit.register(gc.unfreeze)  # else extension modules warn of leaks when the server ends


@atexit.register
def remove_socket() -> None:
    """Python leaves this to the process that started the server, which may be killed before the server ends."""
    server: Any = multiprocessing.forkserver._forkserver
    with suppress(OSError, ValueError):
        os.unlink(server._forkserver_address)
        os.rmdir(os.path.dirname(server._forkserver_address))
