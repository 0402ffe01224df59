"""The parts of figures: panels, their axes, legends."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWN, CARETUP
from matplotlib.ticker import FixedLocator, NullLocator

from normlab.report.cells import Axis, Cell, Value, describe, show, sort_key
from normlab.report.published import GN_PAPER_ERROR_PERCENT
from normlab.report.statistics import Estimate
from normlab.report.study import Study
from normlab.report.style import Style, style_of
from normlab.report.tables import series_against

MOST_PANELS = 6
DPI = 150
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Scale:
    """How a metric is drawn: accuracies as errors in percent, anything else unchanged."""

    metric: str
    label: str
    of: Callable[[Any], Any]
    """From the metric, a number or an array, to what is drawn."""
    possible: tuple[float, float]
    """The range of what can be drawn."""

    def clip(self, value: float) -> float:
        return min(max(value, self.possible[0]), self.possible[1])


def scale_of(study: Study, metric: str) -> Scale:
    if not is_accuracy(metric):
        return Scale(metric, metric, lambda value: value, possible_range(metric))
    splits = set(study.runs.get("eval_split", [])) & {"val", "test"}
    split = metric.partition("/")[0]
    if split == "val" and splits == {"test"}:
        split = "test"  # without a held-out part, the curves call the test folder val
    return Scale(metric, f"{split} error, %", lambda accuracy: 100 * (1 - accuracy), (0.0, 100.0))


def is_accuracy(metric: str) -> bool:
    return metric.endswith("accuracy")


def possible_range(metric: str) -> tuple[float, float]:
    """The range of the metric itself."""
    name = metric.rpartition("/")[2]
    if is_accuracy(metric) or name == "miou" or "iou" in metric.split("/"):
        return 0.0, 1.0
    positive = name in ("loss", "images_per_second", "wall_s", "grad_norm", "lr")
    return (0.0 if positive else -math.inf), math.inf


def limits_of(found: Sequence[Estimate], scale: Scale) -> tuple[float, float] | None:
    """The range of the means, extended on both sides by their spread or the length of the typical interval.

    So an interval much wider than the others, as two seeds can give, does not flatten all of them.
    """
    means = [scale.of(one.mean) for one in found if one.n]
    if not means:
        return None
    halves = sorted(abs(scale.of(one.high) - scale.of(one.mean)) for one in found if one.n > 1)
    reach = max(max(means) - min(means), 2 * halves[(len(halves) - 1) // 2] if halves else 0)
    ends = [scale.of(end) for one in found if one.n > 1 for end in (one.low, one.high)] + means
    low = max(min(ends), min(means) - reach)
    high = min(max(ends), max(means) + reach)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return scale.clip(low - margin), scale.clip(high + margin)


def make_panels(study: Study, x: Axis, also: int = 0) -> tuple[Figure, list[tuple[Any, Axes]], list[Axes]]:
    """A figure with a titled panel per facet, on one scale, and `also` more panels with their own scales."""
    facets = study.facets(x)[:MOST_PANELS]
    count = len(facets) + also
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(4.8, 3.3 * columns), 2.9 * rows + 0.5), dpi=DPI, layout="constrained")
    panels: list[Axes] = []
    for place in range(count):
        shared = panels[0] if 0 < place < len(facets) else None
        panels.append(figure.add_subplot(rows, columns, place + 1, sharey=shared))
    for facet, panel in zip(facets, panels, strict=False):
        panel.set_title(describe(facet), loc="left", fontsize=9)
        if panel is not panels[0] and not panel.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            panel.tick_params(labelleft=False)
    return figure, list(zip(facets, panels, strict=False)), panels[len(facets) :]


def left_out(study: Study, x: Axis) -> str:
    count = len(study.facets(x))
    return f"; the first {MOST_PANELS} of {count} panels, the tables have all" if count > MOST_PANELS else ""


def legend(figure: Figure, series: Sequence[str]) -> None:
    lines = []
    for name in series:
        style = style_of(name.split(" ")[0])
        lines.append(Line2D([], [], color=style.colour, marker=style.marker, ls=dash_of(series, name), label=name))
    widest = max(4.8, figure.get_figwidth()) * 12
    columns = max(1, int(widest // (max(map(len, series)) + 6)))
    figure.legend(handles=lines, loc="outside upper center", ncols=min(len(lines), columns))


def dash_of(series: Sequence[str], name: str) -> str:
    """Series of one norm share its colour and marker; their dashes distinguish them."""
    of_norm = [other for other in series if other.split(" ")[0] == name.split(" ")[0]]
    return DASHES[of_norm.index(name) % len(DASHES)]


def draw_against(
    panel: Axes, cells: Sequence[Cell], scale: Scale, x: Axis, limits: tuple[float, float] | None
) -> None:
    """One line per series over the values of `x`; a norm that has no such key is a horizontal line."""
    for cell in cells:
        if cell.value(x) is None:
            _draw_across(panel, cell, scale)
    cells = [cell for cell in cells if cell.value(x) is not None]
    values = sorted({cell.value(x) for cell in cells}, key=sort_key)
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values)
    place = {v: math.log2(v) if numeric else float(i) for i, v in enumerate(values)}  # type: ignore[arg-type]
    series = list(dict.fromkeys(series_against(cell, x) for cell in cells))
    for index, name in enumerate(series):
        mine = sorted((c for c in cells if series_against(c, x) == name), key=lambda c: place[c.value(x)])
        style = style_of(mine[0].norm)
        shift = 0.05 * (index - (len(series) - 1) / 2) if len(place) > 1 else 0.0
        at = [place[cell.value(x)] + shift for cell in mine]
        found = [(where, e) for where, cell in zip(at, mine, strict=True) if (e := cell.estimate(scale.metric)).n]
        means = [scale.of(e.mean) for _, e in found]
        panel.plot([where for where, _ in found], means, dash_of(series, name), color=style.colour)
        for where, e in found:
            _draw_estimate(panel, where, e, scale, style, limits)
        for where, cell in zip(at, mine, strict=True):
            if gone := cell.states["diverged"]:
                _draw_diverged(panel, where, gone, style)
    panel.xaxis.set_major_locator(FixedLocator(list(place.values())))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels([show(v) for v in place])
    if limits is not None:
        panel.set_ylim(limits)
    panel.set_xlabel("batch size per rank" if x == "batch_size" else x)
    _nbs_axis(panel, cells, place, x)


def _draw_across(panel: Axes, cell: Cell, scale: Scale) -> None:
    found, style = cell.estimate(scale.metric), style_of(cell.norm)
    if found.n:
        panel.axhline(scale.of(found.mean), color=style.colour, ls="--")
    if found.n > 1:
        panel.axhspan(scale.of(found.low), scale.of(found.high), color=style.colour, alpha=0.12, lw=0)


def _draw_estimate(
    panel: Axes, where: float, found: Estimate, scale: Scale, style: Style, limits: tuple[float, float] | None
) -> None:
    """Hollow if a single seed gives no interval; with an arrow if the interval extends beyond the limits."""
    single = found.n == 1
    ends = sorted((scale.of(found.low), scale.of(found.high)))
    if limits is not None and not single:
        for at, cut, arrow in (
            (limits[0], ends[0] < limits[0], CARETDOWN),
            (limits[1], ends[1] > limits[1], CARETUP),
        ):
            if cut:
                panel.plot(where, at, ls="", marker=arrow, color=style.colour, ms=6, clip_on=False)
    half = None if single else abs(scale.of(found.high) - scale.of(found.low)) / 2
    panel.errorbar(
        where,
        scale.of(found.mean),
        yerr=half,
        fmt=style.marker,
        color=style.colour,
        mfc="white" if single else style.colour,
        capsize=2.5,
        elinewidth=1,
    )[0].set_clip_on(False)


def _draw_diverged(panel: Axes, where: float, count: int, style: Style) -> None:
    top = panel.get_xaxis_transform()
    panel.plot(where, 0.98, "x", color=style.colour, ms=6, mew=1.6, transform=top, clip_on=False)
    beside: dict[str, Any] = {"xytext": (4, -3), "textcoords": "offset points", "fontsize": 7}
    panel.annotate(str(count), (where, 0.98), xycoords=top, **beside)


def _nbs_axis(panel: Axes, cells: Sequence[Cell], place: dict[Value, float], x: Axis) -> None:
    """The normalization batch size of each series, above the panel: it is what distinguishes bn from syncbn."""
    norms_of: dict[tuple[float, ...], list[str]] = {}
    for name in dict.fromkeys(series_against(cell, x) for cell in cells):
        at = {cell.value(x): cell.nbs for cell in cells if series_against(cell, x) == name}
        nbs = tuple(at.get(value, math.nan) for value in place)
        if not all(map(math.isnan, nbs)):
            norms_of.setdefault(tuple(-1 if v != v else v for v in nbs), []).append(name)
    norms_of = {nbs: _shortened(names, cells, x) for nbs, names in norms_of.items()}
    if not norms_of:
        return
    grey: dict[str, Any] = {"fontsize": 7, "color": "#555555"}
    top = panel.secondary_xaxis("top")
    top.spines["top"].set_visible(False)
    top.tick_params(length=0, labelsize=7, labelcolor="#555555", pad=2)
    columns = ["\n".join("?" if nbs[i] < 0 else f"{nbs[i]:g}" for nbs in norms_of) for i in range(len(place))]
    top.set_xticks(list(place.values()), columns)
    names = "\n".join(("NBS of " if not i else "") + ", ".join(norms) for i, norms in enumerate(norms_of.values()))
    panel.annotate(
        names,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        **grey,
    )


def _shortened(names: list[str], cells: Sequence[Cell], x: Axis) -> list[str]:
    """Names with all series of a norm replaced by the norm's name."""
    of_norm: dict[str, set[str]] = {}
    for cell in cells:
        of_norm.setdefault(cell.norm, set()).add(series_against(cell, x))
    whole = {name: norm for norm, series in of_norm.items() if series <= set(names) for name in series}
    return list(dict.fromkeys(whole.get(name, name) for name in names))


def draw_published(panel: Axes) -> None:
    """The GN paper's results, lighter and on their own scale, since data and model differ."""
    for norm, errors in GN_PAPER_ERROR_PERCENT.items():
        style = style_of(norm)
        places = [math.log2(batch) for batch in errors]
        panel.plot(places, list(errors.values()), style.marker + "-", color=style.colour, alpha=0.4, ms=4)
    panel.xaxis.set_major_locator(FixedLocator(places))
    panel.set_xticklabels([str(batch) for batch in errors])
    panel.set(xlabel="images per GPU", ylabel="validation error, %")
    panel.set_title("GN paper:\nImageNet, ResNet-50", loc="left", fontsize=9, color="#555555")
