"""A cell's learning curves, at equal samples_seen."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from normlab.report.cells import Cell
from normlab.report.study import Study

MOST_POINTS = 60
"""Points in a drawn curve; one with more is drawn as means over this many stretches of samples_seen."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeanCurve:
    samples_seen: Floats
    mean: Floats
    low: Floats
    """The lowest seed."""
    high: Floats


def curve_of(study: Study, run: str, tag: str) -> tuple[Floats, Floats] | None:
    """(samples_seen, values) of one run; None if it has not logged `tag`."""
    if tag not in study.points:
        return None
    values = study.curve(run, tag)
    there = np.isfinite(values)
    if not there.any():
        return None
    return study.curve(run, "samples_seen").astype(np.float64)[there], values[there]


def mean_curve(study: Study, cell: Cell, tag: str) -> MeanCurve | None:
    """Mean and range over the finished seeds, at the points where all of them have values.

    Seeds of one cell log at the same samples_seen, unless log_every was changed between them; then they are
    interpolated linearly.
    """
    curves = _curves(study, cell, tag, finished=True)
    if not curves:
        return None
    start, end = max(seen[0] for seen, _ in curves), min(seen[-1] for seen, _ in curves)
    grid = np.unique(np.concatenate([seen for seen, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    if not grid.size:
        return None
    stack = np.stack([np.interp(grid, seen, values) for seen, values in curves])
    grid, stack = _stretches(grid, stack)
    return MeanCurve(grid, stack.mean(0), stack.min(0), stack.max(0))


def _stretches(samples_seen: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means over at most MOST_POINTS equal stretches; `values` is (..., points)."""
    if len(samples_seen) <= MOST_POINTS:
        return samples_seen, values
    edges = np.linspace(samples_seen[0], samples_seen[-1], MOST_POINTS + 1)[1:-1]
    starts = np.unique(np.searchsorted(samples_seen, [samples_seen[0], *edges]))
    counts = np.diff([*starts, len(samples_seen)])
    return np.add.reduceat(samples_seen, starts) / counts, np.add.reduceat(values, starts, axis=-1) / counts


def unfinished_curves(study: Study, cell: Cell, tag: str) -> list[tuple[Floats, Floats]]:
    """Each one separately, as far as it got: they end at different points, where a mean would jump."""
    return [_stretches(*curve) for curve in _curves(study, cell, tag, finished=False)]


def _curves(study: Study, cell: Cell, tag: str, *, finished: bool) -> list[tuple[Floats, Floats]]:
    runs = [run["run"] for run in cell.runs if (run["state"] == "finished") == finished]
    return [curve for run in runs if (curve := curve_of(study, run, tag)) is not None]
