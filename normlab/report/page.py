"""The study as one HTML file that needs no network: interactive figures, sortable tables, every run.

page.html, page.css and page.js are beside this file; here they are joined with Plotly and the study's data.
"""

import base64
import html
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from normlab.atomic import atomic_write
from normlab.report.contrasts import contrasts
from normlab.report.curves import curve_of
from normlab.report.findings import Finding
from normlab.report.panels import possible_range
from normlab.report.race import Record, table, verdict
from normlab.report.statistics import Difference, Estimate
from normlab.report.study import Study, study_axes
from normlab.report.style import style_of
from normlab.report.tables import NOT_FINISHED
from normlab.run_files import open_file

MOST_CURVE_VALUES = 300_000
"""The most values in one page, so that a thousand runs take less than 10 MB."""
MOST_LOG_CHARACTERS = 600_000
HERE = Path(__file__).parent


def write_page(study: Study, metric: str, baseline: str | None, found: list[Finding], out: Path) -> str:
    """Write index.html into `out`. Returns its size, and what was left out of it."""
    from plotly.offline import get_plotlyjs

    data = page_data(study, metric, baseline, found, out)
    parts = {
        "title": html.escape(study.title),
        "race": _race_section(study.race, out / "figures" / "race.svg") if study.race is not None else "",
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "data": _inline_json(data),
        "js": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    pieces = (HERE / "page.html").read_text(encoding="utf-8").split("@@")  # text, key, text, key, ..., text
    page = "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))
    with atomic_write(out / "index.html") as file:
        file.write(page)
    return f"{len(page.encode()) / 1e6:.1f} MB" + (f", {data['thinned']}" if data["thinned"] else "")


def _race_section(race: Record, figure: Path) -> str:
    """The verdict, table, figure and decisions of a race. `figure` was drawn before."""

    def row(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    columns, rows = table(race)
    picture = base64.b64encode(figure.read_bytes()).decode()
    decisions = "".join(f"<li>{html.escape(line)}</li>" for line in race["decisions"])
    return (
        f'<section id="race">\n<h2>Race</h2>\n<p>{html.escape(verdict(race))}</p>\n'
        f"<table>{row(columns, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>\n"
        f'<img src="data:image/svg+xml;base64,{picture}" alt="rates, accuracies, differences">\n'
        f"<details><summary>{len(race['decisions'])} decisions</summary><ol>{decisions}</ol></details>\n</section>"
    )


def page_data(study: Study, metric: str, baseline: str | None, found: list[Finding], out: Path) -> dict[str, Any]:
    """The data that page.js shows. Links are relative to `out`, so that the study can be moved as a whole."""
    metrics = study.shown_metrics(metric)
    curves, thinned = _curves(study, [tag for tag in metrics if tag in study.points])
    if len(metrics) < len(study.metrics):
        thinned = "; ".join(filter(None, [f"{len(metrics)} of {len(study.metrics)} metrics shown", thinned]))
    axes = list(dict.fromkeys([*study.axes, *study_axes(study)]))
    rows = study.rows
    settings = {row["run"]: {k: row[k] for k in study.settings if k in row and row[k] == row[k]} for row in rows}
    common = _common(settings.values())
    log_characters = min(4000, MOST_LOG_CHARACTERS // len(rows))
    series = {run["run"]: cell.series for cell in study.cells for run in cell.runs}
    return {
        "metric": metric,
        "metrics": metrics,
        "possible": {tag: [_rounded(end) for end in possible_range(tag)] for tag in metrics},
        "contrasts": [one.label for one in contrasts(study, baseline)],
        "axes": study.axes,
        "x": study_axes(study),
        "states": NOT_FINISHED,
        "thinned": thinned,
        "findings": [{"text": one.text, "names": list(one.names)} for one in found],
        "styles": {norm: [(s := style_of(norm)).colour, s.symbol] for norm in {c.norm for c in study.cells}},
        "cells": _cells(study, metrics, baseline),
        "common": {key: _shown(value) for key, value in common.items()},
        "grids": curves["grids"],
        "runs": [
            {
                "name": row["run"],
                "series": series.get(row["run"]),
                "norm": _shown(row.get("norm")),
                "seed": _shown(row.get("seed")),
                "state": row["state"],
                "detail": "; ".join(filter(None, [row["detail"], row["problem"]])),
                "at": {axis: _shown(row.get(axis)) for axis in axes},
                "values": {tag: _rounded(row.get(tag)) for tag in metrics},
                "settings": {k: _shown(v) for k, v in settings[row["run"]].items() if k not in common},
                "curves": curves["of"].get(row["run"], {}),
                "log": _tail(Path(row["directory"]), log_characters),
                "href": quote(os.path.relpath(row["directory"], out.resolve())),
            }
            for row in rows
        ],
    }


def _cells(study: Study, metrics: list[str], baseline: str | None) -> list[dict[str, Any]]:
    compared = contrasts(study, baseline)
    differences = {tag: [contrast.differences(tag) for contrast in compared] for tag in metrics}
    axes = list(dict.fromkeys([*study.axes, *study_axes(study)]))
    made = []
    for cell in study.cells:
        states = cell.states
        made.append(
            {
                "norm": cell.norm,
                "series": cell.series,
                "at": {axis: _shown(value) for axis in axes if (value := cell.value(axis)) is not None},
                "nbs": _rounded(cell.nbs),
                "states": {state: states[state] for state in NOT_FINISHED if states[state]},
                "estimates": {tag: _estimate(cell.estimate(tag)) for tag in metrics},
                "differences": [
                    {tag: _difference(of[place][cell]) for tag, of in differences.items() if cell in of[place]}
                    for place in range(len(compared))
                ],
            }
        )
    return made


def _estimate(found: Estimate) -> list[float | None]:
    return [found.n, _rounded(found.mean), _rounded(found.half_width)]


def _difference(found: Difference) -> list[float | None]:
    return [*_estimate(found), _rounded(found.p_holm)]


def _curves(study: Study, tags: list[str]) -> tuple[dict[str, Any], str]:
    """Each run's curves as {tag: [grid, values]}, where grid is an index into `grids`, which runs share.

    If there are too many points, every curve keeps equally many, evenly spaced, including its first and last.
    """
    found = {
        (run, tag): curve
        for run in study.points["run"].unique()
        for tag in tags
        if (curve := curve_of(study, run, tag)) is not None
    }
    most = max(10, MOST_CURVE_VALUES // max(1, len(found)))
    longest = max((len(values) for _, values in found.values()), default=0)
    grids: dict[tuple[int, ...], int] = {}
    of: dict[str, dict[str, Any]] = {}
    for (run, tag), (samples_seen, values) in found.items():
        if len(values) > most:
            kept = np.linspace(0, len(values) - 1, most).round().astype(int)
            samples_seen, values = samples_seen[kept], values[kept]
        grid = grids.setdefault(tuple(samples_seen.astype(int).tolist()), len(grids))
        of.setdefault(run, {})[tag] = [grid, [float(f"{value:.4g}") for value in values.tolist()]]
    thinned = f"curves thinned to {most} of up to {longest} points" if longest > most else ""
    return {"grids": [list(grid) for grid in grids], "of": of}, thinned


def _common(settings: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The settings that all runs share, ignoring runs that have not begun, whose settings are mostly unknown."""
    begun = [one for one in settings if "model" in one and "optim" in one]
    if not begun:
        return {}
    first, *others = begun
    return {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}


def _tail(directory: Path, characters: int) -> str:
    """The end of the run's log, beginning with a whole line."""
    try:
        with open_file(directory / "log.txt") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - characters))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text if size <= characters else text.partition("\n")[2]


def _shown(value: Any) -> Any:
    """A value that JSON can hold: missing ones are null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if not math.isfinite(value) else int(value) if value.is_integer() else value
    return value if isinstance(value, str | int | bool | None) else str(value)


def _rounded(value: Any) -> float | None:
    return float(f"{value:.6g}") if isinstance(value, float | int) and math.isfinite(value) else None


def _inline_json(data: Any) -> str:
    """JSON that can neither end the script element that contains it nor begin a tag or comment in it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")
