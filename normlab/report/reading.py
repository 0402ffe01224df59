"""Every run below a folder, as two tables; what could not be read is named with its run."""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from launch.squeue import Queue, read_queue
from launch.status import find_runs, state_of
from normlab.config import ConfigError

PLACE = ("step", "samples_seen", "epoch")
ENDED = ("finished", "diverged", "failed")
_RUN_NAME = re.compile(r"(.+?)-b(\d+)-w(\d+)(?:v(\d+))?-.*-s(\d+)-[0-9a-f]{8}")
_TOP_LEVEL = re.compile(r"^(?=[^\s#-])", re.MULTILINE)


@dataclass
class Records:
    """What stands below `root`."""

    root: Path
    runs: pd.DataFrame
    """A row a run, in the order of their names:

    run            its directory, relative to `root`
    directory      the same, absolute
    study          the folder that it lies in
    state          finished, diverged, failed, running, queued, waiting, stale (`launch.status`), or unreadable
    detail         a failed run's error, why it waits
    problem        what could not be read of it
    <setting>      every key of config.yaml: `batch_size`, `optim.lr`; `norm`, `model`, `data`, `optim` are names
    <measured>     what result.json has besides: `images_per_second`, `normalization_batch_size`, `torch`
    <metric>       its final metrics: `val/accuracy`
    """
    points: pd.DataFrame
    """A row a logged point: run, step, samples_seen, epoch, and a column a metric."""
    settings: list[str]
    """The columns of `runs` that come from config.yaml."""
    metrics: list[str]
    """The columns of `runs` that are final metrics."""


@dataclass
class _RunFiles:
    """One directory, read."""

    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    state: str = "unreadable"
    detail: str = ""
    problems: list[str] = field(default_factory=list)


