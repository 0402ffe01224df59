"""What a race decides, on made-up results."""

import random
from itertools import pairwise
from math import comb, log2

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks.race import SCENARIOS, held, wrong
from launch.race_decisions import MOST_GROWTH, Grid, Race, Trial, decide

RACE = Race({"bn": Grid(0.1), "gn": Grid(0.1)}, epochs=8, seed=5, max_seeds=8)


def rate(trial):
    return float(trial.setting[0].removeprefix("optim.lr="))


def play(race, score, results=None, some=None):
    """Train what is asked for until nothing is; `some` of it at a time. Returns the states and the results."""
    results, states = dict(results or {}), []
    while True:
        states.append(decide(race, results))
        if not states[-1].next:
            return states, results
        for trial in (some or list)(states[-1].next):
            results[trial] = score(trial)


def peak(*, at=0.1, best=0.7, noise=0.01, norms=()):
    """A score that falls with the distance to the best rate, and `norms` ahead of the others by so much."""

    def score(trial):
        draw = random.Random(repr(trial))
        ahead = dict(norms).get(trial.norm, 0)
        return best + ahead - 0.05 * abs(log2(rate(trial) / at)) + noise * draw.gauss(0, 1) * (trial.epochs == 8)

    return score


# --- rates ----------------------------------------------------------------------------------------------


def test_each_norm_tries_five_rates_for_a_quarter_of_the_epochs_and_the_better_half_for_half_of_them():
    states, _ = play(RACE, peak(at=0.11))
    first, second = states[0].next, states[1].next
    rates = [0.025, 0.05, 0.1, 0.2, 0.4]
    assert [(t.norm, rate(t), t.seed, t.epochs) for t in first] == [
        (norm, lr, 5, 2) for norm in ("bn", "gn") for lr in rates
    ]
    assert sorted((t.norm, rate(t), t.seed, t.epochs) for t in second) == [
        (norm, lr, 5, 4) for norm in ("bn", "gn") for lr in (0.05, 0.1, 0.2)
    ]
    assert {one.setting for one in states[-1].standings} == {("optim.lr=0.1",)}


@pytest.mark.parametrize(("epochs", "rungs"), [(1, (1,)), (2, (1,)), (3, (1,)), (4, (1, 2)), (30, (7, 15))])
def test_short_runs_have_whole_epochs(epochs, rungs):
    assert Race({}, epochs).rungs == rungs


@pytest.mark.parametrize(("at", "chosen"), [(3.2, 3.2), (0.003125, 0.003125), (1e9, 0.4 * 2**MOST_GROWTH)])
def test_a_grid_grows_by_factors_of_two_while_its_best_rate_is_at_an_end(at, chosen):
    states, results = play(RACE, peak(at=at))
    assert rate(states[-1].standings[0]) == chosen
    assert max(map(rate, results)) <= 0.4 * 2**MOST_GROWTH


def test_a_grid_grows_at_the_second_length_too():
    def score(trial):
        return -abs(log2(rate(trial) / (0.2 if trial.epochs == 2 else 0.8)))

    _, results = play(RACE, score)
    assert Trial("bn", ("optim.lr=0.8",), 5, 4) in results
    assert Trial("bn", ("optim.lr=0.8",), 5, 2) not in results


def test_given_settings_are_all_that_is_tried():
    given = tuple((f"optim.lr={lr}", f"optim.weight_decay={wd}") for lr in (0.1, 0.2) for wd in (0, 0.1))
    states, results = play(Race({"bn": Grid(given=given), "gn": Grid(given=given)}, 8), lambda t: rate(t))
    assert {trial.setting for trial in results} == set(given)
    assert states[-1].standings[0].setting == ("optim.lr=0.2", "optim.weight_decay=0")


def test_of_equal_rates_the_one_nearest_to_the_default_is_taken():
    states, results = play(RACE, lambda trial: 0.1)
    assert {one.setting for one in states[-1].standings} == {("optim.lr=0.1",)}
    assert {rate(trial) for trial in results} == {0.025, 0.05, 0.1, 0.2, 0.4}


def test_where_all_rates_diverge_lower_ones_are_tried_and_then_the_norm_is_out():
    def score(trial):
        return None if trial.norm == "gn" and rate(trial) > 0.01 else rate(trial)

    states, _ = play(RACE, score)
    assert {one.norm: rate(one) for one in states[-1].standings}["gn"] == 0.00625
    states, results = play(RACE, lambda trial: None if trial.norm == "gn" else 0.5)
    assert states[-1].untrained == {"gn": "diverged with every setting that was tried"}
    assert min(rate(trial) for trial in results) == 0.025 / 2**MOST_GROWTH
    assert not any(trial.epochs == 8 for trial in results), "nothing is left to compare"


# --- seeds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "looks"), [(2, (2,)), (3, (3,)), (4, (4,)), (5, (4, 5)), (8, (4, 6, 8))])
def test_norms_are_compared_at_planned_numbers_of_seeds(most, looks):
    assert Race({}, 1, max_seeds=most).looks == looks


def test_the_least_epochs_are_those_up_to_the_first_comparison():
    _, results = play(RACE, peak())
    asked = [trial for trial in results if trial.seed <= RACE.seed + 4]
    assert RACE.least_epochs == sum(trial.epochs for trial in asked) == 2 * (5 * 2 + 3 * 4 + 4 * 8)


