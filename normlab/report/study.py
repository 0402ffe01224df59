"""A study: its cells, the keys it sweeps, and the runs that are missing or doubtful."""

from collections import defaultdict
from dataclasses import Field, fields, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from normlab.config import Config, ConfigError
from normlab.config.schema import default_of
from normlab.config.section import SCHEMAS, Section
from normlab.report.cells import Axis, Cell, Value, plain_value, sort_key
from normlab.report.race import read_race
from normlab.report.reading import Records
from normlab.report.style import norm_order
from normlab.run import RESULTS_VERSION
from normlab.run_files import flat_value, is_number, printable

FIRST_AXES = ("study", "batch_size", "world_size", "virtual_ranks")
PREFERRED_METRICS = ("val/miou", "val/accuracy")
MOST_METRICS = 1000
"""The most that the page and TensorBoard show; tables.csv has all of them."""


class Study:
    """Runs grouped into cells, with everything a reader of their means has to know."""

    def __init__(self, *records: Records) -> None:
        self.root = records[0].root
        self.names: tuple[str, ...] = ()
        """The names of the studies, if several are compared."""
        if len(records) > 1:
            self.names = _names(records)
            records = _named_apart(records, self.names)
        self.race, self.race_problem = read_race(self.root) if len(records) == 1 else (None, "")
        """The race that its runs were trained for, if any."""
        runs = pd.concat([one.runs for one in records], ignore_index=True)
        self.points = pd.concat([one.points for one in records], ignore_index=True)
        self.points["run"] = self.points["run"].astype("category")
        self.settings = sorted(set().union(*(one.settings for one in records)))
        finals = set().union(*(one.metrics for one in records))
        lasts = [tag for tag in self.points.columns[4:] if tag not in runs]
        runs = runs.join(self._last(lasts), on="run")
        if "results_version" in runs:
            runs["results_version"] = runs["results_version"].fillna(RESULTS_VERSION)
        self.runs = runs
        self.final_metrics = sorted(finals)
        self.measured = [key for key in ("images_per_second", "wall_s") if key in runs]
        self.metrics = self.final_metrics + self.measured + lasts
        self.axes = self._axes()
        self.duplicates: list[str] = []
        self.unplaced: list[str] = []
        self.cells = self._cells()

    @property
    def title(self) -> str:
        return " against ".join(self.names) or printable(self.root.resolve().name)

    def curve(self, run: str, tag: str) -> NDArray[Any]:
        """A column of `points`, restricted to one run."""
        begin, end = self._where.get(run, (0, 0))
        return self._columns[tag][begin:end]

    @cached_property
    def _columns(self) -> dict[Any, NDArray[Any]]:
        """`points` by column: slicing a DataFrame of thousands of columns takes milliseconds each time."""
        return {tag: column.to_numpy() for tag, column in self.points.items()}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """`runs` as dicts."""
        columns = {key: column.tolist() for key, column in self.runs.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    @cached_property
    def _where(self) -> dict[str, tuple[int, int]]:
        """The first and last row of each run in `points`, where its rows are contiguous."""
        counts = self.points["run"].value_counts(sort=False)
        order = self.points["run"].drop_duplicates().tolist()
        ends = np.cumsum([counts[run] for run in order]).tolist()
        return {run: (end - int(counts[run]), end) for run, end in zip(order, ends, strict=True)}

    def _last(self, tags: list[str]) -> pd.DataFrame:
        """For each run, the last value of the curves that are not final metrics."""
        return self.points.groupby("run", observed=True)[tags].last()

    def _axes(self) -> list[Axis]:
        """The swept keys: those that change a result and take several values within one norm.

        A key is not swept if its section's name implies it (model.depth beside model), or if it has a single value
        in each study, or for each norm and batch size. The study itself and results_version count as swept keys
        if there are several.
        """
        runs = self.runs
        kept = [key for key in self.settings if key not in {"norm", "seed"} and key not in NOT_OF_IDENTITY]
        swept = [key for key in ("study", "results_version") if key in runs and runs[key].nunique() > 1]
        apart: list[str] = [key for key in ("norm", "study") if key in runs and (key == "norm" or key in swept)]
        for key in kept:
            section = key.rpartition(".")[0]
            by = list(apart)
            if section in runs and section != "norm":
                by.append(section)
            if by and (runs.groupby(by)[key].nunique() > 1).any():
                swept.append(key)
        first = [axis for axis in FIRST_AXES if axis in swept]
        own = [axis for axis in swept if axis.startswith("norm.")]
        more = [key for key in swept if key not in (*first, *own)]
        if "norm" in runs and first:
            # A rate tuned for each norm and batch size is not an axis: no two norms would share a value.
            cells = runs.groupby(["norm", *first, *own], dropna=False)
            more = [key for key in more if (cells[key].nunique() > 1).any()]
        return first + sorted(own + more)

    def _norms_that_sweep(self, key: Axis) -> set[Value]:
        """The norms that have several values of one of the norms' own keys, within one study."""
        several = self.runs.groupby([axis for axis in ("norm", "study") if axis in self.runs])[key].nunique() > 1
        return set(several[several].index.get_level_values("norm"))

    def _cells(self) -> list[Cell]:
        shared = [axis for axis in self.axes if not axis.startswith("norm.")]
        own = {axis: self._norms_that_sweep(axis) for axis in self.axes if axis not in shared}
        groups: dict[tuple[str, tuple[tuple[Axis, Value], ...]], dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in self.rows:
            run = {key: value for key, value in row.items() if value == value}
            if not ({"norm", "seed", *shared} <= run.keys() and is_number(run["seed"]) and run["seed"] % 1 == 0):
                self.unplaced.append(run["run"])
                continue
            run["seed"] = int(run["seed"])
            axes = [axis for axis in self.axes if axis in shared or run["norm"] in own[axis]]
            at = tuple((axis, plain_value(run[axis])) for axis in axes if axis in run)
            seeds = groups[run["norm"], at]
            if (other := seeds.get(run["seed"])) is not None:
                kept = max(other, run, key=lambda one: (one["state"] == "finished", _written(one["directory"])))
                self.duplicates.append(f"{other['run']} and {run['run']}: {kept['run']} is counted")
                run = kept
            seeds[run["seed"]] = run
        cells = [
            Cell(norm, at, tuple(seeds[seed] for seed in sorted(seeds))) for (norm, at), seeds in groups.items()
        ]
        return sorted(cells, key=lambda cell: (norm_order(cell.norm), [(a, sort_key(v)) for a, v in cell.at]))

    @cached_property
    def missing(self) -> list[str]:
        """Runs of the grid that have not begun. Within each study, the grid is every variant of every norm, at
        every combination of the other keys that any norm has, with every seed."""
        studies: dict[Value, list[Cell]] = defaultdict(list)
        for cell in self.cells:
            studies[cell.values.get("study")].append(cell)
        return [
            name for _, cells in sorted(studies.items(), key=lambda s: sort_key(s[0])) for name in _missing(cells)
        ]

    def shown_metrics(self, metric: str) -> list[str]:
        """`metrics`; if there are more than MOST_METRICS, `metric` and the first others."""
        if len(self.metrics) <= MOST_METRICS:
            return self.metrics
        return list(dict.fromkeys([metric, *self.metrics]))[:MOST_METRICS]

    def default_metric(self) -> str:
        """The runs' sweep_metric if they have it, else mIoU, else accuracy, else the first there is."""
        if not self.metrics:
            raise ConfigError(
                f"no run below {self.root} has logged a metric yet; python -m launch.status shows their states."
            )
        named = list(self.runs["sweep_metric"].mode()) if "sweep_metric" in self.runs else []
        preferred = [metric for metric in (*named, *PREFERRED_METRICS) if metric in self.metrics]
        return (preferred or self.metrics)[0]

    def check_metric(self, metric: str) -> None:
        """Raises: ConfigError, which lists the existing metrics."""
        if metric not in self.metrics:
            raise ConfigError(f"metric={metric} is not in these runs; they have {', '.join(self.metrics)}.")

    def check_axis(self, x: Axis) -> None:
        """Raises: ConfigError, which lists the swept keys."""
        if x not in (*self.axes, "batch_size"):
            raise ConfigError(f"x={x} is not swept in these runs; swept are {', '.join(self.axes) or 'no keys'}.")

    def baseline(self, name: str | None) -> str | None:
        """The series to compare with: the one of that name, or the first of that norm; by default bn, if present.

        Raises: ConfigError, which lists the existing series.
        """
        series = list(dict.fromkeys(cell.series for cell in self.cells))
        chosen = [one for one in series if one == (name or "bn") or one.split(" ")[0] == (name or "bn")]
        if not chosen and name:
            raise ConfigError(f"baseline={name} is not in these runs; they have {', '.join(series)}.")
        return chosen[0] if chosen else None

    def facets(self, x: Axis) -> list[tuple[tuple[Axis, Value], ...]]:
        """Every combination of the swept keys other than `x` and the norms' own."""
        found = {self.facet(cell, x) for cell in self.cells}
        return sorted(found, key=lambda facet: [(axis, sort_key(value)) for axis, value in facet])

    @staticmethod
    def facet(cell: Cell, x: Axis) -> tuple[tuple[Axis, Value], ...]:
        return tuple((axis, value) for axis, value in cell.at if axis != x and not axis.startswith("norm."))


def _written(directory: str) -> float:
    try:
        return (Path(directory) / "result.json").stat().st_mtime
    except OSError:
        return 0.0


def _missing(cells: list[Cell]) -> list[str]:
    """The missing runs of one study."""
    there = {(*_place(cell), run["seed"]) for cell in cells for run in cell.runs}
    series = dict.fromkeys((cell.norm, cell.variant) for cell in cells)
    others = sorted({_place(cell)[2] for cell in cells}, key=lambda at: [sort_key(value) for _, value in at])
    seeds = sorted({run["seed"] for cell in cells for run in cell.runs})
    return [
        Cell(norm, (*other, *variant), ()).name(seed=seed)
        for norm, variant in series
        for other in others
        for seed in seeds
        if (norm, variant, other, seed) not in there
    ]


def _place(cell: Cell) -> tuple[str, tuple[tuple[Axis, Value], ...], tuple[tuple[Axis, Value], ...]]:
    """(norm, its own keys, all other keys but results_version)."""
    own = tuple(axis for axis, _ in cell.variant)
    return cell.norm, cell.variant, cell.without("results_version", *own)


def _names(records: tuple[Records, ...]) -> tuple[str, ...]:
    names = tuple(printable(one.root.resolve().name) for one in records)
    return names if len(set(names)) == len(names) else tuple(printable(str(one.root)) for one in records)


def _named_apart(records: tuple[Records, ...], names: tuple[str, ...]) -> tuple[Records, ...]:
    """Several studies, each run's name prefixed with its study's, since two may have runs of the same name."""
    apart = []
    for name, one in zip(names, records, strict=True):
        runs = one.runs.assign(run=name + "/" + one.runs["run"], study=name)
        points = one.points.assign(
            run=one.points["run"].cat.rename_categories(lambda run, name=name: f"{name}/{run}")
        )
        apart.append(replace(one, runs=runs, points=points))
    return tuple(apart)


def _schema() -> list[tuple[str, "Field[Any]"]]:
    """Every key of every section, with its field."""
    sections: list[type[Section]] = [Config, *chain.from_iterable(s.values() for s in SCHEMAS.values())]
    return [
        (f"{section.group}.{spec.name}" if section.group else spec.name, spec)
        for section in sections
        for spec in fields(section)
    ]


NOT_OF_IDENTITY = frozenset(key for key, spec in _schema() if not spec.metadata.get("identity", True))
"""Keys that change no result, according to the schema."""


def _defaults() -> dict[str, list[Value]]:
    found: dict[str, list[Value]] = defaultdict(list)
    for key, spec in _schema():
        found[key].append(flat_value(default_of(spec)))
    return found


DEFAULTS = _defaults()
"""The defaults of each key, written as runs have them; a key may have another in each section."""


def study_axes(study: Study) -> list[Axis]:
    """The keys that tables and figures are drawn along: the swept ones, except those that only separate panels.
    If there is none, the batch size."""
    return [axis for axis in study.axes if axis not in ("study", "results_version")] or ["batch_size"]
