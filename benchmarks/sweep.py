"""A sweep of tiny runs: normlab's local launcher, Hydra's basic launcher, and a process for each run.

python -m benchmarks.sweep [--runs 24]

Every way trains the same runs (resnet8 on shapes, one rank) into a fresh folder and is timed from command to
prompt. Hydra's basic launcher imports torch once and trains one run after the other with all cores; a
process for each run imports it every time. One way after the other: on a machine that others use, the
figures are as good as its quiet.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from launch.jobs import plan_jobs
from launch.plugins import register_launchers
from normlab.config.schema import CONF, register_schemas

TRAIN = Path(__file__).parents[1] / "train.py"
RUN = ["model=resnet8", "data=shapes", "data.num_train=128", "data.num_test=50", "epochs=1", "progress=false"]


def sweep_s(runs: int, *overrides: str) -> float:
    """One command for all runs."""
    return timed(runs, [["-m", *RUN, f"seed=range({runs})", *overrides]])


def processes_s(runs: int) -> float:
    """A command for each run."""
    return timed(runs, [[*RUN, f"seed={seed}"] for seed in range(runs)])


def timed(runs: int, commands: list[list[str]]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for command in commands:
            subprocess.run(
                [sys.executable, str(TRAIN), *command],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        spent_s = time.perf_counter() - began
        assert len(list(Path(folder).glob("runs/*/*/result.json"))) == runs
        return spent_s


def planning_s(runs: int) -> float:
    """All that a sweep does before its first run, imports apart."""
    register_schemas()
    register_launchers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    master = loader.load_configuration("config", RUN, RunMode.MULTIRUN)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        jobs = plan_jobs(master, loader, [[*RUN, f"seed={seed}", f"output_dir={folder}"] for seed in range(runs)])
        spent_s = time.perf_counter() - began
    assert len(jobs) == runs
    return spent_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24)
    args = parser.parse_args()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{args.runs} runs of one rank, resnet8, 128 samples of shapes; {cores} cores, load {load:.1f} before,")
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}\n")
    planning_s(1)  # imports
    print(f"planning 200 runs: {planning_s(200):.1f} s\n", flush=True)
    ours_s = sweep_s(args.runs)
    print("| way | seconds | against ours |\n|---|---|---|")
    print(f"| normlab, `hydra/launcher=local` | {ours_s:.1f} | 1 |", flush=True)
    basic_s = sweep_s(args.runs, "hydra/launcher=basic")
    print(f"| Hydra, `hydra/launcher=basic` | {basic_s:.1f} | {basic_s / ours_s:.2f} |", flush=True)
    separate_s = processes_s(args.runs)
    print(f"| one `python train.py` a run | {separate_s:.1f} | {separate_s / ours_s:.2f} |")


if __name__ == "__main__":
    main()
