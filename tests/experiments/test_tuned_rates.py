"""The rates of the studies follow from the runs of `rates`, by the rules of claims.md."""

import math

import pandas as pd
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from experiments.claims import HERE, read
from experiments.tuned_rates import (
    CELLS,
    FIRST_GRID,
    WS,
    Missing,
    best_rates,
    between,
    chosen_precision,
    precision_difference,
    preset,
)
from launch.composing import Composer
from launch.plugins import register_launchers
from normlab.config.schema import register_schemas
from tests.runs import CONF

ALL_RATES = (*FIRST_GRID, 0.8)


def accuracy(rate: float, best: float) -> float:
    return 0.7 - 0.05 * abs(math.log2(rate / best))


def made(best: dict[tuple[str, bool, int], float], *, bf16: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """All runs of the study: val/accuracy falls on both sides of `best`, 0.1 where it is not given."""
    runs = [
        {
            "norm": norm,
            WS: ws if norm == "gn" else None,
            "batch_size": batch_size,
            "optim.lr": rate,
            "precision": precision,
            "val/accuracy": accuracy(rate, best.get((norm, ws, batch_size), 0.1))
            + (bf16 if precision == "bf16" else 0),
        }
        for precision in ("fp32", "bf16")
        for norm, ws in CELLS
        for batch_size in (2, 32)
        for rate in ALL_RATES
    ]
    return pd.DataFrame(runs).sample(frac=1, random_state=seed)


@pytest.mark.parametrize(
    ("difference", "precision"), [(0.0, "bf16"), (0.019, "bf16"), (-0.021, "fp32"), (0.021, "fp32")]
)
def test_bf16_is_used_if_it_changes_accuracy_by_less_than_two_points(difference, precision):
    found = precision_difference(made({}, bf16=difference))
    assert found.n == 16  # the rate of 0.8 is not among the pairs
    assert found.mean == pytest.approx(difference)
    assert chosen_precision(found) == precision


def test_an_interval_that_reaches_beyond_two_points_is_not_enough():
    runs = made({})
    high = (runs["precision"] == "bf16") & (runs["optim.lr"] == 0.1)
    runs.loc[high, "val/accuracy"] += 0.06  # 4 of 16 pairs: 0.015 on average
    found = precision_difference(runs)
    assert found.mean == pytest.approx(0.015)
    assert chosen_precision(found) == "fp32"


def test_the_best_rate_is_that_of_each_cell_at_the_chosen_precision():
    best = {("bn", False, 2): 0.4, ("gn", True, 2): 0.2, ("gn", False, 2): 0.1, ("in", False, 32): 0.2}
    runs = made(best)
    runs.loc[(runs["precision"] == "fp32") & (runs["optim.lr"] == 0.4), "val/accuracy"] = 0.9
    found = best_rates(runs, "bf16")
    assert {(*cell, size): rate for cell, of in found.items() for size, rate in of.items() if rate != 0.1} == {
        key: rate for key, rate in best.items() if rate != 0.1
    }


@pytest.mark.parametrize(
    ("at", "asked"),
    [
        (0.8, "norm=gn norm.weight_standardization=true batch_size=2 optim.lr=1.6"),
        (0.05, "norm=gn norm.weight_standardization=true batch_size=2 optim.lr=0.025"),
    ],
)
def test_a_best_rate_at_an_end_of_the_grid_asks_for_the_next_one(at, asked):
    with pytest.raises(Missing) as missing:
        best_rates(made({("gn", True, 2): at}), "bf16")
    assert str(missing.value) == asked


def test_a_run_that_diverged_has_no_accuracy_and_is_not_the_best():
    runs = made({("ln", False, 2): 0.4})
    runs.loc[(runs["norm"] == "ln") & (runs["optim.lr"] >= 0.4), "val/accuracy"] = math.nan
    assert best_rates(runs, "bf16")["ln", False][2] == 0.2


def test_missing_runs_are_named():
    runs = made({})
    runs = runs[(runs["norm"] != "in") | (runs["batch_size"] != 32) | (runs["optim.lr"] != 0.4)]
    with pytest.raises(Missing, match=r"^norm=in batch_size=32 optim\.lr=0\.4$"):
        best_rates(runs, "bf16")
    with pytest.raises(Missing, match=r"precision=fp32 norm=syncbn batch_size=2 optim\.lr=0\.05"):
        precision_difference(runs[(runs["norm"] != "syncbn") | (runs["precision"] == "bf16")])


def test_rates_between_are_linear_in_both_logarithms():
    assert [between(0.4, 0.1, size) for size in (2, 4, 8, 16, 32)] == [0.4, 0.283, 0.2, 0.141, 0.1]


def test_the_preset_gives_each_run_its_rate(tmp_path):
    best = {("bn", False, 2): 0.4, ("gn", True, 2): 0.2, ("gn", False, 32): 0.4}
    runs = made(best)
    text = preset(best_rates(runs, "bf16"), precision_difference(runs))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/tuned.yaml").write_text(text)
    register_schemas()
    register_launchers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        given = ["experiment=tuned", f"hydra.searchpath=[file://{tmp_path}]"]
        composer = Composer(loader.load_configuration("config", given, RunMode.MULTIRUN), loader)

        def rate(*overrides: str) -> float:
            return composer.compose(["experiment=tuned", *overrides])[0].optim.lr

        assert rate("norm=bn", "batch_size=2") == 0.4
        assert rate("norm=bn", "batch_size=8") == 0.2
        assert rate("norm=bn", "batch_size=32") == 0.1
        assert rate("norm=gn", "batch_size=2") == 0.1
        assert rate("norm=gn", "batch_size=32") == 0.4
        assert rate("norm=gn", f"{WS}=true", "batch_size=2") == 0.2
        assert rate("norm=gn", f"{WS}=true", "batch_size=8") == 0.141


def test_the_preset_of_the_studies_is_made_from_the_published_runs():
    path = CONF / "experiment/tuned_rates.yaml"
    runs = read("rates")
    assert runs is not None
    try:
        difference = precision_difference(runs)
        made_again = preset(best_rates(runs, chosen_precision(difference)), difference)
    except Missing:
        assert not path.exists(), f"{HERE}/rates is not whole"
    else:
        assert path.read_text() == made_again
