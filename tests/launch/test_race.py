"""hydra/sweeper=race as a person runs it: real runs of a few steps, real signals."""

import json
import os
import signal
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from launch import train
from tests.processes import TINY, TRAIN, Job, alive, descendants, until

RACE = ["-m", "hydra/sweeper=race", "norm=bn,ln", *TINY, "batch_size=8", "epochs=1", "model.width=4", "threads=1"]
RACE += ["optim.lr=0.05,0.2", "hydra.sweeper.max_seeds=2", "progress=false", "diagnostics=false"]
RATES, SEEDS = 2 * 2, 2 * 2


def ended(folder):
    return list(folder.glob("runs/race/*/result.json"))


def found(folder):
    """What a race came to, without how long it took, and in an order that does not depend on how it was cut."""
    race = json.loads((folder / "runs/race/race.json").read_text())
    for run in race["runs"]:
        del run["images_per_second"]
    race["runs"].sort(key=lambda run: run["run"])
    return {key: value for key, value in race.items() if key not in ("used_s", "trained_samples")}


@pytest.fixture(scope="module")
def raced(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raced")
    return folder, Job(folder, TRAIN, *RACE).end()


def test_a_race_trains_what_it_needs_and_ends_with_a_table_a_verdict_and_a_figure(raced):
    folder, (code, out, err) = raced
    assert code == 0, err
    assert len(ended(folder)) == RATES + SEEDS
    race = found(folder)
    assert [len(one["scores"]) for one in race["standings"]] == [2, 2]
    assert all(race["costs"][norm]["saved_bytes"] > 0 for norm in ("bn", "ln"))
    table, _, verdict = out.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == [
        "norm",
        *(one["norm"] for one in race["standings"]),
    ]
    assert verdict.splitlines()[0] == race["verdict"]
    assert "python -m normlab.report runs/race" in verdict
    assert len(verdict.splitlines()) == 3, "and no list of all runs, which would push it out of sight"
    assert {path.name for path in folder.glob("runs/race/race.*")} == {"race.json", "race.png", "race.svg"}
    said = [line.removeprefix("race: ") for line in err.splitlines() if line.startswith("race: ")]
    assert said[0].startswith("data.val_fraction=0.1")
    assert said[1:] == race["decisions"]


def test_rates_are_chosen_by_val_and_norms_compared_by_test(raced):
    folder, _ = raced
    for run in found(folder)["runs"]:
        result = json.loads((folder / "runs/race" / run["run"] / "result.json").read_text())
        assert result["eval_split"] == "val"
        assert run["score"] == result["metrics"]["val/accuracy" if run["seed"] == 0 else "test/accuracy"]


def test_the_same_command_trains_nothing_and_says_the_same(raced, monkeypatch, capsys):
    folder, (_, out, _) = raced
    before = {path: path.stat().st_mtime_ns for path in ended(folder)}
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train.py", *RACE, "hydra.sweeper.budget_samples=1"])
    train.main()
    GlobalHydra.instance().clear()
    assert capsys.readouterr().out == out
    assert {path: path.stat().st_mtime_ns for path in ended(folder)} == before


def test_another_question_in_its_folder_is_refused(raced, run_train):
    runs = raced[0] / "runs"
    code, err = run_train(*RACE, f"output_dir={runs}", "batch_size=4", "hydra.sweeper.error_rate=0.1")
    assert code == 2
    assert err.startswith(f"error: {runs}/race/race.json is of a race with other norms, error_rate"), err
    assert len(err.splitlines()) == 1


def test_a_race_that_is_killed_that_its_budget_ends_that_is_stopped_and_forgets_comes_to_the_same_decisions(
    raced, start, tmp_path
):
    """86 images in steps of 8: 80 samples per run."""
    cheap = [*RACE, f"hydra.sweeper.budget_samples={80 * RATES + 1}"]
    killed = start(TRAIN, *cheap)
    until(lambda: ended(tmp_path))
    left = descendants(killed.process.pid)
    killed.process.kill()
    until(lambda: not any(map(alive, left)))
    assert killed.end()[0] == -signal.SIGKILL
    code, out, err = start(TRAIN, *cheap).end()
    assert code == 0, err
    assert len(ended(tmp_path)) == RATES
    assert out.startswith(
        "bn and ln have not been compared yet. The race ended early: budget_samples=321 is too few"
    )
    assert "race: bn is tuned" in err
    assert "[1 samples left]" in err
    job = start(TRAIN, *RACE)
    until(lambda: len(ended(tmp_path)) > RATES)
    os.killpg(job.process.pid, signal.SIGINT)
    code, out, err = job.end()
    assert code == 128 + signal.SIGINT, err
    assert "The same command goes on with what is left." in out
    (tmp_path / "runs/race/race.json").unlink()
    code, _, err = start(TRAIN, *RACE).end()
    assert code == 0, err
    assert found(tmp_path) == found(raced[0])


def test_a_run_that_fails_stops_the_race_and_is_named(raced, start, tmp_path):
    """A race that went on without it would decide by what happened to work."""
    first = found(raced[0])["runs"][0]
    (tmp_path / "runs/race" / first["run"] / "metrics.jsonl").mkdir(parents=True)
    code, out, err = start(TRAIN, *RACE).end()
    assert code == 1, err
    assert "Traceback" not in err
    name = f"norm={first['norm']} {first['setting'][0]} seed={first['seed']}"
    assert f"race: {name} did not end; the same command goes on" in err
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("failed")] == [
        ["failed", f"norm={first['norm']}"]
    ]
    assert found(tmp_path)["standings"] == []


