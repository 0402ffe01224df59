"""The report of a thousand runs: what each part takes, and how its reading compares with tbparse's.

python -m benchmarks.report [--runs 1000] [--points 200]     # about five minutes, most of them tbparse's

The study is made up (benchmarks/generated_study.py). For tbparse the same curves are written as event files by
tensorboard's own record writer: `normlab.report.load` reads metrics.jsonl, config.yaml and result.json of every
run, tbparse the event files alone. One after the other, once each, tbparse last. Processor seconds are said
beside those of the clock, since others may use the machine.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from benchmarks.generated_study import generate
from normlab.report import load
from normlab.report.__main__ import write_tables
from normlab.report.figures import draw, save
from normlab.report.findings import findings
from normlab.report.page import write_page
from normlab.report.reading import read
from normlab.report.study import Study


def write_events(points: pd.DataFrame, folder: Path) -> int:
    """Every run's curves as FileLogger writes them; returns how many scalars there are."""
    scalars = 0
    for run, curves in points.groupby("run", observed=True):
        directory = folder / str(run)
        directory.mkdir(parents=True)
        with (directory / "events.out.tfevents.1").open("wb") as file:
            writer = RecordWriter(file)
            writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString())
            for point in curves.drop(columns=["run", "step"]).to_dict("records"):
                step = int(point.pop("samples_seen"))
                for tag, value in point.items():
                    if value == value:
                        summary = Summary(value=[Summary.Value(tag=str(tag), simple_value=value)])
                        writer.write(Event(wall_time=0, step=step, summary=summary).SerializeToString())
                        scalars += 1
    return scalars


def write_figures(study: Study, folder: Path) -> None:
    for drawn in draw(study, "val/accuracy"):
        save(drawn, folder)


def timed(name: str, work: Callable[[], Any]) -> tuple[float, Any]:
    began, cpu_began = time.perf_counter(), time.process_time()
    result = work()
    spent_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    print(f"| {name} | {spent_s:.2f} | {cpu_s:.2f} |", flush=True)
    return cpu_s, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, events, out = (Path(folder) / name for name in ("runs", "events", "out"))
        generate(root, args.runs, args.points)
        out.mkdir()
        cores, load_before = len(os.sched_getaffinity(0)), os.getloadavg()[0]
        print(f"{args.runs} runs of {args.points} points; {cores} cores, load {load_before:.1f} before\n")
        print("| | seconds | processor seconds |\n|---|---|---|")
        report_cpu_s, study = timed("read, find the cells", lambda: Study(read(root)))
        found = findings(study, "val/accuracy")
        report_cpu_s += timed("tables", lambda: write_tables(study, "val/accuracy", "bn", found, out))[0]
        report_cpu_s += timed("figures", lambda: write_figures(study, out))[0]
        print(f"| **tables and figures together** | | {report_cpu_s:.2f} |")
        timed("page", lambda: write_page(study, "val/accuracy", "bn", found, out))
        print(f"| its size, MB | {(out / 'index.html').stat().st_size / 1e6:.1f} | |")
        ours_s, (_, points) = timed("normlab.report.load", lambda: load(root))
        scalars = write_events(points, events)

        def read_with_tbparse() -> pd.DataFrame:
            from tbparse import SummaryReader

            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
                return SummaryReader(str(events), extra_columns={"dir_name"}).scalars

        theirs_s, table = timed(f"tbparse, {scalars:,} scalars", read_with_tbparse)
        assert len(table) == scalars
        print(f"\ntbparse / normlab.report.load, processor seconds: {theirs_s / ours_s:.1f}")


if __name__ == "__main__":
    main()
