"""The study running_stats: what trained runs give under other running statistics, and the verdict on claim 3."""

import pandas as pd
import pytest

from experiments.claims import CLAIMS, HERE, judge
from experiments.running_stats import main, table
from tests.runs import EXACT, run_training

BN = [*EXACT, "norm=bn", "virtual_ranks=4", "epochs=1", "diagnostics=false", "data.val_fraction=0.2"]


def test_each_choice_is_evaluated_and_decides_the_claim(tmp_path):
    out = tmp_path / "out"
    settings = [["seed=0"], ["seed=1"], ["norm=gn"]]
    trained = [run_training(0, [*BN, *keys, "batch_size=2", f"output_dir={tmp_path}/runs"]) for keys in settings]
    for each in trained:
        each["run"].write_result("finished", each["outcome"].metrics)
    main([str(tmp_path / "runs"), "--out", str(out)])
    runs = pd.read_csv(out / "results.csv")
    assert list(runs["norm.running_stats"]) == ["rank0", "pooled", "precise"] * 2
    of_rank0 = runs[runs["norm.running_stats"] == "rank0"]
    for each, (_, row) in zip(trained, of_rank0.iterrows(), strict=False):
        assert row["run"] == each["run"].directory.name
        for name in ("val/loss", "test/loss", "test/accuracy"):
            assert row[name] == each["outcome"].metrics[name]
    assert runs["test/loss"].nunique() == 6

    (claim,) = (one for one in CLAIMS if one.study == "running_stats")
    by_choice = runs.pivot(index="seed", columns="norm.running_stats", values="test/accuracy")
    effects = judge(claim, runs).effects
    for effect, choice in zip(effects, ("pooled", "precise"), strict=True):
        assert effect.n == 2
        assert effect.mean == pytest.approx((by_choice[choice] - by_choice["rank0"]).mean())


def test_a_folder_without_runs_of_bn_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path)])
    assert stop.value.code == 2
    assert "holds no finished run of bn with a checkpoint" in capsys.readouterr().err


def test_the_published_table_is_that_of_the_results():
    folder = HERE / "running_stats"
    made = table(pd.read_csv(folder / "results.csv"))
    assert made in (folder / "README.md").read_text()
    assert made.splitlines()[2].startswith("| 2 | 0.6691 ± ")
