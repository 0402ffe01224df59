"""Every run below a folder, as two tables. A file that cannot be read is named with its run."""

import re
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from normlab.config import ConfigError
from normlab.run_files import (
    PLACE,
    find_runs,
    flat_settings,
    flat_value,
    is_number,
    parse_yaml,
    printable,
    read_config,
    read_launch,
    read_log,
    read_result,
)
from normlab.run_state import state_of
from normlab.squeue import Queue, read_queue

_RUN_NAME = re.compile(r"(.+?)-b(\d+)-w(\d+)(?:v(\d+))?-.*-s(\d+)-[0-9a-f]{8}")
_OWN = ("run", "directory", "study", "state", "detail", "problem")


@dataclass
class Records:
    """Every run below `root`."""

    root: Path
    runs: pd.DataFrame
    """One row per run, in the order of their names:

    run            its directory, relative to `root`
    directory      the same, absolute
    study          the folder that it lies in
    state          one of `run_state.STATES`; unreadable also if config.yaml or result.json cannot be read
    detail         a failed run's error, or why a run is waiting
    problem        which of its files could not be read, and why
    <setting>      every key of config.yaml: `batch_size`, `optim.lr`; `norm`, `model`, `data`, `optim` are names
    <measured>     everything else in result.json: `images_per_second`, `normalization_batch_size`, `torch`
    <metric>       its final metrics: `val/accuracy`
    """
    points: pd.DataFrame
    """One row per logged point: run, step, samples_seen, epoch, and one column per metric."""
    settings: list[str]
    """The columns of `runs` that come from config.yaml."""
    metrics: list[str]
    """The columns of `runs` that are final metrics."""


@dataclass
class _RunFiles:
    """What was read from one directory."""

    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    state: str = "unreadable"
    detail: str = ""
    problems: list[str] = field(default_factory=list)


def load(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(runs, points) of every run below `path`: one row per run, and one per logged point.

    `runs` has every setting of config.yaml by its key, `state`, what result.json measured, and the final
    metrics; `points` has run, step, samples_seen, epoch and one column per metric. `points.merge(runs, on="run")`
    joins them. A run with a file that cannot be read stays in `runs`, and its column `problem` names the file.
    Raises: ConfigError if there is no such folder, or no run in it.
    """
    records = read(Path(path))
    return records.runs, records.points


def read(root: Path) -> Records:
    """Every run below `root`. Raises: ConfigError if there is no such folder, or no run in it."""
    if not root.is_dir():
        raise ConfigError(f"{root} is not a folder; give the folder of a study, such as runs/batch_size.")
    directories = find_runs(root)
    if not directories:
        raise ConfigError(f"{root} has no runs in it; give a folder with runs of train.py below it.")
    queue = None
    files = []
    for directory in directories:
        one = _RunFiles(directory)
        launch, problem = read_launch(directory)
        one.problems += filter(None, [problem])
        if queue is None and (launch or {}).get("launcher") == "slurm":
            queue = read_queue() or {}
        _read_run(one, launch, queue or {})
        files.append(one)
    places = [one.directory.relative_to(root) if one.directory != root else root.name for one in files]
    names = [printable(str(place)) for place in places]
    points = _points_table(names, files)
    rows = [_row(name, one) for name, one in zip(names, files, strict=True)]
    settings = set(chain.from_iterable(one.settings for one in files)).difference(_OWN)
    measured = set(chain.from_iterable(one.measured for one in files))
    metrics = set(chain.from_iterable(one.metrics for one in files)).difference(_OWN, PLACE, settings, measured)
    return Records(root, pd.DataFrame(rows), points, sorted(settings), sorted(metrics))


def _row(name: str, one: _RunFiles) -> dict[str, Any]:
    own = {
        "run": name,
        "directory": printable(str(one.directory.resolve())),
        # config.yaml may have null, or the folder may have moved
        "study": printable(one.directory.resolve().parent.name),
        "state": one.state,
        "detail": one.detail,
        "problem": "; ".join(one.problems),
    }
    return {**one.metrics, **one.measured, **one.settings, **own}


def _read_run(one: _RunFiles, launch: dict[str, Any] | None, queue: Queue) -> None:
    one.settings = _settings(one, launch)
    result, result_problem = read_result(one.directory)
    one.points, log_problems = read_log(one.directory)
    one.problems += filter(None, [result_problem, *log_problems])
    foreign = not isinstance(one.settings.get("norm"), str)
    if foreign:
        one.settings.pop("norm", None)
        one.problems.append("no norm in config.yaml, so not a run of train.py")
    one.state, one.detail = state_of(one.directory, result, launch, queue)
    if foreign or (result_problem and one.state not in ("running", "queued")):
        one.state = "unreadable"
    if result is not None:
        one.metrics = result["metrics"]
        unsaid = ("status", "error", "traceback", "launch", "metrics")
        one.measured = {
            key: value
            for key, value in result.items()
            if key not in unsaid and (isinstance(value, str | bool) or is_number(value))
        }


def _settings(one: _RunFiles, launch: dict[str, Any] | None) -> dict[str, Any]:
    """config.yaml by key, `norm` for `norm.name`; if the run has not begun, what its name and overrides say."""
    held, problem = read_config(one.directory)
    if held is None and launch is None:
        problem = problem or "config.yaml is missing"
    one.problems += filter(None, [problem])
    settings = {key.removesuffix(".name"): value for key, value in flat_settings(held or {}).items()}
    return settings if held else _settings_before_begin(one.directory.name, launch)


def _settings_before_begin(name: str, launch: dict[str, Any] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    overrides = (launch or {}).get("overrides")
    for override in overrides if isinstance(overrides, list) else []:
        key, _, value = str(override).partition("=")
        try:
            settings[key.lstrip("+")] = parse_yaml(value)
        except (ValueError, yaml.YAMLError):
            continue
    settings = {key: flat_value(value) for key, value in settings.items() if not isinstance(value, dict | list)}
    if match := _RUN_NAME.fullmatch(name):
        numbers = dict(zip(("batch_size", "world_size", "virtual_ranks", "seed"), match.groups()[1:], strict=True))
        settings |= {"norm": match[1]} | {key: int(number or 1) for key, number in numbers.items()}
    return settings


def _points_table(names: list[str], files: list[_RunFiles]) -> pd.DataFrame:
    points = [point for one in files for point in one.points]
    tags = sorted(set(chain.from_iterable(points)) - {*PLACE, "run"})
    lengths = [len(one.points) for one in files]
    columns: dict[str, Any] = {
        "run": pd.Categorical.from_codes(np.repeat(np.arange(len(names)), lengths), names),
        **{key: np.array([p[key] for p in points], np.float64 if key == "epoch" else np.int64) for key in PLACE},
    }
    for tag in tags:
        columns[tag], whole = _numbers([point.get(tag) for point in points])
        if not whole:
            for one in files:
                if not _numbers([point.get(tag) for point in one.points])[1]:
                    one.problems.append(f"metrics.jsonl: {tag} is not always a number")
    return pd.DataFrame(columns)


def _numbers(values: list[Any]) -> tuple[NDArray[np.float64], bool]:
    """(values, with nan for null; whether each is a number or null)."""
    try:
        numbers = np.array(values, dtype=np.float64)
        if numbers.ndim == 1:  # it is 2 if all of them are lists
            return numbers, True
    except (TypeError, ValueError, OverflowError):
        pass
    return np.array([v if is_number(v) else np.nan for v in values], dtype=np.float64), False
