"""Where a run's points are recorded: TensorBoard and metrics.jsonl, over samples_seen."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from normlab.atomic import atomic_write, sync
from normlab.config import ConfigError
from normlab.config.schema import plain
from normlab.run import Run
from normlab.run_files import flat_settings, open_file, read_points


class Logger:
    """Records a run. The trainer calls it in the same way on every rank. This base class records nothing."""

    def start(self, step: int, samples_seen: int, logged: Mapping[str, int]) -> None:
        """Begin, or continue from a checkpoint: anything recorded after it, beyond `logged`, is deleted."""

    def log(self, step: int, samples_seen: int, epoch: float, metrics: dict[str, float]) -> None:
        """Record one point. The names of the metrics are TensorBoard's tags."""

    def note(self, text: str) -> None:
        """Tell the user."""

    def document(self, name: str, text: str) -> None:
        """Keep a text about the run, written in Markdown."""

    def picture(self, samples_seen: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Keep the picture (H, W, 3) uint8 that `draw` returns; it is called only if pictures are kept."""

    def histogram(self, samples_seen: int, name: str, values: Sequence[float]) -> None:
        """Keep the distribution of `values`."""

    def flush(self) -> dict[str, int]:
        """Sync everything logged so far to disk, before a checkpoint counts on it.

        Returns how much that is, by file; the checkpoint keeps it for `start`.
        """
        return {}

    def close(self, final: dict[str, float] | None = None) -> None:
        """Finish recording. `final`: the metrics of a run that finished."""


def _to_each(name: str) -> Callable[..., None]:
    """A method that calls the method `name` of every logger in a list."""

    def call(self: "LoggerList", *args: Any) -> None:
        for logger in self.loggers:
            getattr(logger, name)(*args)

    return call


class LoggerList(Logger):
    """Several loggers as one. Ranks other than 0 have an empty list."""

    def __init__(self, *loggers: Logger) -> None:
        self.loggers = loggers

    start = _to_each("start")
    log = _to_each("log")
    note = _to_each("note")
    document = _to_each("document")
    picture = _to_each("picture")
    histogram = _to_each("histogram")
    close = _to_each("close")

    def flush(self) -> dict[str, int]:
        return {name: size for logger in self.loggers for name, size in logger.flush().items()}


class FileLogger(Logger):
    """metrics.jsonl and TensorBoard events in the run's directory.

    `logged` counts the points of metrics.jsonl and the bytes of each event file. Files are truncated there to drop
    later ones, and nothing else is ever removed, so a run may be killed at any time, even while it starts.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def start(self, step: int, samples_seen: int, logged: Mapping[str, int]) -> None:
        self._fresh = not logged
        self._cut_points(logged.get(self._run.metrics_path.name, 0), step)
        for events in self._events():
            if events.name not in logged:
                events.unlink()
            elif events.stat().st_size > logged[events.name]:
                os.truncate(events, logged[events.name])
        there = {path.name: path.stat().st_size for path in self._events()} | {"metrics.jsonl": self._points}
        for name, size in logged.items():
            if there.get(name, 0) < size:
                print(
                    f"warning: {self._run.directory / name} lost what was logged before step {step}",
                    file=sys.stderr,
                )
        self._lines = self._run.metrics_path.open("ab")
        # `purge_step` is for a TensorBoard that has already read what was truncated.
        self._writer = SummaryWriter(str(self._run.directory), purge_step=samples_seen + 1 if logged else None)

    def _events(self) -> list[Path]:
        return list(self._run.directory.glob("events.out.tfevents.*"))

    def _cut_points(self, number: int, step: int) -> None:
        """Keep only the first `number` points of metrics.jsonl, all of them at or before `step`.

        Raises: ConfigError if it cannot be read.
        """
        path = self._run.metrics_path
        try:
            with open_file(path) as file:
                held = file.read()
        except FileNotFoundError:
            held = b""
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be read ({error.strerror}); delete it, or start over with rerun=true."
            ) from None
        lines = held.split(b"\n")[:-1]
        # A damaged line counts as a point, so that none logged after the checkpoint takes its place.
        points = [point for point in read_points(lines[:number])[0] if point["step"] <= step]
        points += [point for point in read_points(lines[number:])[0] if point["step"] < step]
        self._points = len(points)
        kept = b"".join(_line(point) for point in points)
        if kept != held:
            with atomic_write(path, "wb") as whole:
                whole.write(kept)

    def log(self, step: int, samples_seen: int, epoch: float, metrics: dict[str, float]) -> None:
        finite = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        point = {"step": step, "samples_seen": samples_seen, "epoch": epoch, **finite}
        self._lines.write(_line(point))
        self._points += 1
        self._lines.flush()  # `launch.status` and the table of a sweep read it meanwhile
        for tag, value in {**metrics, "epoch": epoch}.items():
            self._writer.add_scalar(tag, value, samples_seen)

    def document(self, name: str, text: str) -> None:
        with atomic_write(self._run.directory / f"{name}.md") as file:
            file.write(text)
        if self._fresh:
            self._writer.add_text(name, text)

    def picture(self, samples_seen: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        self._writer.add_image(name, draw(), samples_seen, dataformats="HWC")

    def histogram(self, samples_seen: int, name: str, values: Sequence[float]) -> None:
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            # TensorBoard's bins end below 1e20, and it raises if all values lie beyond them.
            self._writer.add_histogram(name, np.clip(finite, -1e19, 1e19), samples_seen)

    def flush(self) -> dict[str, int]:
        os.fsync(self._lines.fileno())
        self._writer.flush()
        events = self._events()
        for path in events:
            sync(path)
        return {path.name: path.stat().st_size for path in events} | {self._run.metrics_path.name: self._points}

    def close(self, final: dict[str, float] | None = None) -> None:
        if final:
            # SummaryWriter.add_hparams would open a second run, named after the time. It is enough to name the
            # metrics: TensorBoard shows the last value of each curve.
            for summary in hparams(flat_settings(plain(self._run.config)), final):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self._writer.close()
        self._lines.close()


def _line(point: dict[str, Any]) -> bytes:
    return json.dumps(point).encode() + b"\n"
