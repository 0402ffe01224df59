"""The report of a study, from a command line.

python -m normlab.report runs/batch_size
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from normlab.atomic import atomic_write
from normlab.config import ConfigError
from normlab.console import plain_console, print_table
from normlab.markdown import escape, markdown_table
from normlab.report.findings import Finding, findings
from normlab.report.folders import check_own, mark
from normlab.report.race import table, verdict
from normlab.report.reading import read
from normlab.report.study import Study, study_axes
from normlab.report.tables import Grid, as_list, as_markdown, cells_table, grids, runs_table

MOST_NAMES = 10
LONGEST_WATCH_S = 24 * 60 * 60
DESCRIPTION = """\
Read every run below a folder and make, in <study>/report: tables.md, tables.csv (one row per cell and metric),
runs.csv, figures/*.png and *.svg, index.html (one page, opens without a network); and, in <study>/comparison,
event files in which TensorBoard shows the metric against the batch size: tensorboard --logdir <study>.
A new report replaces what an earlier one wrote there, and nothing else. With --out DIR all of this is below
DIR, and nothing is written into the study. Unfinished, failed and diverged runs are named, but are in no mean."""


def main(arguments: Sequence[str] | None = None) -> None:
    try:
        args = _parse(arguments)
        if args.watch is None:
            report(args)
        else:
            _watch(args)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m normlab.report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, nargs="?", help="folder with runs below it: runs/batch_size")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two studies side by side")
    parser.add_argument(
        "--metric", help="val/accuracy, train/loss, images_per_second; default: the runs' sweep_metric"
    )
    parser.add_argument(
        "--x", metavar="KEY", help="swept key along the tables in the terminal; default: the first"
    )
    parser.add_argument("--baseline", metavar="NORM", help="the norm to subtract, seed by seed; default: bn")
    parser.add_argument(
        "--no-paper", action="store_true", help="no panel with the GN paper's results beside the figures"
    )
    parser.add_argument("--out", type=Path, help="folder for all that is written")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write all points to one .csv or .parquet, and no report"
    )
    parser.add_argument("--text", action="store_true", help="only show tables in the terminal")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="show the page on 127.0.0.1, and make it again when runs have changed; checks every 10 s, or SECONDS",
    )
    parser.add_argument("--port", type=int, default=0, help="the port for --watch; default: a free one")
    args = parser.parse_args(arguments)
    if (args.study is None) == (args.compare is None):
        parser.error("give a study's folder, or --compare with two")
    if args.watch is not None and (args.text or args.export):
        parser.error("--watch makes the page; leave out --text and --export")
    if args.watch is not None and not 0 < args.watch <= LONGEST_WATCH_S:
        parser.error(f"--watch {args.watch:g} is not a number of seconds above 0, and at most {LONGEST_WATCH_S}")
    if not 0 <= args.port < 1 << 16:
        parser.error(f"--port {args.port} is not a port: 1 to {(1 << 16) - 1}")
    return args


def _watch(args: argparse.Namespace) -> None:
    from normlab.report.watch import watch

    out, _ = _folders(args)
    roots = args.compare or [args.study]
    watch(lambda: report(args), roots, out / "index.html", args.watch, args.port)


def report(args: argparse.Namespace) -> None:
    """Make one report, and show it unless it is being watched. Raises: ConfigError."""
    say = _timed() if args.watch is None else lambda text: None
    study = Study(*(read(folder) for folder in args.compare or [args.study]))
    say(f"read {len(study.runs):,} runs, {len(study.points):,} points")
    if args.export:
        from normlab.report.export import export

        export(study, args.export)
        say(f"{args.export}: {len(study.points):,} points")
        return
    metric = args.metric or study.default_metric()
    study.check_metric(metric)
    x = args.x or study_axes(study)[0]
    study.check_axis(x)
    baseline = study.baseline(args.baseline)
    if not study.cells and not args.text:
        raise ConfigError(f"no run below {study.root} has a norm and a seed; --text says what there is.")
    if not args.text:
        _check_folders(args)  # before the tables, which would scroll the error out of sight
    found = findings(study, metric, baseline)
    if args.watch is None:
        shown = grids(study, metric, x, baseline)
        if "images_per_second" in study.metrics and metric != "images_per_second":
            shown += grids(study, "images_per_second", x, None)
        _print(shown, found)
        if study.race is not None:
            print_table(plain_console(), *table(study.race))
            print(f"\n{verdict(study.race)}")
    if not args.text:
        _write(study, metric, baseline, found, args, say)


def _write(
    study: Study,
    metric: str,
    baseline: str | None,
    found: list[Finding],
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    from normlab.report.comparison import write_comparison
    from normlab.report.figures import draw, save
    from normlab.report.page import write_page

    out, comparison = _folders(args)
    with _writable(out):
        out.mkdir(parents=True, exist_ok=True)
        mark(out)
        write_tables(study, metric, baseline, found, out)
        say(f"{out}/tables.md, tables.csv, runs.csv")
        figures = []
        for drawn in draw(study, metric, paper=not args.no_paper):
            save(drawn, out / "figures")
            figures.append(drawn)
            say(f"{out}/figures/{drawn.name}.png, .svg")
        say(f"{out}/index.html: " + write_page(study, metric, baseline, found, out))
        if comparison is not None:
            write_comparison(study, metric, [out / "figures" / f"{one.name}.png" for one in figures], comparison)
            say(f"{comparison}; see: tensorboard --logdir {comparison.parent}")


def _folders(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """(the report's folder, the comparison's).

    Two studies have no comparison, and neither has one that is watched, since TensorBoard would not follow.
    """
    if args.compare:
        first, second = args.compare
        return args.out or first / f"compare-{second.resolve().name}", None
    comparison = (args.out or args.study) / "comparison"
    return args.out or args.study / "report", comparison if args.watch is None else None


def _check_folders(args: argparse.Namespace) -> None:
    for folder in filter(None, _folders(args)):
        with _writable(folder):
            check_own(folder)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be written: {error.strerror}; give --out.") from None


def write_tables(study: Study, metric: str, baseline: str | None, found: list[Finding], out: Path) -> None:
    """tables.md: every table against every swept key; tables.csv: every cell and metric; runs.csv."""
    metrics = list(dict.fromkeys([metric, *study.final_metrics, *study.measured]))
    with atomic_write(out / "tables.csv") as file:
        cells_table(study, metrics, baseline).to_csv(file, index=False)
    with atomic_write(out / "runs.csv") as file:
        runs_table(study).to_csv(file, index=False)
    parts = [f"# {escape(study.title)}\n", *(as_list(one.text, one.names) for one in found)]
    if study.race is not None:
        columns, rows = table(study.race)
        parts.append(markdown_table(columns, [[escape(cell) for cell in row] for row in rows]))
        parts.append(f"{escape(verdict(study.race))}\n")
    for x in study_axes(study):
        parts += [as_markdown(grid) for grid in grids(study, metric, x, baseline)]
        if "images_per_second" in study.measured and metric != "images_per_second":
            parts += [as_markdown(grid) for grid in grids(study, "images_per_second", x, None)]
    with atomic_write(out / "tables.md") as file:
        file.write("\n".join(parts))


def _print(shown: list[Grid], found: list[Finding]) -> None:
    console = plain_console()
    for grid in shown:
        console.print(grid.title, style="bold", soft_wrap=True)
        print_table(console, ["norm", *grid.columns], grid.rows)
        console.print()
    for finding in found:
        console.print(finding.text, soft_wrap=True)
        for name in finding.names[:MOST_NAMES]:
            console.print(f"  {name}", soft_wrap=True)
        if (more := len(finding.names) - MOST_NAMES) > 0:
            console.print(f"  and {more} more, in tables.md")


def _timed() -> Callable[[str], None]:
    """Says what was done on stderr, with the seconds since this call."""
    began = time.perf_counter()
    return lambda text: print(f"[{time.perf_counter() - began:.1f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
