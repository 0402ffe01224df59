"""The display of a sweep: a live table on a terminal, plain lines elsewhere, a summary at the end."""

import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from launch.jobs import Ended, Job
from normlab.console import duration, plain_console
from normlab.run_files import Progress, read_progress
from normlab.run_state import STYLES, counted

DRAW_EVERY_S = 1.0
SAY_EVERY_S = 60.0
ORDER = ("finished", "skipped", "queued", "diverged", "stopped", "failed")


class SweepView:
    """Every job of a sweep: state, samples, accuracy or mIoU, time left.

    A launcher reports what begins and ends, and calls `update` a few times per second; the rest is read from the
    runs' directories. If the terminal has too few lines for all jobs, running ones come first.
    """

    def __init__(self, jobs: Sequence[Job], console: Console | None = None) -> None:
        self._console = console or plain_console(stderr=True, soft_wrap=True)
        self._state = dict.fromkeys(jobs, "waiting")
        self._progress = {job: Progress() for job in jobs}
        self._began: dict[Job, float] = {}
        self._shown_at = -math.inf if self._console.is_terminal else time.monotonic()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> "SweepView":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def begin(self, job: Job) -> None:
        self._state[job], self._began[job] = "running", time.monotonic()
        self._say(job, str(job.run.directory))

    def end(self, ended: Ended) -> None:
        self._state[ended.job] = ended.state
        self._progress[ended.job] = read_progress(ended.job.run.directory)
        spent = f" ({duration(time.monotonic() - self._began[ended.job])})" if ended.job in self._began else ""
        self._say(ended.job, ended.detail + spent)

    def note(self, text: str) -> None:
        """Show a line beside the table."""
        self._console.print(text)

    def update(self) -> None:
        every_s = DRAW_EVERY_S if self._console.is_terminal else SAY_EVERY_S
        if time.monotonic() - self._shown_at < every_s:
            return
        for job in self._in_state("running"):
            self._progress[job] = read_progress(job.run.directory)
            if not self._console.is_terminal:
                _, _, samples, score, left = self._row(job)
                self._say(job, f"{samples} samples, accuracy or mIoU {score or 'none yet'}, {left or '?'} left")
        if self._console.is_terminal:
            self._shown_at = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _say(self, job: Job, text: str) -> None:
        if not self._console.is_terminal:
            self._shown_at = time.monotonic()
            done = len(self._state) - len(self._in_state("waiting", "running"))
            self._console.print(f"[{done}/{len(self._state)}] {self._state[job]}: {job.name}: {text}")

    def _in_state(self, *states: str) -> list[Job]:
        return [job for job, state in self._state.items() if state in states]

    def _table(self) -> Table:
        counts = Counter(self._state.values())
        table = Table(box=None, caption=", ".join(f"{n} {state}" for state, n in counts.items()))
        for column in ("state", "run", "samples", "acc/mIoU", "time left"):
            table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1 if column == "run" else None)
        room = self._console.height - 4
        jobs = list(self._state)
        if len(jobs) > room:
            jobs = [*self._in_state("running"), *self._in_state("failed", "diverged"), *self._in_state("waiting")]
        for job in jobs[:room]:
            table.add_row(*self._row(job), style=STYLES.get(self._state[job], "dim"))
        return table

    def _row(self, job: Job) -> tuple[str, str, str, str, str]:
        state = self._state[job]
        progress = self._progress[job]
        return (
            state,
            job.name,
            f"{progress.samples_seen}/{job.total_samples}",
            "" if progress.score is None else f"{progress.score:.4f}",
            duration(progress.time_left_s(job.total_samples)) if state == "running" else "",
        )


def print_summary(record: Sequence[Ended]) -> None:
    """Print how a sweep ended: one line per job, with failures last, each with the path of its log."""
    console = plain_console(soft_wrap=True)
    width = max(len(ended.job.name) for ended in record)
    for ended in sorted(record, key=lambda ended: ORDER.index(ended.state)):
        console.print(f"{ended.state:9}", style=STYLES.get(ended.state, ""), end=" ")
        print(f"{ended.job.name:{width}}  {ended.detail}".rstrip())
        if ended.state == "failed":
            print(f"{'':9} {'':{width}}  log: {ended.job.run.log_path}")
    print(counted((ended.state for ended in record), ORDER))
    if any(ended.is_left for ended in record):
        print("The same command goes on with what is left.")
    for output_dir in sorted({ended.job.run.config.output_dir for ended in record}):
        print(f"see: python -m launch.status {shlex.quote(output_dir)}")
    for study in sorted({str(ended.job.run.directory.parent) for ended in record}):
        print(f"see: python -m normlab.report {shlex.quote(study)}")
    sys.stdout.flush()
