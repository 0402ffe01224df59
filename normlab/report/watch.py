"""A report that is remade while its runs train, and served to browsers on this machine."""

import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from normlab.config import ConfigError
from normlab.run_files import MARKS, find_runs

SHARE_OF_A_CORE = 0.1
"""Making reports takes no more than this, however large the study is."""


def watch(remake: Callable[[], None], roots: Sequence[Path], page: Path, every_s: float, port: int) -> None:
    """Serve `page`, and remake it after runs below `roots` have changed, until Ctrl-C.

    `remake` makes the report. If it raises ConfigError, as before the first run has begun, the error is shown and
    the previous page stays. Raises: ConfigError if the port is taken.
    """
    # The page links to the runs; if it is elsewhere, nothing around it is served.
    around = roots[0] if roots[0] in page.parents else page.parent
    with _served(around, port) as address:
        _say(f"{address}/{page.relative_to(around)} refreshes itself; Ctrl-C ends this")
        seen: object = None
        try:
            while True:
                began = time.monotonic()
                if (found := _fingerprint(roots)) != seen:
                    seen = found
                    try:
                        remake()
                        _say(f"{time.strftime('%H:%M:%S')} made again: {len(found)} files of runs")
                    except ConfigError as error:
                        _say(f"{time.strftime('%H:%M:%S')} not made: {error}")
                time.sleep(max(every_s, (time.monotonic() - began) * (1 / SHARE_OF_A_CORE - 1)))
        except KeyboardInterrupt:
            return


def _fingerprint(roots: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Path -> (time of change, size) of the files that runs write as they go."""
    found = {}
    for path in (run / name for root in roots for run in find_runs(root) for name in sorted(MARKS)):
        try:
            status = path.stat()
        except OSError:
            continue
        found[str(path)] = (status.st_mtime_ns, status.st_size)
    return found


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files that browsers must request anew each time."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


@contextmanager
def _served(folder: Path, port: int) -> Iterator[str]:
    """The address on 127.0.0.1 at which the files of `folder` are served within the block."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=os.fspath(folder)))
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be used: {error.strerror}; give another, or none.") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
