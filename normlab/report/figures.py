"""Figures for paper and screen: PNG and SVG, one colour and marker per norm."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from normlab.atomic import atomic_write
from normlab.report.cells import Axis, Cell, show
from normlab.report.curves import MOST_POINTS, MeanCurve, mean_curve, unfinished_curves
from normlab.report.panels import (
    Scale,
    dash_of,
    draw_against,
    draw_published,
    is_accuracy,
    left_out,
    legend,
    limits_of,
    make_panels,
    scale_of,
)
from normlab.report.race import Record
from normlab.report.race_figure import draw_race
from normlab.report.study import Study, study_axes
from normlab.report.style import style_of
from normlab.report.tables import series_against

LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a setting or a norm's name is not a formula
    "svg.fonttype": "none",
    "svg.hashsalt": "normlab",
}


@dataclass(frozen=True)
class Drawn:
    """A figure and its caption."""

    name: str
    figure: Figure
    caption: str


def draw(study: Study, metric: str, *, paper: bool = True) -> Iterator[Drawn]:
    """Every figure of a study: against each swept key, over samples_seen, against speed.

    `paper`: the figure of accuracies against the batch size gets a panel with those of the GN paper.
    """
    if study.race is not None:
        yield of_race(study.race)
    for axis in study_axes(study):
        yield _drawn(against, study, metric, axis, paper)
    for tag in dict.fromkeys([metric, "train/loss"]):
        if tag in study.points:
            yield _drawn(learning_curves, study, tag)
    if "images_per_second" in study.metrics:
        yield _drawn(against_speed, study, metric)


def of_race(race: Record) -> Drawn:
    with matplotlib.rc_context(LOOK):
        return Drawn("race", *draw_race(race))


def _drawn(make: Callable[..., Drawn], *args: Any) -> Drawn:
    with matplotlib.rc_context(LOOK):
        return make(*args)


def save(drawn: Drawn, folder: Path) -> None:
    """<name>.png and <name>.svg in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = drawn.figure
    with matplotlib.rc_context(LOOK):
        # Written by each format's canvas: savefig would lay out and draw the figure twice more.
        with atomic_write(folder / f"{drawn.name}.png", "wb") as file:
            FigureCanvasAgg(figure).print_png(file)
        figure.set_layout_engine("none")
        with atomic_write(folder / f"{drawn.name}.svg", "wb") as file:
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})


def against(study: Study, metric: str, x: Axis, paper: bool = True) -> Drawn:
    """The metric against a swept key: one line per series, with intervals; other keys make panels.

    `paper`: if the batch size is swept, a panel beside its accuracies shows those of the GN paper.
    """
    scale = scale_of(study, metric)
    cells = study.cells
    published = paper and x == "batch_size" and x in study.axes and is_accuracy(metric)
    figure, panels, others = make_panels(study, x, also=int(published))
    limits = limits_of([cell.estimate(metric) for cell in cells], scale)
    for facet, panel in panels:
        draw_against(panel, [cell for cell in cells if study.facet(cell, x) == facet], scale, x, limits)
    panels[0][1].set_ylabel(scale.label)
    for panel in others:
        draw_published(panel)
    legend(figure, list(dict.fromkeys(series_against(cell, x) for cell in cells)))
    caption = f"{scale.label} against {x}: mean over seeds and its 95 percent interval (Student t)"
    caption += "; arrows: an interval goes on beyond the figure"
    caption += "; hollow: one seed, no interval; x above, with their number: diverged runs, in no mean"
    if published:
        caption += "; lighter: Wu & He 2018, arXiv:1803.08494, table 2, one run per point"
    return Drawn(_file_name(f"{metric}_vs_{x}"), figure, caption + left_out(study, x))


