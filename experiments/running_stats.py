"""The study running_stats: trained runs of bn, evaluated with each choice of running statistics.

python -m experiments.running_stats runs/batch_size
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from experiments.claims import HERE
from normlab.atomic import atomic_write
from normlab.config import ConfigError
from normlab.config.norm import RunningStats
from normlab.config.saved import read_saved
from normlab.evaluate import evaluate_run
from normlab.markdown import markdown_table
from normlab.report.statistics import estimate
from normlab.run_files import find_runs, read_result

KEY = "norm.running_stats"


def trained(study: Path) -> list[Path]:
    """The finished runs of bn that still have their checkpoint."""
    found = []
    for run in find_runs(study):
        result, _ = read_result(run)
        finished = result is not None and result["status"] == "finished"
        if finished and (run / "checkpoint.pt").exists() and read_saved(run / "config.yaml").norm.name == "bn":
            found.append(run)
    return found


def evaluated(run: Path, changes: Sequence[str] = ()) -> Iterator[dict[str, object]]:
    """A row for each choice of running statistics. Raises: ConfigError as `evaluate_run` does."""
    cfg = read_saved(run / "config.yaml")
    for choice in RunningStats:
        evaluation = evaluate_run(run, [f"{KEY}={choice.name}", *changes])
        cell = {"norm": cfg.norm.name, KEY: choice.name, "batch_size": cfg.batch_size, "seed": cfg.seed}
        yield {"run": run.name, **cell, "state": "finished", **evaluation.metrics}


def table(runs: pd.DataFrame) -> str:
    """Mean test/accuracy of each choice, and its differences from rank0, paired by seed; a row per batch size."""
    by_seed = runs.pivot(index=["batch_size", "seed"], columns=KEY, values="test/accuracy")
    names = [choice.name for choice in RunningStats]
    others = [name for name in names if name != RunningStats.rank0.name]
    rows = []
    for batch_size, of_size in by_seed.groupby("batch_size"):
        means = [estimate(list(of_size[name])) for name in names]
        gains = [estimate(list(of_size[name] - of_size[RunningStats.rank0.name])) for name in others]
        rows.append(
            [
                str(batch_size),
                *(f"{e.mean:.4f} ± {e.half_width:.4f}" for e in means),
                *(f"{e.mean:+.4f} ± {e.half_width:.4f}" for e in gains),
            ]
        )
    return markdown_table(["batch_size", *names, *(f"{name} - rank0" for name in others)], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.running_stats",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="the folder of the trained runs")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="where the data are now: data.root=...")
    parser.add_argument("--out", type=Path, default=HERE / "running_stats", help="default: %(default)s")
    args = parser.parse_args(arguments)
    directories = trained(args.study)
    if not directories:
        parser.error(f"{args.study} holds no finished run of bn with a checkpoint")
    rows: list[dict[str, object]] = []
    try:
        for run in directories:
            for row in evaluated(run, args.changes):
                rows.append(row)
                print(f"{run.name}  {row[KEY]:8} test/accuracy {row['test/accuracy']:.4f}", flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    runs = pd.DataFrame(rows).sort_values(["batch_size", "seed"], kind="stable")
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out / "results.csv") as file:
        runs.to_csv(file, index=False)
    print(table(runs), end="")


if __name__ == "__main__":
    main()