REFUSED = [
    (["norm=bn"], "list them: norm=bn,syncbn,gn"),
    (["norm=bn,bn"], "list them: norm=bn,syncbn,gn"),
    (["norm=bn,nothing"], "there is no norm=nothing"),
    (["norm=bn,gn", "batch_size=4,8"], "batch_size=4,8: a race goes over"),
    (["norm=bn,gn", "optim.lr=interval(0.1,1)"], "optim.lr=interval(0.1,1): a race goes over"),
    (["norm=bn,gn", "norm.num_groups=3"], "norm.num_groups=3 does not divide"),
    (["norm=bn,gn", "data.val_fraction=0"], "data.val_fraction=0 leaves no images to choose rates by"),
    (["norm=bn,gn", "max_samples=1000"], "max_samples=1000"),
    (["norm=bn,gn", "rerun=true"], "rerun=true"),
    (["norm=bn,gn", "hydra.sweeper.budget_min=0"], "hydra.sweeper.budget_min=0.0 is out of range"),
    (["norm=bn,gn", "hydra.sweeper.budget_samples=-1"], "hydra.sweeper.budget_samples=-1 is out of range"),
    (["norm=bn,gn", "hydra.sweeper.max_seeds=1"], "hydra.sweeper.max_seeds=1 is out of range"),
    (["norm=bn,gn", "hydra.sweeper.error_rate=1"], "hydra.sweeper.error_rate=1.0 is out of range"),
    (["norm=bn,gn", "+hydra.sweeper.seeds=3"], "there is no key hydra.sweeper.seeds"),
    (["norm=bn,gn", "hydra/launcher=slurm", "hydra.launcher.wait=false"], "hydra.launcher.wait=false"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=lambda value: value[-1])
def test_what_no_race_can_answer_is_one_line_and_exit_code_2(overrides, words, run_train, tmp_path):
    code, err = run_train("-m", "hydra/sweeper=race", *overrides)
    assert code == 2
    errors = [line for line in err.splitlines() if not line.startswith("race: data.val_fraction")]
    assert len(errors) == 1, err
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert list(tmp_path.glob("runs/*")) == []


OWN_DATA = """
import numpy as np
def load():
    pictures = [(np.full((32, 32, 3), 20 * i, np.uint8), i % 2) for i in range(12)]
    return {"train": pictures, "val": pictures[:4], "test": pictures[4:8]}
"""


@pytest.mark.parametrize("given", [[], ["data.val_fraction=0"]])
def test_a_val_folder_of_the_data_chooses_rates(given, run_train, own_module, tmp_path):
    """Nothing more is held out; norm.num_groups=3 ends the command at the plan of the first runs."""
    data = ["data=custom", f"data.target={own_module(OWN_DATA)}:load", f"data.cache_dir={tmp_path}/cache", *given]
    code, err = run_train("-m", "hydra/sweeper=race", "norm=bn,gn", "norm.num_groups=3", "batch_size=2", *data)
    assert code == 2
    assert "norm.num_groups=3 does not divide" in err
    assert "race: data.val_fraction" not in err