def load(path: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(runs, points) of every run below `path`: a row a run, and a row a logged point.

    `runs` has every setting of config.yaml by its key, `state`, what result.json measured, and the final
    metrics; `points` has run, step, samples_seen, epoch and a column a metric. `points.merge(runs, on="run")`
    joins them. A file that cannot be read leaves its run in `runs`, named in the column `problem`.
    Raises: ConfigError where there is no such folder, or no run in it.
    """
    records = read(Path(path))
    return records.runs, records.points


def read(root: Path) -> Records:
    """Every run below `root`. Raises: ConfigError where there is no such folder, or no run in it."""
    if not root.is_dir():
        raise ConfigError(f"{root} is no folder; give a study's, as runs/batch_size.")
    directories = find_runs(root)
    if not directories:
        raise ConfigError(f"{root} has no runs in it; give a folder below which train.py has kept some.")
    queue = None
    files = []
    for directory in directories:
        launch = _launch(directory)
        if queue is None and (launch or {}).get("launcher") == "slurm":
            queue = read_queue() or {}
        files.append(_read_run(directory, launch, queue or {}))
    names = [str(one.directory.relative_to(root)) if one.directory != root else root.name for one in files]
    points = _points_table(names, files)
    rows = [_row(name, one) for name, one in zip(names, files, strict=True)]
    return Records(
        root,
        pd.DataFrame(rows),
        points,
        sorted(set(chain.from_iterable(one.settings for one in files))),
        sorted(set(chain.from_iterable(one.metrics for one in files))),
    )


def _row(name: str, one: _RunFiles) -> dict[str, Any]:
    own = {
        "run": name,
        "directory": str(one.directory.resolve()),
        "study": one.directory.resolve().parent.name,  # of config.yaml it may be null, or moved since
        "state": one.state,
        "detail": one.detail,
        "problem": "; ".join(one.problems),
    }
    return own | {k: v for k, v in (one.settings | one.measured | one.metrics).items() if k not in own}


def _read_run(directory: Path, launch: dict[str, Any] | None, queue: Queue) -> _RunFiles:
    one = _RunFiles(directory)
    one.settings = _settings(one, launch)
    result = _result(one)
    one.points = _points(one)
    foreign = "norm" not in one.settings
    if foreign:
        one.problems.append("no norm in config.yaml, so no run of train.py")
    if result is not None:
        one.metrics = {tag: value for tag, value in result.pop("metrics", {}).items() if _is_number(value)}
    try:
        one.state, one.detail = state_of(directory, result, launch, queue)
    except (KeyError, TypeError):
        one.problems.append("launch.json or result.json is not one of normlab's")
    result_is_broken = result is None and any(p.startswith("result.json") for p in one.problems)
    if foreign or (result_is_broken and one.state == "stale"):
        one.state = "unreadable"
    unsaid = ("status", "error", "traceback", "launch")
    one.measured = {
        key: value
        for key, value in (result or {}).items()
        if key not in unsaid and not isinstance(value, dict | list)
    }
    return one


def _settings(one: _RunFiles, launch: dict[str, Any] | None) -> dict[str, Any]:
    """config.yaml, flat; of a run that has not begun, what its name and its overrides say."""
    path = one.directory / "config.yaml"
    try:
        held = _parse_blocks(path.read_text())
    except FileNotFoundError:
        held = None
        if launch is None:
            one.problems.append("config.yaml is missing")
    except (OSError, ValueError, yaml.YAMLError):
        held = None
        one.problems.append("config.yaml cannot be read")
    else:
        if not held:
            one.problems.append("config.yaml is empty")
    return _flat(held) if held else _settings_before_begin(one.directory.name, launch)


def _parse_blocks(text: str) -> dict[str, Any]:
    """A YAML mapping, parsed a top-level key at a time, since the runs of a study share nearly all of theirs."""
    held: dict[str, Any] = {}
    for block in _TOP_LEVEL.split(text):
        parsed = _parse_block(block)
        if not isinstance(parsed, dict | None):
            raise ValueError(block)
        held |= parsed or {}
    return held


@lru_cache(maxsize=1 << 16)
def _parse_block(block: str) -> Any:
    return yaml.load(block, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _settings_before_begin(name: str, launch: dict[str, Any] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    overrides = (launch or {}).get("overrides")
    for override in overrides if isinstance(overrides, list) else []:
        key, _, value = str(override).partition("=")
        try:
            settings[key.lstrip("+")] = _parse_block(value)
        except yaml.YAMLError:
            continue
    settings = {key: value for key, value in settings.items() if not isinstance(value, dict | list)}
    if match := _RUN_NAME.fullmatch(name):
        numbers = dict(zip(("batch_size", "world_size", "virtual_ranks", "seed"), match.groups()[1:], strict=True))
        settings |= {"norm": match[1]} | {key: int(number or 1) for key, number in numbers.items()}
    return settings


def _flat(held: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"name": "sgd", "lr": 0.1}} -> {"optim": "sgd", "optim.lr": 0.1}; null is the word, to differ
    from a key that a run does not have."""
    flat: dict[str, Any] = {}
    for key, value in held.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            known = "null" if value is None else str(value) if isinstance(value, list) else value
            flat[f"{prefix}{key}".removesuffix(".name")] = known
    return flat


def _launch(directory: Path) -> dict[str, Any] | None:
    try:
        launch = json.loads((directory / "launch.json").read_text())
    except (OSError, ValueError):  # it says who trains the run, nothing of what was trained
        return None
    return launch if isinstance(launch, dict) else None


def _result(one: _RunFiles) -> dict[str, Any] | None:
    try:
        result = json.loads((one.directory / "result.json").read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        one.problems.append("result.json cannot be read")
        return None
    if isinstance(result, dict) and result.get("status") in ENDED and isinstance(result.get("metrics"), dict):
        return result
    one.problems.append("result.json is not one of normlab's")
    return None


def _points(one: _RunFiles) -> list[dict[str, Any]]:
    try:
        *lines, rest = (one.directory / "metrics.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError:
        one.problems.append("metrics.jsonl cannot be read")
        return []
    try:
        points = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        points = [_line(line) for line in lines]
    whole = [p for p in points if type(p) is dict and _has_place(p)]
    if len(whole) < len(points):
        one.problems.append(f"metrics.jsonl: {len(points) - len(whole)} of {len(points)} lines cannot be read")
    if rest:
        one.problems.append("metrics.jsonl: the last line is half written")
    return whole


def _has_place(point: dict[str, Any]) -> bool:
    whole = type(point.get("step")) is int and type(point.get("samples_seen")) is int
    return whole and type(point.get("epoch")) in (float, int)


def _line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _points_table(names: list[str], files: list[_RunFiles]) -> pd.DataFrame:
    points = [point for one in files for point in one.points]
    tags = sorted(set(chain.from_iterable(points)) - {*PLACE, "run"})
    lengths = [len(one.points) for one in files]
    columns: dict[str, Any] = {
        "run": pd.Categorical.from_codes(np.repeat(np.arange(len(names)), lengths), names),
        **{key: np.array([point[key] for point in points], dtype=np.float64) for key in PLACE},
    }
    for tag in tags:
        values = [point.get(tag) for point in points]
        try:
            columns[tag] = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            columns[tag] = np.array([v if _is_number(v) else np.nan for v in values], dtype=np.float64)
            for one in files:
                if any(p.get(tag) is not None and not _is_number(p[tag]) for p in one.points):
                    one.problems.append(f"metrics.jsonl: {tag} is not always a number")
    table = pd.DataFrame(columns)
    return table.astype({"step": np.int64, "samples_seen": np.int64})