def learning_curves(study: Study, tag: str) -> Drawn:
    """The metric over samples_seen: one panel per combination of swept keys, all seeds within a band."""
    scale = scale_of(study, tag)
    every_key = ""  # no key is the axis, so every key makes panels
    figure, panels, _ = make_panels(study, every_key)
    series = list(dict.fromkeys(cell.series for cell in study.cells))
    curves = {cell: mean_curve(study, cell, tag) for cell in study.cells}
    limits = _curve_limits([curve for curve in curves.values() if curve is not None], scale)
    for facet, panel in panels:
        for cell in study.cells:
            if study.facet(cell, every_key) == facet:
                _draw_curves(panel, study, cell, curves[cell], scale, dash_of(series, cell.series))
        if limits is not None:
            panel.set_ylim(limits)
        panel.set_xlabel("samples seen")
        panel.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}")
    panels[0][1].set_ylabel(scale.label)
    legend(figure, series)
    caption = f"{scale.label} over samples seen: mean of the finished seeds, band from the lowest to the highest"
    caption += f" (curves of more than {MOST_POINTS} points are means over as many stretches)"
    caption += "; dotted: runs that diverged, or have not ended"
    return Drawn(_file_name(f"{tag}_curves"), figure, caption + left_out(study, every_key))


def _curve_limits(curves: list[MeanCurve], scale: Scale) -> tuple[float, float] | None:
    """The range of the finished runs' bands. Including a diverged run would flatten all others."""
    if not curves:
        return None
    ends = [scale.of(bound(values)) for c in curves for values in (c.low, c.high) for bound in (np.min, np.max)]
    margin = 0.05 * (max(ends) - min(ends)) or 0.05 * abs(ends[0]) or 1.0
    return scale.clip(min(ends) - margin), scale.clip(max(ends) + margin)


def _draw_curves(panel: Axes, study: Study, cell: Cell, curve: MeanCurve | None, scale: Scale, dash: str) -> None:
    style = style_of(cell.norm)
    if curve is not None:
        low, high = scale.of(curve.low), scale.of(curve.high)
        panel.fill_between(curve.samples_seen, low, high, color=style.colour, alpha=0.18, lw=0)
        every = max(1, len(curve.samples_seen) // 8)
        mean = scale.of(curve.mean)
        panel.plot(curve.samples_seen, mean, style.marker + dash, color=style.colour, ms=3.5, markevery=every)
    for samples_seen, values in unfinished_curves(study, cell, scale.metric):
        panel.plot(samples_seen, scale.of(values), ":", color=style.colour, lw=0.9)


def against_speed(study: Study, metric: str) -> Drawn:
    """The metric against images/s: one point per cell, joined in the order of the batch size."""
    scale = scale_of(study, metric)
    figure, panels, _ = make_panels(study, "batch_size")
    series = list(dict.fromkeys(cell.series for cell in study.cells))
    for facet, panel in panels:
        chosen = [cell for cell in study.cells if study.facet(cell, "batch_size") == facet]
        for name in series:
            _draw_speeds(panel, [cell for cell in chosen if cell.series == name], scale, dash_of(series, name))
        panel.set_xlabel("images/s")
    panels[0][1].set_ylabel(scale.label)
    legend(figure, series)
    devices = study.runs["device_name"].dropna().unique() if "device_name" in study.runs else []
    caption = (
        f"{scale.label} against images/s on {', '.join(map(str, devices)) or 'an unknown device'}, means over "
    )
    caption += "seeds; numbers are batch sizes; speeds are comparable only if each run had the machine to itself"
    return Drawn(_file_name(f"{metric}_vs_images_per_second"), figure, caption + left_out(study, "batch_size"))


def _draw_speeds(panel: Axes, cells: list[Cell], scale: Scale, dash: str) -> None:
    both = [(cell, cell.estimate("images_per_second"), cell.estimate(scale.metric)) for cell in cells]
    found = [(cell, speed.mean, reached.mean) for cell, speed, reached in both if speed.n and reached.n]
    for cell, speed, mean in found:
        if (batch := cell.values.get("batch_size")) is not None:
            beside: dict[str, Any] = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 7}
            panel.annotate(show(batch), (speed, scale.of(mean)), **beside)
    if found:
        style = style_of(cells[0].norm)
        speeds, means = [speed for _, speed, _ in found], [scale.of(mean) for *_, mean in found]
        panel.plot(speeds, means, style.marker + dash, color=style.colour, lw=0.7)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
