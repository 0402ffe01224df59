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
    runs = trained(args.study)
    if not runs:
        parser.error(f"{args.study} holds no finished run of bn with a checkpoint")
    rows: list[dict[str, object]] = []
    try:
        for run in runs:
            for row in evaluated(run, args.changes):
                rows.append(row)
                print(f"{run.name}  {row[KEY]:8} test/accuracy {row['test/accuracy']:.4f}", flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out / "results.csv") as file:
        pd.DataFrame(rows).sort_values(["batch_size", "seed"], kind="stable").to_csv(file, index=False)


if __name__ == "__main__":
    main()
