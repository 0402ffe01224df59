"""A race between norms, from the race.json that hydra/sweeper=race keeps: its verdict, table and figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from normlab.report.figures import LOOK, Drawn
from normlab.report.panels import DPI
from normlab.report.statistics import Estimate, estimate
from normlab.report.style import style_of

NAME = "race.json"
Record = Mapping[str, Any]
"""race.json."""


def verdict(race: Record) -> str:
    """A paragraph: what the race found, how sure that is, and how it was found."""
    norms = list(race["plan"]["norms"])
    said = _comparison(race, norms) if race["standings"] else [f"{listed(norms)} have not been compared yet."]
    said += [f"{norm} {why}." for norm, why in race["untrained"].items()]
    said += [f"The race ended early: {race['over']}."] if race["over"] else []
    pairs = len(norms) * (len(norms) - 1) // 2
    said.append(
        f"Each norm trained with its own optimizer settings, chosen by val/{race['main_metric']} in runs of "
        f"{listed(race['rungs'])} epochs with seed {race['seed']}, which no comparison uses. Differences are "
        f"paired by seed. Their intervals (Student t, corrected for {pairs} pairs of norms and for looks after "
        f"{listed(race['looks'])} seeds) all hold together with {100 * (1 - race['error_rate']):g} percent "
        "probability, if differences are normal. All this is about one model, data set, batch size and length of "
        f"training: {race['epochs']} epochs."
    )
    return " ".join(said)


def _comparison(race: Record, norms: Sequence[str]) -> list[str]:
    best, *others = race["standings"]
    close = [one for one in others if not one["out"]]
    score = estimate(best["scores"])
    reached = f"test/{race['main_metric']} {score.percent} percent (n = {score.n}, 95 percent interval)"
    if close:
        among = f"; the best of {listed(norms)} is one of them" if len(close) + 1 < len(norms) else ""
        gaps = listed([f"{Estimate(**one['behind']).percent} points over {one['norm']}" for one in close])
        said = [
            f"{listed([one['norm'] for one in (best, *close)])} are not told apart{among}. "
            f"{best['norm']} leads with {reached}, by {gaps} (n = {score.n})."
        ]
    else:
        said = [f"{best['norm']} is the best of {listed(norms)}, with {reached}."]
    said += [f"{one['norm']} is {one['out']}." for one in others if one["out"]]
    return said + [
        f"{one['diverged']} of {len(one['scores'])} runs of {one['norm']} diverged, and count as 0."
        for one in race["standings"]
        if one["diverged"]
    ]


def listed(words: Sequence[object]) -> str:
    """bn, syncbn and gn."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def table(race: Record) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) as text, the best norm first."""
    columns = ["norm", "tuned", f"test/{race['main_metric']}, %", "n", "behind the best, points", "images/s", ""]
    rows = []
    for one in race["standings"]:
        score = estimate(one["scores"])
        behind = Estimate(**one["behind"]).percent if one["behind"] else ""
        speeds = [run["images_per_second"] for run in _compared(race, one["norm"]) if run["images_per_second"]]
        speed = f"{sum(speeds) / len(speeds):.0f}" if speeds else "-"
        state = "out" if one["out"] else "in question" if len(race["standings"]) > 1 else ""
        rows.append([one["norm"], " ".join(one["setting"]), score.percent, str(score.n), behind, speed, state])
    return columns, rows


def _compared(race: Record, norm: str) -> list[Record]:
    """The runs that norms are compared by."""
    return [run for run in race["runs"] if run["norm"] == norm and run["seed"] != race["seed"]]


def draw(race: Record) -> Drawn:
    """How rates were chosen, what the norms reached with each seed, and how far they are behind the best."""
    with matplotlib.rc_context(LOOK):
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
    return Drawn("race", figure, caption)


def _draw_rates(panel: Axes, race: Record) -> None:
    """A line for each norm and length of run, over the rates; places of a list where several keys were tuned."""
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
