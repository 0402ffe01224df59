"""How far a race can be trusted: races between made-up norms whose true accuracies are known.

python -m benchmarks.race [--races 1000] [--tests]

A made-up norm has a best rate, which drifts with the length of training, loses accuracy quadratically in log2 of
the rate beside it, and diverges beyond some rate. A run adds noise of its own, and noise that all norms share with
its seed. The decisions are those of launch/race_decisions.py. --tests compares its test with three others.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import comb, inf, log2, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from launch.race_decisions import Grid, Race, State, Trial, decide
from normlab.markdown import markdown_table
from normlab.report.statistics import Estimate

LR, EPOCHS, MAX_SEEDS = 0.1, 20, 8
RACE = {"epochs": EPOCHS, "max_seeds": MAX_SEEDS}
Random = np.random.Generator


@dataclass(frozen=True)
class MadeUpNorm:
    best: float
    """Accuracy at the best rate in full training; `noise` and the rest are in the same units."""
    noise: float
    best_rate: float = 0.0
    """log2 of the rate over LR, in full training."""
    drift: float = 0.0
    """How far the best rate moves for each halving of the length."""
    curvature: float = 0.0
    diverges_at: float = inf
    loses: tuple[float, float] = (0.0, 0.0)
    """(probability, amount) of a run that goes badly."""

    def accuracy(self, rate: float, epochs: int = EPOCHS) -> float:
        """Without noise."""
        halvings = log2(EPOCHS / epochs)
        off = rate - self.best_rate - self.drift * halvings
        return self.best - self.curvature * off**2 - 0.05 * halvings

    def run(self, rate: float, epochs: int, random: Random, of_seed: float) -> float | None:
        if rate >= self.diverges_at:
            return None
        lost = self.loses[1] * (random.random() < self.loses[0])
        return self.accuracy(rate, epochs) + self.noise * random.standard_normal() + of_seed - lost


def rate_of(trial: Trial) -> float:
    return log2(float(trial.setting[0].partition("=")[2]) / LR)


def held(norms: dict[str, MadeUpNorm], random: Random) -> tuple[Race, State, dict[Trial, float | None]]:
    """A whole race."""
    race = Race({name: Grid(LR) for name in norms}, **RACE)
    results: dict[Trial, float | None] = {}
    of_seed = random.normal(0, 0.01, MAX_SEEDS + 1)
    while (state := decide(race, results)).next:
        for trial in state.next:
            norm = norms[trial.norm]
            results[trial] = norm.run(rate_of(trial), trial.epochs, random, of_seed[trial.seed])
    return race, state, results


# Five norms each; a point is 0.01. Tuned ones have best rates of their own.


def tuned(random: Random, best: float, noise: float) -> MadeUpNorm:
    best_rate = random.uniform(-3, 3)
    return MadeUpNorm(best, noise, best_rate, random.uniform(-0.3, 0.3), 0.01, best_rate + random.uniform(1.5, 5))


SCENARIOS: dict[str, Callable[[Random], list[MadeUpNorm]]] = {
    "all equal": lambda random: [MadeUpNorm(0.7, 0.01)] * 5,
    "all equal, noise 0.2 to 5 points": lambda random: [
        MadeUpNorm(0.7, noise) for noise in (0.002, 0.005, 0.01, 0.02, 0.05)
    ],
    "all equal, 1 run in 10 loses 5 points": lambda random: [MadeUpNorm(0.7, 0.005, loses=(0.1, 0.05))] * 5,
    "gaps of 2 points on average, noise 0.7": lambda random: [
        tuned(random, 0.7 - gap, 0.007) for gap in (0, *np.cumsum(random.exponential(0.02, 4)))
    ],
    "two within 0.5, others 3 to 10 behind": lambda random: [
        tuned(random, 0.7 - gap, 0.007) for gap in (0, 0.005, 0.03, 0.05, 0.1)
    ],
    "others 3 to 10 behind, noise 0.3 to 1.5": lambda random: [
        tuned(random, 0.7 - gap, random.uniform(0.003, 0.015)) for gap in (0, 0.03, 0.05, 0.07, 0.1)
    ],
}


def wrong(race: Race, state: State, norms: dict[str, MadeUpNorm]) -> bool:
    """Whether anything that a race says of norms at the rates it chose is not so."""
    if not state.standings:
        return False
    true = {
        one.norm: norms[one.norm].accuracy(rate_of(Trial(one.norm, one.setting, 0, 0))) for one in state.standings
    }
    best = state.standings[0].norm
    said = [(one.norm, one.out.split()[1]) for one in state.standings if one.out]  # "behind bn by"
    shown: list[tuple[str, Estimate]] = [(one.norm, one.behind) for one in state.standings if one.behind]
    return any(true[worse] >= true[better] for worse, better in said) or any(
        not behind.low <= true[best] - true[norm] <= behind.high for norm, behind in shown
    )


def races(count: int) -> Iterator[list[str]]:
    """A row of the first table for each scenario."""
    for name, make in SCENARIOS.items():
        random = np.random.default_rng(0)
        named = led = mistakes = 0
        spent, saved = [], []
        for _ in range(count):
            norms = {f"n{i}": norm for i, norm in enumerate(make(random))}
            race, state, results = held(norms, random)
            spent.append(sum(trial.epochs for trial in results))
            saved.append(len(norms) * len(Grid().places) * MAX_SEEDS * EPOCHS / spent[-1])
            leaders = [one.norm for one in state.leaders]
            named += leaders == ["n0"]
            led += "n0" in leaders
            mistakes += wrong(race, state, norms)
        differ = "equal" not in name
        percent = [f"{100 * n / count:.1f} %" for n in (named, led, mistakes)]
        alone = len(norms) * (len(Grid().places) + MAX_SEEDS) * EPOCHS / np.mean(spent)
        yield [name, *(percent[:2] if differ else ["", ""]), percent[2], f"{np.mean(saved):.1f}", f"{alone:.1f}"]


# Tests of whether a norm is behind the best: the one that is used, and what three others would lead to.

Behind = Callable[[NDArray[np.float64], int, int], NDArray[np.bool_]]
"""(scores of the norms in question (n, K), the best one's column, norms of the race) -> which are behind."""
LOOKS = Race({}, **RACE).looks


def bonferroni(comparisons: Callable[[int], int], *, pooled: bool = False) -> Behind:
    def behind(scores: NDArray[np.float64], best: int, norms: int) -> NDArray[np.bool_]:
        n, k = scores.shape
        differences = scores[:, [best]] - scores
        degrees, deviation = n - 1, differences.std(0, ddof=1)
        if pooled:
            rest = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
            degrees = (n - 1) * (k - 1)
            deviation = np.full(k, sqrt(2 * (rest**2).sum() / degrees))
        critical = student.isf(0.05 / (2 * len(LOOKS) * comparisons(norms)), degrees)
        return differences.mean(0) > critical * deviation / sqrt(n)

    return behind


def confidence_sequence(scores: NDArray[np.float64], best: int, norms: int) -> NDArray[np.bool_]:
    """Valid at any n: the t likelihood ratio, mixed over effects of N(0, 1 / 0.1) (arXiv:2208.07610)."""
    n, g = len(scores), 0.1
    differences = np.delete(scores[:, [best]] - scores, best, 1)
    t_squared = n * differences.mean(0) ** 2 / differences.var(0, ddof=1) / (n - 1)
    share = g / (n + g)
    evidence = sqrt(share) * ((1 + t_squared) / (1 + share * t_squared)) ** (n / 2)
    return np.insert((evidence > comb(norms, 2) / 0.05) & (differences.mean(0) > 0), best, False)


TESTS: dict[str, Behind] = {
    "t, Bonferroni over looks and all pairs (used)": bonferroni(lambda norms: comb(norms, 2)),
    "t, Bonferroni over looks and K - 1 pairs": bonferroni(lambda norms: norms - 1),
    "the first, with one variance for all norms": bonferroni(lambda norms: comb(norms, 2), pooled=True),
    "t confidence sequence, Bonferroni over all pairs": confidence_sequence,
}
MEANS_AND_NOISE = {
    "all equal": (np.zeros(5), np.ones(5)),
    "all equal, one with 5 times the noise": (np.zeros(5), np.array([1.0, 1, 1, 1, 5])),
    "others 3, 4, 5, 10 behind": (np.array([0.0, -3, -4, -5, -10]), np.ones(5)),
}


def tests(count: int) -> Iterator[list[str]]:
    """A row of the second table for each test: without rates, in units of a run's noise."""
    for name, behind in TESTS.items():
        row = [name]
        for means, noise in MEANS_AND_NOISE.values():
            random = np.random.default_rng(0)
            mistakes = named = 0
            for _ in range(count):
                scores = means + noise * random.standard_normal((MAX_SEEDS, len(means)))
                alive, mistaken = np.arange(len(means)), False
                for n in LOOKS:
                    if len(alive) > 1:
                        best = int(scores[:n, alive].mean(0).argmax())
                        out = behind(scores[:n, alive], best, len(means))
                        mistaken |= bool((means[alive[out]] >= means[alive[best]]).any())
                        alive = alive[~out]
                mistakes += mistaken
                named += alive.tolist() == [0]
            row.append(f"{100 * (named if means.any() else mistakes) / count:.1f} %")
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=1000, help="of each kind")
    parser.add_argument("--tests", action="store_true")
    args = parser.parse_args()
    if args.tests:
        equal, noisy, apart = MEANS_AND_NOISE
        columns = ["test", f"wrong: {equal}", f"wrong: {noisy}", f"best named: {apart}"]
        print(markdown_table(columns, list(tests(args.races)), numbers=True), end="")
        return
    columns = [
        "five norms",
        "best named",
        "best not ruled out",
        "anything wrong",
        "grid / race",
        "tuned alone / race",
    ]
    print(markdown_table(columns, list(races(args.races)), numbers=True), end="")


if __name__ == "__main__":
    main()
