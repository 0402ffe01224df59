"""The decisions of a race between norms: which runs come next, which norms are out, and why.

Everything follows from the results so far, and from no file or clock, so a race that was cut off continues as if
nothing had happened.

1. Rates. Each norm tries a grid of rates for a quarter of the epochs, then the better half of them for half of the
   epochs, and takes the best. Val decides, with one seed that is not used again. (Successive halving: Jamieson &
   Talwalkar 2016, arXiv:1502.07943. Longer runs start afresh, since a schedule depends on its length.)
2. Seeds. Each norm trains in full, at its rate, with the same seeds as the others. At a few planned numbers of
   seeds (looks), the norm with the best mean is compared with each other norm, on test, paired by seed:

       d = mean over n seeds of (best - other);   the other is behind, and out, if d - t s / sqrt(n) > 0

   t is Student's for n - 1 degrees of freedom, two-sided, at the level 1 - error_rate / (looks * pairs of norms).
   So all intervals that a race can ever show hold together with probability 1 - error_rate (Bonferroni) if
   differences are normal, whichever norm leads and whenever the race stops. No variance is shared between norms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from normlab.report.statistics import Estimate, estimate

MOST_GROWTH = 4
"""Factors of 2 by which a grid of rates grows at each end."""

Setting = tuple[str, ...]
"""Tuned keys as overrides: ("optim.lr=0.1",)."""


@dataclass(frozen=True)
class Trial:
    """A run that a race asks for."""

    norm: str
    setting: Setting
    seed: int
    epochs: int


Results = Mapping[Trial, float | None]
"""The score of each run that has ended (higher is better); None if it diverged."""


@dataclass(frozen=True)
class Grid:
    """The settings that a norm tries: the given ones; or rates from lr / 4 to 4 lr, and beyond."""

    lr: float = 0.1
    given: tuple[Setting, ...] = ()

    @property
    def places(self) -> range:
        return range(len(self.given)) if self.given else range(-2, 3)

    def setting(self, place: int) -> Setting:
        return self.given[place] if self.given else (f"optim.lr={self.lr * 2.0**place:g}",)

    def beyond(self, best: int, tried: set[int]) -> int | None:
        """The place beyond the best one, if that is at an end of those that were tried."""
        if self.given or abs(best) == 2 + MOST_GROWTH:
            return None
        return {min(tried): best - 1, max(tried): best + 1}.get(best)


@dataclass(frozen=True)
class Race:
    """The plan of a race, fixed before its first run, since its error rate holds for the plan."""

    grids: Mapping[str, Grid]
    """The settings that each norm tries."""
    epochs: int
    """Length of a run in full."""
    seed: int = 0
    """The seed that rates are chosen with; norms are compared with the following ones."""
    max_seeds: int = 8
    error_rate: float = 0.05

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs of the runs that choose rates, shortest first."""
        return tuple(dict.fromkeys(max(1, self.epochs // part) for part in (4, 2)))

    @property
    def looks(self) -> tuple[int, ...]:
        """Seeds after which norms are compared: 4, 6, 8."""
        return (*range(min(4, self.max_seeds), self.max_seeds, 2), self.max_seeds)

    @property
    def least_epochs(self) -> int:
        """The epochs of all runs up to the first comparison, if no grid grows."""
        total = 0
        for grid in self.grids.values():
            places = len(grid.places)
            for epochs in self.rungs:
                total += places * epochs
                places = math.ceil(places / 2)
            total += self.looks[0] * self.epochs
        return total

    @property
    def level(self) -> float:
        """The confidence level of each interval, so that all of them hold together with 1 - error_rate."""
        return 1 - self.error_rate / (len(self.looks) * math.comb(len(self.grids), 2))


@dataclass(frozen=True)
class Standing:
    """A norm at the last look that it was part of."""

    norm: str
    setting: Setting
    scores: tuple[float, ...]
    """One per seed, in order; 0 if the run diverged."""
    diverged: int
    behind: Estimate | None
    """Best minus this one over the seeds of both, at the race's level; None for the best itself."""
    out: str
    """Why it is out; empty if it is still in question."""


@dataclass(frozen=True)
class State:
    """Everything that follows from the results so far."""

    next: tuple[Trial, ...]
    """Runs to train now, in any order. Empty if the race is over."""
    log: tuple[str, ...]
    """The decisions, one line each."""
    standings: tuple[Standing, ...] = ()
    """The best first, then the others that are in question, then those that are out."""
    untrained: Mapping[str, str] | None = None
    """Norms without a rate -> why."""

    @property
    def leaders(self) -> list[Standing]:
        """The best norm, and those that cannot be distinguished from it."""
        return [one for one in self.standings if not one.out]


def decide(race: Race, results: Results) -> State:
    """What the results so far say, and which runs they ask for."""
    log: list[str] = []
    tuned: dict[str, Setting] = {}
    untrained: dict[str, str] = {}
    lacking: list[Trial] = []
    for norm, grid in race.grids.items():
        setting, wanted = _tune(race, norm, grid, results, log)
        lacking += wanted
        if setting:
            tuned[norm] = setting
        elif not wanted:
            untrained[norm] = "diverged with every setting that was tried"
            log.append(f"{norm} is out: it {untrained[norm]}")
    if lacking:
        return State(tuple(lacking), tuple(log))
    return _compare(race, tuned, untrained, results, log)


def _tune(
    race: Race, norm: str, grid: Grid, results: Results, log: list[str]
) -> tuple[Setting | None, list[Trial]]:
    """(the setting to compare a norm with, the runs still needed to choose it); neither if all diverged."""
    places = list(grid.places)
    tried = set(places)
    best = 0
    for epochs in race.rungs:
        if len(places) < len(tried):
            names = ", ".join(_words(grid.setting(place)) for place in places)
            log.append(f"{norm}: the better half of its settings goes on for {epochs} epochs: {names}")
        while True:
            trials = {place: Trial(norm, grid.setting(place), race.seed, epochs) for place in places}
            if wanted := [trial for trial in trials.values() if trial not in results]:
                return None, wanted
            places.sort(key=lambda place: _rank(results[trials[place]], place))
            best = places[0]
            if (more := grid.beyond(best, tried)) is None:
                break
            log.append(
                f"{norm}: {_words(grid.setting(best))} is the best so far and at an end of the grid; "
                f"{_words(grid.setting(more))} is tried too"
            )
            places.append(more)
            tried.add(more)
        score = results[trials[best]]
        places = places[: math.ceil(len(places) / 2)]
    if score is None:
        return None, []
    end = " (an end of what was tried)" if best in (min(tried), max(tried)) and len(tried) > 1 else ""
    log.append(f"{norm} is tuned: {_words(grid.setting(best))}{end}, {score:.4f} after {epochs} epochs")
    return grid.setting(best), []


def _rank(score: float | None, place: int) -> tuple[float, int]:
    """A sort key, best first: on ties the place nearest to the default, among diverged runs the lowest place."""
    return (math.inf, place) if score is None else (-score, abs(place))


def _compare(
    race: Race, tuned: Mapping[str, Setting], untrained: Mapping[str, str], results: Results, log: list[str]
) -> State:
    """Give seeds to the norms that are in question, until one is left or all looks have been taken."""
    out: dict[str, str] = {}
    scores: dict[str, list[float | None]] = {}
    for seeds in race.looks:
        alive = [norm for norm in tuned if norm not in out]
        if len(alive) < 2:
            break
        trials = {
            norm: [Trial(norm, tuned[norm], race.seed + i, race.epochs) for i in range(1, seeds + 1)]
            for norm in alive
        }
        if lacking := [one for ofnorm in trials.values() for one in ofnorm if one not in results]:
            return State(tuple(lacking), tuple(log), _standings(race, tuned, scores, out), untrained)
        scores |= {norm: [results[one] for one in trials[norm]] for norm in alive}
        best = max(alive, key=lambda norm: _mean(scores[norm]))
        for norm in alive:
            behind = _difference(race, scores[best], scores[norm])
            # If all differences are equal, the interval has no width, which only reflects rounding.
            if behind.low > 0 and behind.half_width > 0:
                out[norm] = f"behind {best} by {behind.percent} points (n = {behind.n})"
        said = "; ".join(f"{norm} is out: {out[norm]}" for norm in alive if norm in out) or "none is out"
        log.append(f"after {seeds} seeds {best} leads with {_mean(scores[best]):.4f}; {said}")
    return State((), tuple(log), _standings(race, tuned, scores, out), untrained)


def _standings(
    race: Race, tuned: Mapping[str, Setting], scores: Mapping[str, list[float | None]], out: Mapping[str, str]
) -> tuple[Standing, ...]:
    if not scores:
        return ()
    order = sorted(scores, key=lambda norm: (norm in out, -_mean(scores[norm])))
    best = scores[order[0]]
    return tuple(
        Standing(
            norm,
            tuned[norm],
            tuple(score or 0.0 for score in scores[norm]),
            scores[norm].count(None),
            _difference(race, best, scores[norm]) if place else None,
            out.get(norm, ""),
        )
        for place, norm in enumerate(order)
    )


def _difference(race: Race, best: list[float | None], other: list[float | None]) -> Estimate:
    """Best minus other over the seeds that both have: each list begins with the same seeds."""
    return estimate([(a or 0.0) - (b or 0.0) for a, b in zip(best, other, strict=False)], race.level)


def _mean(scores: list[float | None]) -> float:
    return fmean(score or 0.0 for score in scores)


def _words(setting: Setting) -> str:
    return " ".join(setting)
