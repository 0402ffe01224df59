"""Read the files of a run, any of which may be missing, torn or foreign. Imports no torch.

Each reader returns what it could read and a description of what it could not, and raises nothing: one damaged
file must hide neither the rest of its run nor other runs.
"""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import yaml

ENDED = ("finished", "diverged", "failed")
"""The values of `status` in result.json."""

PLACE = ("step", "samples_seen", "epoch")
"""Where in a run a logged point lies."""

SIGNS_OF_LIFE = ("metrics.jsonl", "checkpoint.pt", "log.txt", "lock", "config.yaml", "launch.json", "result.json")
"""Files that a run writes, from its first moment on."""

MARKS = frozenset(("config.yaml", "launch.json", "metrics.jsonl", "result.json"))
"""A folder that holds one of these is a run's, even if it has lost its config.yaml."""

TAIL_BYTES = 1 << 16
MOST_NESTED = 50
"""Levels in a config.yaml. libyaml's loader recurses in C, so a few hundred thousand would end the process."""
_HASH = re.compile(r"-([0-9a-f]{8})$")
"""At the end of the name of a run's directory."""
_TOP_LEVEL = re.compile(r"^(?=[^\s#-])", re.MULTILINE)


def find_runs(root: Path) -> list[Path]:
    """The directories of runs below `root`, or `root` itself; and folders that cannot be read.

    Hidden folders below `root` hold no runs: the launcher's `.slurm` has a copy of normlab, with a config.yaml.
    """
    closed: list[Path] = []

    def note_closed(error: OSError) -> None:
        if isinstance(error, PermissionError):
            closed.append(Path(error.filename))

    runs: list[Path] = []
    for folder, below, files in os.walk(root, onerror=note_closed):
        below[:] = [name for name in below if not name.startswith(".")]
        if not MARKS.isdisjoint(files):
            runs.append(Path(folder))
    return sorted(runs + closed)


def open_file(path: Path) -> IO[bytes]:
    """Open for reading. Raises: OSError, also for a pipe, without waiting for a writer."""

    def open_if_file(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | os.O_NONBLOCK)
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # `open` itself refuses folders
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a file", name)
        return descriptor

    return open(path, "rb", opener=open_if_file)


def printable(text: str) -> str:
    """Escape what UTF-8 cannot hold: lone surrogates, such as Python puts into a file name that is not UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _parse_json(content: bytes) -> Any:
    """Raises: ValueError, RecursionError."""
    held = json.loads(content)
    may_hold_half_characters = b"\\u" in content or b"\xed" in content
    return _all_printable(held) if may_hold_half_characters else held


def _all_printable(held: Any) -> Any:
    if isinstance(held, str):
        return printable(held)
    if isinstance(held, list):
        return [_all_printable(one) for one in held]
    if isinstance(held, dict):
        return {printable(key): _all_printable(value) for key, value in held.items()}
    return held


def read_object(path: Path) -> tuple[dict[str, Any] | None, str]:
    """(the JSON object in `path`, what is wrong with it); (None, "") if there is no such file."""
    try:
        with open_file(path) as file:
            held = _parse_json(file.read())
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{path.name} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):  # ValueError: not JSON, not UTF-8, or an integer with too many digits
        return None, f"{path.name} is empty or damaged"
    if not isinstance(held, dict):
        return None, f"{path.name} is not one of normlab's"
    return held, ""


def read_result(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """(result.json, what is wrong with it); its `status` is one of ENDED, its `metrics` a dict of numbers, and its
    `hash`, if there is one, that of the directory's name."""
    result, problem = read_object(directory / "result.json")
    if result is None:
        return None, problem
    metrics = result.get("metrics")
    if result.get("status") not in ENDED or not isinstance(metrics, dict):
        return None, "result.json is not one of normlab's"
    if not all(is_number(value) for value in metrics.values()):
        return None, "result.json has metrics that are not finite numbers"
    own = _HASH.search(directory.name)
    if own and result.get("hash", own[1]) != own[1]:
        return None, f"result.json is that of run {result['hash']}"
    return result, ""


def trained_on(result: dict[str, Any], asked: str) -> str:
    """The types of device that a result was computed on, as in " on cpu"; "" if it names none.

    If those are not what `device=<asked>` asks for, the text says so.
    """
    devices = result.get("devices") or [result.get("device")]
    if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
        return ""
    kinds = list(dict.fromkeys(device.partition(":")[0] for device in devices))
    unlike = f", though device={asked}" if asked != "auto" and kinds != [asked] else ""
    return f" on {' and '.join(kinds)}{unlike}"


