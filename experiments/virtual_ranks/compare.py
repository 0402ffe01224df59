"""Train the same run on real and on virtual ranks: results.csv, and figure.png drawn from it.

python experiments/virtual_ranks/compare.py            # needs matplotlib; trains where results.csv is missing
"""

import csv
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
SETTINGS = [
    "batch_size=2",
    "data.num_train=640",
    "data.num_test=200",
    "epochs=1",
    "precision=fp64",
    "optim.lr=0.02",
    "optim.lr_scaling=none",
    "log_every=1",
    "progress=false",
]
RUNS = {
    "4 real ranks": ["world_size=4"],
    "4 virtual ranks": ["virtual_ranks=4"],
    "1 rank, batch 8": ["batch_size=8"],
}
STYLES = {"4 real ranks": "-", "4 virtual ranks": "o", "1 rank, batch 8": "--"}


def losses(norm: str, overrides: list[str]) -> list[tuple[int, float]]:
    """(samples_seen, loss) of each step of one run of train.py."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *SETTINGS, f"norm={norm}", *overrides, f"output_dir={folder}"]
        subprocess.run(command, check=True, capture_output=True, cwd=HERE.parents[1])
        (path,) = Path(folder).glob("*/*/metrics.jsonl")
        points = [json.loads(line) for line in path.read_text().splitlines()]
    return [(p["samples_seen"], p["train/loss"]) for p in points if "train/loss" in p]


def measure() -> None:
    rows: list[tuple[object, ...]] = [("norm", "ranks", "samples_seen", "train_loss")]
    for norm in ("bn", "syncbn"):
        for name, overrides in RUNS.items():
            rows += [(norm, name, *point) for point in losses(norm, overrides)]
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def draw() -> None:
    curves: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with RESULTS.open(newline="") as file:
        for row in csv.DictReader(file):
            curves[row["norm"]][row["ranks"]][int(row["samples_seen"])] = float(row["train_loss"])
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for (norm, runs), panel in zip(curves.items(), panels, strict=True):
        for name, style in STYLES.items():
            points = sorted(runs[name].items())[:40]
            panel.plot(*zip(*points, strict=True), style, label=name, ms=4, mfc="none", lw=1)
        real, virtual = runs["4 real ranks"], runs["4 virtual ranks"]
        apart = max(abs(virtual[s] - loss) / abs(loss) for s, loss in real.items())
        panel.set_title(f"{norm}: equal to {apart:.0e} over {len(real)} steps", fontsize=11)
        panel.set(xlabel="samples seen (first 40 steps)")
    panels[0].set_ylabel("training loss")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(HERE / "figure.png", dpi=120)


if __name__ == "__main__":
    if not RESULTS.exists():
        measure()
    draw()
