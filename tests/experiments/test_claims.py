"""The rules of experiments/claims.md, on made-up results."""

import re

import pandas as pd
import pytest

from experiments.claims import CLAIMS, HERE, cell, judge, minus, norm, rows, values
from normlab.report.reading import read
from normlab.report.study import Study
from normlab.report.tables import runs_table
from tests.report.made import make_run

BY_NUMBER = {claim.number: claim for claim in CLAIMS}


def made(**cells: list[float | None]) -> pd.DataFrame:
    """`bn_32=[0.8, 0.81]`: a run a seed, None for one that diverged; `ws` in place of the norm is gn with it."""
    runs = []
    for key, accuracies in cells.items():
        name, batch = key.rsplit("_", 1)
        for seed, accuracy in enumerate(accuracies):
            runs.append(
                {
                    "norm": "gn" if name == "ws" else name,
                    "norm.weight_standardization": name == "ws",
                    "batch_size": int(batch),
                    "run": f"{key}-{seed}",
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
    assert values(cell(runs, norm("gn", 2)), BY_NUMBER[12]) == {0: 0.6, 1: 0.6, 2: 0.6}
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


def written(tmp_path, *runs: dict) -> pd.DataFrame:
    """What results.csv of a study of these runs holds, through the report; `accuracy` is its test accuracy."""
    for run in runs:
        accuracy = run.pop("accuracy")
        status = "diverged" if accuracy is None else "finished"
        metrics = (
            {} if accuracy is None else {"test/accuracy": accuracy, "train/accuracy": run.pop("train", accuracy)}
        )
        make_run(tmp_path / "study", status=status, result={"metrics": metrics}, **run)
    runs_table(Study(read(tmp_path / "study"))).to_csv(tmp_path / "results.csv", index=False)
    return pd.read_csv(tmp_path / "results.csv")


def test_a_key_that_a_study_does_not_sweep_is_found_in_its_results(tmp_path):
    policies = {"rank0": 0.6, "pooled": 0.65, "precise": 0.66}
    table = written(
        tmp_path,
        *(
            {"accuracy": accuracy + 0.001 * seed, "norm__running_stats": policy, "batch_size": 2, "seed": seed}
            for policy, accuracy in policies.items()
            for seed in range(3)
        ),
    )
    assert judge(BY_NUMBER[3], table).word == "confirmed"


def test_groups_are_judged_at_their_one_batch_size(tmp_path):
    settings = [
        ({"norm__num_groups": g, "norm__channels_per_group": None}, 0.8 if g > 1 else 0.7) for g in (1, 4, 8)
    ]
    settings.append(({"norm__num_groups": None, "norm__channels_per_group": 1}, 0.6))
    runs = [
        {"accuracy": accuracy + 0.001 * seed, "norm": "gn", "batch_size": 16, "seed": seed, **keys}
        for keys, accuracy in settings
        for seed in range(3)
    ]
    assert judge(BY_NUMBER[8], written(tmp_path, *runs)).word == "confirmed"


def test_the_largest_rate_is_that_at_which_a_seed_keeps_up_with_its_norms_best_mean():
    rates = {"bn": {0.1: 0.8, 0.4: 0.8, 1.6: 0.78}, "none": {0.1: 0.7, 0.4: 0.5, 1.6: None}}
    runs = pd.DataFrame(
        {
            "norm": name,
            "model.init_scale": scale,
            "optim.lr": lr,
            "seed": seed,
            "run": f"{name}-{scale}-{lr}-{seed}",
            "state": "diverged" if accuracy is None else "finished",
            "test/accuracy": accuracy,
        }
        for name, at in rates.items()
        for lr, accuracy in at.items()
        for scale in (1.0, 2.0)
        for seed in range(3)
    )
    verdict = judge(BY_NUMBER[9], runs)
    assert [effect.mean for effect in verdict.effects] == [4.0, 4.0]  # 1.6 against 0.1: four octaves
    assert (verdict.word, verdict.diverged) == ("confirmed", 6)


def test_chance_is_that_of_the_claims_metric():
    runs = made(bn_2=[0.5] * 3)
    runs["norm"], runs["normalization_batch_size"], runs["train/accuracy"] = "ghost_bn", 64, 0.6
    other = made(bn_2=[None] * 3)
    other["norm"], other["normalization_batch_size"] = "ghost_bn", 4
    (effect,) = judge(BY_NUMBER[10], pd.concat([runs, other])).effects
    assert effect.mean == pytest.approx(0.1)  # a gap of 0.1 against none
    miou = made(syncbn_1=[0.05] * 3, bn_1=[None] * 3, syncbn_2=[0.05] * 3, bn_2=[0.01] * 3)
    miou["test/miou"] = miou["test/accuracy"]
    assert judge(BY_NUMBER[11], miou).word == "inconclusive"


def test_several_runs_of_a_seed_are_no_cell():
    twice = pd.concat([made(bn_32=[0.8, 0.8], bn_2=[0.7, 0.7])] * 2)
    with pytest.raises(ValueError, match="claim 1: a seed has several runs"):
        judge(BY_NUMBER[1], twice)
