"""Tables of the results: for the terminal, as Markdown, as CSV."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from normlab.markdown import escape, markdown_table
from normlab.report.cells import Axis, Cell, Value, describe, show, sort_key
from normlab.report.contrasts import Contrast, contrasts
from normlab.report.statistics import NO_PAIR, Difference, Estimate
from normlab.report.study import Study
from normlab.run_state import STATES

NOT_FINISHED = tuple(state for state in reversed(STATES) if state != "finished")
"""Runs in these states are counted in their cell but are not part of its mean."""
IN_WORDS = "mean ± 95 percent interval over n seeds (Student t)"


@dataclass(frozen=True)
class Grid:
    """A table with one row per series and one column per value of `x`."""

    title: str
    x: Axis
    columns: list[str]
    """Their headings: "batch_size=4"."""
    rows: list[list[str]]
    """Each begins with the name of its series."""


def grids(study: Study, metric: str, x: Axis, baseline: str | None) -> list[Grid]:
    """One table per combination of the other swept keys, followed by those of the differences."""
    made = _facet_grids(
        study, f"{metric}, {IN_WORDS}", x, study.cells, lambda cell: _result(cell, metric, cell.estimate(metric))
    )
    for contrast in contrasts(study, baseline):
        differences = contrast.differences(metric)
        made += _facet_grids(
            study, contrast.title(metric), x, list(differences), _differences_in_words(differences)
        )
    return made


def _differences_in_words(differences: Mapping[Cell, Difference]) -> Callable[[Cell], str]:
    return lambda cell: _number(differences[cell], differences[cell].p_holm)


def _facet_grids(
    study: Study, title: str, x: Axis, cells: list[Cell], text: Callable[[Cell], str], unsaid: Axis = ""
) -> list[Grid]:
    made = []
    for facet in study.facets(x):
        chosen = [cell for cell in cells if study.facet(cell, x) == facet]
        if not chosen:
            continue
        values = sorted({cell.value(x) for cell in chosen}, key=lambda value: (value is None, sort_key(value)))
        rows: dict[str, dict[object, str]] = {}
        for cell in chosen:
            rows.setdefault(series_against(cell, x), {})[cell.value(x)] = text(cell)
        place = describe({axis: value for axis, value in facet if axis != unsaid})
        made.append(
            Grid(
                f"{title}; {place}".removesuffix("; "),
                x,
                [f"without {x}" if value is None else f"{x}={show(value)}" for value in values],
                [[name, *(row.get(value, _absent(row, value)) for value in values)] for name, row in rows.items()],
            )
        )
    return made


def _absent(row: Mapping[object, str], value: Value) -> str:
    """A norm without the key x has a separate column, so empty fields are not missing runs."""
    return "" if value is None or None in row else "missing"


def series_against(cell: Cell, x: Axis) -> str:
    """A cell's series along the axis `x`: without `x` itself, if that is one of the norm's keys."""
    if not x.startswith("norm."):
        return cell.series
    return Cell(cell.norm, tuple((a, v) for a, v in cell.variant if a != x), ()).series


def _result(cell: Cell, metric: str, found: Estimate) -> str:
    words = [_number(found)] if found.n else []
    counts = cell.states
    words += [f"{counts[state]} {state}" for state in NOT_FINISHED if counts[state]]
    if without := counts["finished"] - found.n:
        words.append(f"{without} without {metric}")
    return ", ".join(words)


def _number(found: Estimate, p: float = math.nan) -> str:
    if found.n == 0:
        return "no pair"
    if found.n == 1:
        return f"{decimals(found.mean)} (n=1, no interval)"
    chance = "" if math.isnan(p) else ", p<0.001" if p < 0.001 else f", p={p:.2g}"
    return f"{decimals(found.mean)} ± {decimals(found.half_width, like=found.mean)} (n={found.n}{chance})"


def decimals(value: float, like: float | None = None) -> str:
    """Four places below 10, as accuracies need, fewer above; if `like` is given, as many as for that."""
    size = abs(value if like is None else like)
    places = 4 if size < 10 else 2 if size < 100 else 1
    return f"{value:.{places}f}"


def cells_table(study: Study, metrics: list[str], baseline: str | None) -> pd.DataFrame:
    """The content of tables.csv: one row per cell and metric. An interval that does not exist is empty."""
    rows = []
    compared = contrasts(study, baseline)
    for metric in metrics:
        differences = [(contrast, contrast.differences(metric)) for contrast in compared]
        for cell in study.cells:
            found, states = cell.estimate(metric), cell.states
            row = {
                "metric": metric,
                "norm": cell.norm,
                **{axis: cell.value(axis) for axis in study.axes},
                "normalization_batch_size": cell.nbs,
                "n": found.n,
                "mean": found.mean,
                "low": found.low,
                "high": found.high,
                **{state: states[state] for state in NOT_FINISHED},
            }
            for contrast, of in differences:
                row |= _difference_columns(contrast, of.get(cell, NO_PAIR))
            rows.append(row)
    return pd.DataFrame(rows)


def _difference_columns(contrast: Contrast, found: Difference) -> dict[str, float]:
    """The columns of one difference; those between studies have longer names."""
    before, after = (f"{contrast.label} ", contrast.label) if contrast.of else ("", "minus")
    return {
        contrast.label: found.mean,
        f"{after} low": found.low,
        f"{after} high": found.high,
        f"{before}pairs": found.n,
        f"{before}p": found.p,
        f"{before}p_holm": found.p_holm,
    }


def runs_table(study: Study) -> pd.DataFrame:
    """The content of runs.csv: one row per run."""
    measured = ("normalization_batch_size", "global_batch_size", "model", "data", "epochs", "samples_seen")
    machine = ("images_per_second", "wall_s", "device", "device_name", "precision", "torch", "hash")
    wanted = [
        "run",
        "state",
        "norm",
        *study.axes,
        "batch_size",
        "seed",
        *measured,
        *machine,
        *study.final_metrics,
        "problem",
    ]
    return study.runs[[key for key in dict.fromkeys(wanted) if key in study.runs]]


def as_markdown(grid: Grid) -> str:
    columns, *rows = ([escape(cell) for cell in row] for row in [["norm", *grid.columns], *grid.rows])
    return f"**{escape(grid.title)}**\n\n{markdown_table(columns, rows)}"


def as_list(text: str, names: Sequence[str]) -> str:
    """A finding as Markdown."""
    return "\n".join([escape(text), *(f"- {_code(name)}" for name in names)]) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if re.fullmatch(r"[\w .,:;=+/()'-]*", text) else escape(text)