def test_norms_have_the_same_seeds_and_never_the_one_that_chose_rates():
    _, results = play(RACE, peak())
    seeds = {norm: [t.seed for t in results if t.norm == norm and t.epochs == 8] for norm in RACE.grids}
    assert seeds["bn"] == seeds["gn"] == [6, 7, 8, 9, 10, 11, 12, 13]


def by_seed(state):
    return {one.norm: one.scores for one in state.standings}


@pytest.mark.parametrize("draw", range(40))
def test_a_norm_is_out_exactly_if_the_corrected_paired_t_test_says_so(draw):
    """scipy's p-value of a paired t test, against the rate shared among 3 looks and 3 pairs."""
    race = Race({norm: Grid(given=(("optim.lr=0.1",),)) for norm in ("bn", "gn", "ln")}, 4)
    numbers = random.Random(draw)
    means, noise = {norm: numbers.gauss(0, 0.03) for norm in race.grids}, numbers.choice([0.003, 0.01, 0.03])
    scores = {n: [means[n] + numbers.gauss(0, noise) for _ in range(8)] for n in race.grids}
    states, _ = play(race, lambda t: scores[t.norm][t.seed - 1] if t.seed else 0.5)
    alive = list(race.grids)
    for look in race.looks:
        if len(alive) > 1:
            best = max(alive, key=lambda norm: sum(scores[norm][:look]))
            others = [norm for norm in alive if norm != best]
            p = {norm: ttest_rel(scores[best][:look], scores[norm][:look]).pvalue for norm in others}
            alive = [norm for norm in alive if norm == best or p[norm] >= 0.05 / (3 * comb(3, 2))]
    assert {one.norm for one in states[-1].leaders} == set(alive)


def test_a_norm_that_is_out_gets_no_more_seeds_and_the_last_one_left_ends_the_race():
    score = peak(noise=0.002, norms={"bn": 0.2, "gn": 0.2})
    race = Race({norm: Grid(0.1) for norm in ("bn", "gn", "ln")}, epochs=8)
    states, results = play(race, score)
    assert {n: len(scores) for n, scores in by_seed(states[-1]).items()} == {"bn": 8, "gn": 8, "ln": 4}
    assert max(t.seed for t in results if t.norm == "ln") == 4
    states, results = play(race, peak(noise=0.002, norms={"gn": 0.3}))
    assert [one.norm for one in states[-1].leaders] == ["gn"]
    assert max(t.seed for t in results) == 4
    assert states[-1].standings[1].out.startswith("behind gn by ")


def test_norms_in_question_come_first_even_if_their_later_seeds_are_harder():
    def score(trial):
        harder = 0.6 if trial.seed > RACE.seed + 4 else 0
        return peak(norms={"bn": 0.2, "gn": 0.2})(trial) - harder

    race = Race({norm: Grid(0.1) for norm in ("ln", "bn", "gn")}, epochs=8, seed=5)
    states, _ = play(race, score)
    means = {norm: sum(scores) / len(scores) for norm, scores in by_seed(states[-1]).items()}
    assert means["ln"] > max(means["bn"], means["gn"])
    assert [len(one.scores) for one in states[-1].standings] == [8, 8, 4]


def test_differences_that_are_all_equal_separate_nothing():
    """Their interval has no width, as with a coarse metric; that is no certainty."""
    states, _ = play(RACE, peak(noise=0, norms={"bn": 0.1}))
    assert len(states[-1].leaders) == 2


def test_a_run_that_diverged_with_a_chosen_rate_counts_as_0():
    def score(trial):
        return None if trial.norm == "gn" and trial.seed == 7 else peak()(trial)

    states, _ = play(RACE, score)
    (gn,) = (one for one in states[-1].standings if one.norm == "gn")
    assert (gn.diverged, gn.scores[1]) == (1, 0.0)
    assert gn.out == "", "one run of eight does not separate"


# --- what holds of all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", range(10))
def test_a_race_that_is_cut_off_anywhere_comes_to_the_same_decisions(draw):
    race = Race({norm: Grid(0.1) for norm in ("bn", "gn", "ln")}, epochs=8)
    score = peak(at=0.3, norms={"gn": -0.03, "ln": -0.2})
    undisturbed, whole = play(race, score)
    numbers = random.Random(draw)

    def some(trials):
        return numbers.sample(trials, numbers.randint(1, len(trials)))

    cut_off, results = play(race, score, some=some)
    assert results == whole
    assert cut_off[-1] == undisturbed[-1]
    known = dict(numbers.sample(sorted(whole.items(), key=repr), len(whole) // 2))
    assert play(race, score, known)[0][-1] == undisturbed[-1], (
        "nor does it matter in which order they were recorded"
    )


def test_decisions_that_were_made_stay():
    states, _ = play(RACE, peak(norms={"bn": 0.3}))
    for earlier, later in pairwise(states):
        assert set(earlier.log) <= set(later.log)


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if "equal" in name])
def test_wrong_claims_are_as_rare_as_stated(scenario):
    """With numbers that are always the same; python -m benchmarks.race has many more."""
    numbers = np.random.default_rng(0)
    races = 100
    mistakes = 0
    for _ in range(races):
        norms = {f"n{i}": norm for i, norm in enumerate(SCENARIOS[scenario](numbers))}
        race, state, _ = held(norms, numbers)
        mistakes += wrong(race, state, norms)
    assert mistakes <= race.error_rate * races