def read_launch(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """(launch.json, what is wrong with it); it names a launcher, and has what `announce` keeps for it."""
    launch, problem = read_object(directory / "launch.json")
    if launch is None:
        return None, problem
    kinds: dict[str, dict[str, type]] = {
        "local": {"host": str, "pid": int},
        "slurm": {"job_id": str, "submission": str},
    }
    launcher = launch.get("launcher")
    expected = kinds.get(launcher) if isinstance(launcher, str) else None
    if expected is None or not all(isinstance(launch.get(key), kind) for key, kind in expected.items()):
        return None, "launch.json is not one of normlab's"
    return launch, ""


def read_config(directory: Path) -> tuple[dict[str, Any] | None, str]:
    """(config.yaml, what is wrong with it)."""
    try:
        with open_file(directory / "config.yaml") as file:
            text = file.read().decode()
        held: dict[str, Any] = {}
        # One top-level key at a time, since the runs of a study share nearly all of theirs.
        for block in _TOP_LEVEL.split(text):
            parsed = parse_yaml(block)
            if not isinstance(parsed, dict | None):
                raise ValueError("not a mapping")
            held |= parsed or {}
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, yaml.YAMLError):
        return None, "config.yaml cannot be read"
    return (held, "") if held else (None, "config.yaml is empty")


def flat_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, str | bool | float]:
    """{"optim": {"name": "sgd", "lr": 0.1}} -> {"optim.name": "sgd", "optim.lr": 0.1}."""
    flat: dict[str, str | bool | float] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = flat_value(value)
    return flat


def flat_value(value: Any) -> str | bool | float:
    """null becomes "null", so that it differs from a missing key; lists and numbers beyond float become text."""
    if value is None:
        return "null"
    return value if isinstance(value, str | bool) or is_number(value) else str(value)


@lru_cache(maxsize=1 << 16)
def parse_yaml(text: str) -> Any:
    """The content of a YAML text, shared between calls: do not modify it. Raises: ValueError, YAMLError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_NESTED or isinstance(event, yaml.AliasEvent):  # a few aliases can stand for gigabytes
            raise ValueError("not a config.yaml of normlab's")
    return yaml.load(text, loader)


def read_log(directory: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(every intact point of metrics.jsonl, what is wrong with the others)."""
    try:
        with open_file(directory / "metrics.jsonl") as file:
            *lines, rest = file.read().split(b"\n")
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"metrics.jsonl cannot be read ({error.strerror})"]
    points, broken = read_points(lines)
    problems = []
    if broken:
        first = next(number for number, line in enumerate(lines, start=1) if read_points([line])[1])
        problems.append(f"metrics.jsonl: {broken} of {len(lines)} lines cannot be read, first line {first}")
    if rest:
        problems.append("metrics.jsonl: the last line is half written")
    return points, problems


def read_points(lines: list[bytes]) -> tuple[list[dict[str, Any]], int]:
    """(logged points, number of lines that are not one), from whole lines of metrics.jsonl."""
    try:  # all at once, which is several times faster than line by line
        held = _parse_json(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        held = None
    if held is None or len(held) != len(lines):  # a line may hold several
        held = [_line(line) for line in lines]
    points = [point for point in held if type(point) is dict and _has_place(point)]
    return points, len(lines) - len(points)


@dataclass(frozen=True)
class Progress:
    """How far a run is, from its last logged points."""

    samples_seen: int = 0
    score: float | None = None
    """val/accuracy, or val/miou, of the last evaluation."""
    images_per_second: float | None = None
    problem: str = ""
    """What could not be read."""

    def time_left_s(self, total_samples: int | None) -> float | None:
        """The estimate from the last point's speed, without evaluations."""
        if not total_samples or not self.images_per_second:
            return None
        return max(0, total_samples - self.samples_seen) / self.images_per_second


def read_progress(directory: Path) -> Progress:
    """Read the end of metrics.jsonl: its last 64 KiB hold the last evaluation, unless logging is very dense."""
    try:
        with open_file(directory / "metrics.jsonl") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")[1 if start else 0 : -1]  # first may be cut off, last unfinished
    except FileNotFoundError:  # not begun
        return Progress()
    except OSError as error:
        return Progress(problem=f"metrics.jsonl cannot be read ({error.strerror})")
    points, broken = read_points(lines)

    def last(tag: str) -> float | None:
        return next((p[tag] for p in reversed(points) if is_number(p.get(tag))), None)

    return Progress(
        samples_seen=points[-1]["samples_seen"] if points else 0,
        score=main_score(last),
        images_per_second=last("images_per_second"),
        problem=f"metrics.jsonl has {broken} damaged lines near its end" if broken else "",
    )


def main_score(metric: Callable[[str], float | None]) -> float | None:
    """A run's accuracy or mIoU, given a function from metric name to value."""
    accuracy = metric("val/accuracy")
    return metric("val/miou") if accuracy is None else accuracy


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer with several hundred digits
        return False


def _line(line: bytes) -> Any:
    try:
        return _parse_json(line)
    except (ValueError, RecursionError):
        return None


def _has_place(point: dict[str, Any]) -> bool:
    step, samples_seen, epoch = map(point.get, PLACE)
    whole = type(step) is int and type(samples_seen) is int and max(abs(step), abs(samples_seen)) < 1 << 63
    return whole and type(epoch) in (float, int) and is_number(epoch)
