"""Runs written by hand, for what no training brings about on demand."""

import json
from pathlib import Path
from typing import Any

import yaml

from normlab.run import RESULTS_VERSION

SETTINGS = {
    "norm": {"name": "bn", "eps": 1e-5},
    "model": {"name": "resnet8", "depth": 8},
    "data": {"name": "shapes", "val_fraction": 0.0},
    "optim": {"name": "sgd", "lr": 0.1},
    "batch_size": 4,
    "world_size": 1,
    "virtual_ranks": 1,
    "threads": 1,
    "seed": 0,
    "sweep_metric": "val/accuracy",
}


def make_run(
    root: Path,
    accuracy: float | None = 0.5,
    status: str | None = "finished",
    curve: dict[int, float] | None = None,
    result: dict[str, Any] | None = None,
    name: str = "",
    **settings: Any,
) -> Path:
    """A run below `root`; `settings` as a command line has them, with `__` for the dot, `norm="gn"` for its name;
    a value of None in `result` leaves its key out."""
    config = json.loads(json.dumps(SETTINGS))
    for key, value in settings.items():
        section, _, own = key.partition("__")
        if own:
            config[section][own] = value
        elif isinstance(config.get(section), dict):
            config[section]["name"] = value
        else:
            config[section] = value
    directory = root / (name or f"run{sum(1 for _ in root.iterdir()) if root.exists() else 0}")
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    if curve is not None:
        points = [{"step": n, "samples_seen": n, "epoch": 1.0, "val/accuracy": v} for n, v in curve.items()]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    if status:
        held = {
            "status": status,
            "metrics": {"val/accuracy": accuracy} if status == "finished" and accuracy is not None else {},
            "normalization_batch_size": config["batch_size"] if config["norm"]["name"] == "bn" else 1,
            "eval_split": "test",
            "results_version": RESULTS_VERSION,
            "images_per_second": 100.0,
            "device_name": "a machine",
        } | (result or {})
        (directory / "result.json").write_text(json.dumps(held))
    return directory
