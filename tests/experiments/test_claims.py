"""The rules of experiments/claims.md, on made-up results."""

import re

import pandas as pd
import pytest

from experiments.claims import CLAIMS, HERE, judge, minus, norm, rows, values

BY_NUMBER = {claim.number: claim for claim in CLAIMS}


def made(**cells: list[float | None]) -> pd.DataFrame:
    """`bn_32=[0.8, 0.81]`: a run a seed, None for one that diverged; `ws` in place of the norm is gn with it."""
    runs = []
    for cell, accuracies in cells.items():
        name, batch = cell.rsplit("_", 1)
        for seed, accuracy in enumerate(accuracies):
            runs.append(
                {
                    "norm": "gn" if name == "ws" else name,
                    "norm.weight_standardization": name == "ws",
                    "batch_size": int(batch),
                    "seed": seed,
                    "state": "diverged" if accuracy is None else "finished",
                    "test/accuracy": accuracy,
                }
            )
    return pd.DataFrame(runs)


def test_the_page_and_the_code_name_the_same_claims_and_studies():
    page = (HERE / "claims.md").read_text()
    listed = re.findall(r"^\| (\d+) \| ([^|]+) \| (\w+) \|", page, re.MULTILINE)
    assert [(int(number), text, study) for number, text, study in listed] == [
        (claim.number, claim.text, claim.study) for claim in CLAIMS
    ]


@pytest.mark.parametrize(
    ("small", "word"),
    [([0.70, 0.71, 0.69], "confirmed"), ([0.80, 0.81, 0.79], "refuted"), ([0.70, 0.80, 0.75], "inconclusive")],
)
def test_a_claim_of_one_difference_is_judged_by_the_ends_of_its_interval(small, word):
    runs = made(bn_32=[0.80, 0.81, 0.79], bn_2=small)
    verdict = judge(BY_NUMBER[1], runs)
    assert verdict.word == word
    (effect,) = verdict.effects
    assert effect.mean == pytest.approx(sum([0.80, 0.81, 0.79]) / 3 - sum(small) / 3)


def test_intervals_of_one_claim_hold_together():
    """Two differences: each at 97.5 percent, where t with 2 degrees of freedom is 6.2053 and not 4.3027."""
    runs = made(syncbn_2=[0.80, 0.82, 0.81], bn_2=[0.70, 0.70, 0.70], bn_32=[0.80, 0.80, 0.80])
    verdict = judge(BY_NUMBER[2], runs)
    assert [e.half_width for e in verdict.effects] == pytest.approx([6.2053 * 0.01 / 3**0.5] * 2, rel=1e-4)
    assert verdict.word == "inconclusive"  # 0.01 - 0.036 is below -0.02


def test_equality_needs_the_whole_interval_within_the_margin():
    level = [0.800, 0.801, 0.802]
    near = [0.801, 0.8015, 0.803]
    cells = {f"{name}_{batch}": level for name in ("gn", "ln", "in") for batch in (2, 32)}
    assert judge(BY_NUMBER[4], made(**cells)).word == "confirmed"
    assert judge(BY_NUMBER[4], made(**cells | {"ln_32": near})).word == "confirmed"
    assert judge(BY_NUMBER[4], made(**cells | {"ln_32": [0.9, 0.901, 0.902]})).word == "refuted"
    assert judge(BY_NUMBER[4], made(**cells | {"ln_32": [0.81, 0.83, 0.79]})).word == "inconclusive"


def test_gn_alone_is_gn_without_weight_standardization():
    runs = made(gn_2=[0.6, 0.6, 0.6], ws_2=[0.7, 0.7, 0.7], gn_32=[0.6] * 3, ws_32=[0.7] * 3, bn_32=[0.7] * 3)
    metric = BY_NUMBER[12].metric
    assert values(runs, norm("gn", 2), metric) == {0: 0.6, 1: 0.6, 2: 0.6}
    assert judge(BY_NUMBER[12], runs).word == "confirmed"


def test_a_diverged_run_has_no_pair_and_a_cell_of_them_is_at_chance():
    one = made(bn_32=[0.8, 0.8, 0.8], bn_2=[0.7, 0.7, None])
    assert judge(BY_NUMBER[1], one).effects[0].n == 2
    most = made(bn_32=[0.8, 0.8, 0.8], bn_2=[0.7, None, None])
    (effect,) = judge(BY_NUMBER[1], most).effects
    assert (effect.n, effect.mean) == (3, pytest.approx(0.7))


def test_too_few_seeds_and_studies_that_were_not_run_decide_nothing():
    verdicts = [judge(BY_NUMBER[1], made(bn_32=[0.8], bn_2=[0.7])), judge(BY_NUMBER[1], None)]
    assert [verdict.word for verdict in verdicts] == ["inconclusive", "not run"]
    assert rows(verdicts)[0][2] == "bn batch_size=32 - bn batch_size=2: too few seeds"


def test_a_difference_is_named_by_what_sets_its_cells_apart():
    assert minus(norm("gn", 8), norm("bn", 8)).name == "gn - bn at batch_size=8"
    assert BY_NUMBER[12].differences[0].name == "gn weight_standardization=True - gn at batch_size=2"
