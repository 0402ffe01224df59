"""The figure of a race between norms."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from normlab.report.panels import DPI
from normlab.report.race import Record
from normlab.report.statistics import Estimate, estimate
from normlab.report.style import style_of


def draw_race(race: Record) -> tuple[Figure, str]:
    """(how rates were chosen, what each seed reached, and how far norms are behind the best; a caption)."""
    height = 1.6 + 0.35 * max(4, len(race["standings"]))
    figure = Figure(figsize=(10, height), dpi=DPI, layout="constrained")
    rates, scores, differences = figure.subplots(1, 3)
    _draw_rates(rates, race)
    _draw_scores(scores, race)
    _draw_differences(differences, race)
    caption = (
        f"left: val/{race['main_metric']} of the runs that chose each norm's rate, the longest solid; middle: "
        f"test/{race['main_metric']} of each seed, with mean and 95 percent interval; right: the best minus each, "
        f"with intervals that all hold together with {100 * (1 - race['error_rate']):g} percent"
    )
    return figure, caption


def _draw_rates(panel: Axes, race: Record) -> None:
    """One line per norm and length of run, over the rates; over list positions if several keys were tuned."""
    runs = [run for run in race["runs"] if run["seed"] == race["seed"] and run["score"] is not None]
    settings = sorted({tuple(run["setting"]) for run in runs}, key=_as_numbers)
    single = all(len(one) == 1 and len(_as_numbers(one)) == 1 for one in settings)
    place = {one: _as_numbers(one)[0] if single else float(i) for i, one in enumerate(settings)}
    for norm in race["plan"]["norms"]:
        style = style_of(norm)
        for epochs in race["rungs"]:
            mine = [run for run in runs if run["norm"] == norm and run["epochs"] == epochs]
            at = sorted((place[tuple(run["setting"])], 100 * run["score"]) for run in mine)
            last = epochs == race["rungs"][-1]
            look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "ms": 4}
            look |= {"ls": "-", "label": norm} if last else {"ls": ":", "alpha": 0.6}
            panel.plot([x for x, _ in at], [y for _, y in at], **look)
    if single and settings:
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(place.values()), [f"{rate:g}" for rate in place.values()], rotation=45)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(settings[0][0].partition("=")[0])
    else:
        panel.set_xlabel("settings, in the order of their values")
    panel.set_ylabel(f"val/{race['main_metric']}, %")
    panel.legend(fontsize=7)


def _as_numbers(setting: Sequence[str]) -> list[float]:
    found = []
    for word in setting:
        try:
            found.append(float(word.partition("=")[2]))
        except ValueError:
            continue
    return found


def _draw_scores(panel: Axes, race: Record) -> None:
    for row, one in enumerate(race["standings"]):
        colour, scores = style_of(one["norm"]).colour, [100 * score for score in one["scores"]]
        panel.plot(scores, [row + 0.22] * len(scores), "|", color=colour, ms=7)
        _draw_interval(panel, row, estimate(scores), one["norm"])
    _name_rows(panel, race)
    panel.set_xlabel(f"test/{race['main_metric']}, %")


def _draw_differences(panel: Axes, race: Record) -> None:
    panel.axvline(0, color="#888888", lw=0.8)
    for row, one in enumerate(race["standings"]):
        if one["behind"]:
            found = Estimate(**one["behind"])
            _draw_interval(panel, row, Estimate(found.n, 100 * found.mean, 100 * found.half_width), one["norm"])
    _name_rows(panel, race)
    panel.set_xlabel("behind the best, points")


def _draw_interval(panel: Axes, row: int, found: Estimate, norm: str) -> None:
    style = style_of(norm)
    panel.errorbar(found.mean, row, xerr=found.half_width, fmt=style.marker, color=style.colour, capsize=2.5)


def _name_rows(panel: Axes, race: Record) -> None:
    names = [one["norm"] for one in race["standings"]]
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
