"""The verdict and table of a race between norms, from the race.json that hydra/sweeper=race keeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normlab.report.statistics import Estimate, estimate
from normlab.run_files import read_object

NAME = "race.json"
Record = Mapping[str, Any]
"""race.json."""


def read_race(folder: Path) -> tuple[Record | None, str]:
    """(race.json of a study, what is wrong with it); (None, "") if there was no race."""
    race, problem = read_object(folder / NAME)
    if race is None:
        return None, problem
    try:
        verdict(race), table(race), list(race["decisions"])
        [(run["norm"], list(run["setting"]), float(run["score"] or 0), run["epochs"]) for run in race["runs"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None, f"{NAME} is not one of normlab's"
    return race, ""


def verdict(race: Record) -> str:
    """A paragraph: what the race found, how sure that is, and how it was found."""
    norms = list(race["plan"]["norms"])
    said = _comparison(race, norms) if race["standings"] else [f"{listed(norms)} have not been compared yet."]
    said += [f"{norm} {why}." for norm, why in race["untrained"].items()]
    said += [f"The race ended early: {race['over']}."] if race["over"] else []
    said.append(
        f"Each norm has optimizer settings of its own, chosen by val/{race['main_metric']} in runs of "
        f"{listed(race['rungs'])} epochs with seed {race['seed']}, which no comparison uses."
    )
    if race["standings"]:
        pairs = len(norms) * (len(norms) - 1) // 2
        said.append(
            "Differences are paired by seed. Their intervals (Student t, corrected for "
            f"{pairs} pairs of norms and for looks after {listed(race['looks'])} seeds) all hold together with "
            f"{100 * (1 - race['error_rate']):g} percent probability, if differences are normal. All this is "
            f"about one model, data set, batch size and length of training: {race['epochs']} epochs."
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
    """Words as a list in prose: bn, syncbn and gn."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def table(race: Record) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) as text, the best norm first."""
    accuracy = f"test/{race['main_metric']}, %"
    columns = ["norm", "tuned", accuracy, "n", "behind the best, points", "images/s", "kept, MB", "sends", ""]
    rows = []
    for one in race["standings"]:
        score = estimate(one["scores"])
        behind = Estimate(**one["behind"]).percent if one["behind"] else ""
        speeds = [run["images_per_second"] for run in _compared(race, one["norm"]) if run["images_per_second"]]
        speed = f"{sum(speeds) / len(speeds):.0f}" if speeds else "-"
        state = "out" if one["out"] else "in question" if len(race["standings"]) > 1 else ""
        result = [score.percent, str(score.n), behind, speed, *_cost(race["costs"][one["norm"]])]
        rows.append([one["norm"], " ".join(one["setting"]), *result, state])
    return columns, rows


def _cost(cost: Record) -> tuple[str, str]:
    """What one rank's step keeps for its backward, and the messages of its norm layers: 14 x, 9.1 kB."""
    kept = "-" if cost["saved_bytes"] is None else f"{cost['saved_bytes'] / 1e6:.3g}"
    if not cost["messages"]:
        return kept, "-" if cost["messages"] is None else "nothing"
    return kept, f"{cost['messages']} x, {cost['message_bytes'] / 1e3:.3g} kB"


def _compared(race: Record, norm: str) -> list[Record]:
    """The runs that norms are compared by."""
    return [run for run in race["runs"] if run["norm"] == norm and run["seed"] != race["seed"]]
