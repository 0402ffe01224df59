"""The progress of a run: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from normlab.console import plain_console
from normlab.logger import Logger

LINE_EVERY_S = 10.0


class ProgressLogger(Logger):
    """Shows samples, loss, accuracy or mIoU, images/s and time left, on stderr."""

    def __init__(self, total_samples: int, console: Console | None = None) -> None:
        self._total = total_samples
        self._console = console or plain_console(stderr=True, soft_wrap=True)
        self._latest: dict[str, float] = {}
        self._said_at = time.monotonic()
        self._bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def start(self, step: int, samples_seen: int, logged: Mapping[str, int]) -> None:
        self._first = samples_seen
        self._began = time.monotonic()
        self._task = self._bar.add_task("", total=self._total, completed=samples_seen)
        self._bar.start()

    def log(self, step: int, samples_seen: int, epoch: float, metrics: dict[str, float]) -> None:
        self._latest |= metrics
        text = f"epoch {epoch:.2f}  {samples_seen}/{self._total} samples  {self._numbers()}"
        self._bar.update(self._task, completed=samples_seen, description=text)
        evaluated = "val/loss" in metrics
        due = time.monotonic() - self._said_at >= LINE_EVERY_S
        if evaluated or (due and not self._console.is_terminal):
            self._said_at = time.monotonic()
            self._console.print(text if self._console.is_terminal else f"{text}  {self._time_left(samples_seen)}")

    def _numbers(self) -> str:
        shown = [
            ("loss", "train/loss", ".3f"),
            ("acc", "train/batch_accuracy", ".3f"),
            ("miou", "train/batch_miou", ".3f"),
            ("val acc", "val/accuracy", ".4f"),
            ("val miou", "val/miou", ".4f"),
            ("images/s", "images_per_second", ".0f"),
        ]
        return "  ".join(f"{name} {self._latest[tag]:{f}}" for name, tag, f in shown if tag in self._latest)

    def _time_left(self, samples_seen: int) -> str:
        spent_s = time.monotonic() - self._began
        done = samples_seen - self._first
        left_s = spent_s * (self._total - samples_seen) / done if done else 0
        return f"{left_s:.0f} s left"

    def note(self, text: str) -> None:
        self._console.print(text)

    def close(self, final: dict[str, float] | None = None) -> None:
        self._bar.stop()
