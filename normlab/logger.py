"""Where a run's points go: TensorBoard and metrics.jsonl, over samples_seen."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from normlab.atomic import atomic_write
from normlab.config import plain
from normlab.run import Run


class Logger(Protocol):
    """One of those who watch a run. The trainer calls each in the same way, on every rank."""

    def start(self, step: int, samples_seen: int) -> None:
        """Begin, or go on from a checkpoint: what was recorded after it is forgotten."""

    def log(self, step: int, samples_seen: int, epoch: float, metrics: dict[str, float]) -> None:
        """Record one point, its metrics under TensorBoard's tags."""

    def note(self, text: str) -> None:
        """Tell the user."""

    def document(self, name: str, text: str) -> None:
        """Keep a text about the run, in Markdown."""

    def picture(self, samples_seen: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Keep the picture (H, W, 3) uint8 that `draw` gives; who does not want it does not call that."""

    def histogram(self, samples_seen: int, name: str, values: Sequence[float]) -> None:
        """Keep how `values` are distributed."""

    def flush(self) -> None:
        """Make what was logged safe, before a checkpoint says that it happened."""

    def close(self, final: dict[str, float] | None = None) -> None:
        """End; a run that finished gives its final metrics."""


class LoggerList:
    """Several loggers as one; the null logger of ranks other than 0 is an empty one."""

    def __init__(self, *loggers: Logger) -> None:
        self._loggers = loggers

    def start(self, step: int, samples_seen: int) -> None:
        for logger in self._loggers:
            logger.start(step, samples_seen)

    def log(self, step: int, samples_seen: int, epoch: float, metrics: dict[str, float]) -> None:
        for logger in self._loggers:
            logger.log(step, samples_seen, epoch, metrics)

    def note(self, text: str) -> None:
        for logger in self._loggers:
            logger.note(text)

    def document(self, name: str, text: str) -> None:
        for logger in self._loggers:
            logger.document(name, text)

    def picture(self, samples_seen: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        for logger in self._loggers:
            logger.picture(samples_seen, name, draw)

    def histogram(self, samples_seen: int, name: str, values: Sequence[float]) -> None:
        for logger in self._loggers:
            logger.histogram(samples_seen, name, values)

    def flush(self) -> None:
        for logger in self._loggers:
            logger.flush()

    def close(self, final: dict[str, float] | None = None) -> None:
        for logger in self._loggers:
            logger.close(final)


class FileLogger:
    """metrics.jsonl and TensorBoard events in the run's directory."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def start(self, step: int, samples_seen: int) -> None:
        kept = b""
        if step and self._run.metrics_path.exists():
            lines = self._run.metrics_path.read_bytes().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            kept = b"".join(line for line in whole if json.loads(line)["step"] <= step)
        if not step:  # killed before its first checkpoint
            for events in self._run.directory.glob("events.out.tfevents.*"):
                events.unlink()
        self._lines = self._run.metrics_path.open("wb")
        self._lines.write(kept)
        self._writer = SummaryWriter(str(self._run.directory), purge_step=samples_seen + 1 if step else None)

    def log(self, step: int, samples_seen: int, epoch: float, metrics: dict[str, float]) -> None:
        finite = {tag: value if math.isfinite(value) else None for tag, value in metrics.items()}
        point = {"step": step, "samples_seen": samples_seen, "epoch": epoch, **finite}
        self._lines.write(json.dumps(point).encode() + b"\n")
        self._lines.flush()  # `launch.status` and the table of a sweep read along
        for tag, value in {**metrics, "epoch": epoch}.items():
            self._writer.add_scalar(tag, value, samples_seen)

    def note(self, text: str) -> None:
        pass

    def document(self, name: str, text: str) -> None:
        with atomic_write(self._run.directory / f"{name}.md") as file:
            file.write(text)
        self._writer.add_text(name, text)

    def picture(self, samples_seen: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        self._writer.add_image(name, draw(), samples_seen, dataformats="HWC")

    def histogram(self, samples_seen: int, name: str, values: Sequence[float]) -> None:
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            # TensorBoard's bins end below 1e20, and it refuses values that all lie beyond them.
            self._writer.add_histogram(name, np.clip(finite, -1e19, 1e19), samples_seen)

    def flush(self) -> None:
        self._lines.flush()
        self._writer.flush()

    def close(self, final: dict[str, float] | None = None) -> None:
        if final:
            # SummaryWriter.add_hparams would open a second run named after the time. The metrics are named
            # alone: TensorBoard shows the last value of each one's curve.
            settings = {key: "null" if value is None else value for key, value in _flat(plain(self._run.config))}
            for summary in hparams(settings, final):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self._writer.close()
        self._lines.close()


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, str(value) if isinstance(value, list) else value))
    return pairs
