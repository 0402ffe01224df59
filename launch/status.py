"""What became of runs, as a table.

python -m launch.status runs [--json]
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from normlab.console import duration, plain_console
from normlab.run_files import (
    SIGNS_OF_LIFE,
    find_runs,
    main_score,
    printable,
    read_launch,
    read_progress,
    read_result,
)
from normlab.run_state import STATES, STYLES, counted, state_of
from normlab.squeue import Queue, read_queue


@dataclass(frozen=True)
class RunStatus:
    run: str
    """Its directory."""
    state: str
    """One of STATES."""
    age_s: float | None
    """Seconds since its last sign of life; None if its files cannot be read."""
    samples_seen: int
    total_samples: int | None
    score: float | None
    time_left_s: float | None
    detail: str
    """A failed run's error, a queued job's reason."""
    problems: tuple[str, ...]
    """Descriptions of its files that are damaged, foreign or unreadable."""


def read_status(directory: Path, queue: Queue) -> RunStatus:
    """The status of a run. Raises nothing: what cannot be read is named in `problems`."""
    result, no_result = read_result(directory)
    launch, no_launch = read_launch(directory)
    progress = read_progress(directory)
    state, detail = state_of(directory, result, launch, queue)
    score = main_score(result["metrics"].get) if result else None
    total = (launch or {}).get("total_samples")
    total = total if isinstance(total, int) else None
    return RunStatus(
        run=str(directory),
        state=state,
        age_s=_age_s(directory),
        samples_seen=progress.samples_seen,
        total_samples=total,
        score=progress.score if score is None else score,
        time_left_s=progress.time_left_s(total) if state == "running" else None,
        detail=detail,
        problems=tuple(problem for problem in (no_result, no_launch, progress.problem) if problem),
    )


def _age_s(directory: Path) -> float | None:
    signs = []
    for name in SIGNS_OF_LIFE:
        with suppress(OSError):
            signs.append((directory / name).stat().st_mtime)
    return max(0.0, time.time() - max(signs)) if signs else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.status", description="What became of runs.")
    parser.add_argument("root", type=Path, help="output_dir, a study's folder, or a run's")
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    args = parser.parse_args()
    if not args.root.is_dir():
        print(f"error: {args.root} is not a folder; give the output_dir of your runs.", file=sys.stderr)
        sys.exit(2)
    queue = read_queue()
    if queue is None:
        print("warning: squeue does not answer; what it would know is missing here", file=sys.stderr)
    runs = [read_status(directory, queue or {}) for directory in find_runs(args.root)]
    for run in runs:
        for problem in run.problems:
            print(f"warning: {run.run}: {problem}", file=sys.stderr)
    if args.json:
        print(json.dumps([asdict(run) for run in runs], indent=2))
        return
    status_table(runs, args.root)
    print(counted((run.state for run in runs), STATES) or "no runs")


def status_table(runs: Sequence[RunStatus], root: Path) -> None:
    """Print the table of `python -m launch.status`: one line per run. On a terminal, details follow below."""
    console = plain_console()
    table = Table(box=None, header_style="bold")
    columns = ["state", "run", "samples", "acc/mIoU", "time left", "last sign"]
    for column in columns if console.is_terminal else [*columns, ""]:
        table.add_column(column, no_wrap=column != "run", overflow="fold")
    details: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        name = printable(str(Path(run.run).relative_to(root)) if run.run != str(root) else root.name)
        if run.detail:
            details.setdefault((run.state, run.detail), []).append(name)
        row = (
            run.state,
            name,
            f"{run.samples_seen}/{run.total_samples}" if run.total_samples else str(run.samples_seen),
            "" if run.score is None else f"{run.score:.4f}",
            duration(run.time_left_s),
            "" if run.age_s is None else f"{duration(run.age_s)} ago",
        )
        table.add_row(*row, *([] if console.is_terminal else [run.detail]), style=STYLES.get(run.state))
    console.print(table, soft_wrap=True)
    for (state, detail), names in details.items() if console.is_terminal else ():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"{state}: {names[0]}{more}: {detail}", soft_wrap=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` has seen enough, and there is nothing here to lose
    main()
