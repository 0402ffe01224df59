"""`python -m normlab.evaluate`: what a training would have ended with, had it been evaluated otherwise."""

import json
import re
import subprocess
import sys

import pytest

from normlab.config import ConfigError
from normlab.evaluate import Evaluation, evaluate_run, main
from normlab.evaluator import Evaluator
from tests.runs import EXACT, run_training

SHORT = [*EXACT, "epochs=1", "batch_size=4", "diagnostics=false"]


def metrics_of(trained, split):
    return {name: value for name, value in trained["outcome"].metrics.items() if name.startswith(f"{split}/")}


def trained_here(tmp_path, *overrides):
    return run_training(0, [*SHORT, f"output_dir={tmp_path}", *overrides])


@pytest.mark.parametrize("policy", ["rank0", "pooled", "precise"])
def test_another_policy_gives_what_a_training_under_it_ends_with(policy, tmp_path):
    ranks = ["norm=bn", "virtual_ranks=4", "norm.precise_samples=64"]
    plain = trained_here(tmp_path, *ranks)
    expected = metrics_of(trained_here(tmp_path, *ranks, f"norm.running_stats={policy}"), "val")
    found = evaluate_run(plain["run"].directory, [f"norm.running_stats={policy}"], ["val"])
    assert found.metrics == expected
    assert found.samples_seen == 96
    assert policy == "rank0" or found.metrics != metrics_of(plain, "val")


@pytest.mark.parametrize(
    "norm", [["norm=bn"], ["norm=syncbn", "norm.sync_group_size=2"], ["norm=gn"]], ids=lambda norm: norm[0]
)
def test_a_run_of_several_ranks_is_evaluated_with_the_statistics_of_all(norm, ranks, tmp_path):
    world_size = 4 if "norm=syncbn" in norm else 2
    overrides = [*SHORT, *norm, f"output_dir={tmp_path}", f"world_size={world_size}"]
    policy = [] if norm == ["norm=gn"] else ["norm.running_stats=pooled"]
    directory = ranks.run(run_training, overrides, world_size=world_size)[0]["run"].directory
    expected = ranks.run(run_training, [*overrides, *policy], world_size=world_size)[0]
    found = evaluate_run(directory, policy)
    assert found.metrics == pytest.approx(metrics_of(expected, "val"), rel=1e-12)


def test_the_splits_that_are_asked_for_and_a_batch_of_another_size(tmp_path):
    trained = trained_here(tmp_path, "norm=bn")
    found = evaluate_run(trained["run"].directory, ["eval_batch_size=7"], ["train"]).metrics
    assert found.keys() == {"train/accuracy", "train/loss"}
    assert found["train/accuracy"] == trained["outcome"].metrics["train/accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["norm.running_stats=best"], "norm.running_stats"),
        (["norm.num_groups=4"], "norm.num_groups is not a key of norm=bn"),
        (["optim.lr=0.5"], "optim.lr is part of what was trained"),
        (["seed=3"], "seed is part of what was trained"),
        (["norm=gn"], "norm=gn: give a key and its value"),
        (["+norm.running_stats=pooled"], "give a key and its value"),
        (["seed=1,2"], "seed=1,2: give a key and its value"),
        (["world_size=2"], "world_size is part of what was trained"),
        (["data.num_train=64"], "data.num_train is part of what was trained"),
    ],
)
def test_what_would_be_another_run_is_refused(changes, message, trained_once):
    with pytest.raises(ConfigError, match=re.escape(message)):
        evaluate_run(trained_once, changes)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    return trained_here(tmp_path_factory.mktemp("runs"), "norm=bn")["run"].directory


def test_a_split_that_the_data_lack_is_refused_before_anything_is_evaluated(trained_once, monkeypatch):
    monkeypatch.setattr(Evaluator, "split", None)
    with pytest.raises(ConfigError, match="--split test: these data have none; choose from val, train"):
        evaluate_run(trained_once, [], ["val", "test"])


def test_initial_weights_that_lie_elsewhere_now_are_told(trained_once, tmp_path):
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    old.write_bytes((trained_once / "checkpoint.pt").read_bytes())
    run = trained_here(tmp_path, "norm=bn", f"model.init_from={old}")["run"].directory
    before = evaluate_run(run, [])
    old.rename(new)
    with pytest.raises(ConfigError, match=r"there is no .*old\.pt"):
        evaluate_run(run, [])
    assert evaluate_run(run, [f"model.init_from={new}"]).metrics == before.metrics
    new.write_bytes(b"another file")
    with pytest.raises(ConfigError, match=r"checkpoint\.pt is not this run's \(it was saved by run "):
        evaluate_run(run, [f"model.init_from={new}"])


def test_what_is_not_there_is_named(trained_once, tmp_path, capsys):
    for arguments, message in (
        ([str(tmp_path)], "config.yaml cannot be read"),
        (["norm.running_stats=pooled"], "no run is named"),
    ):
        with pytest.raises(SystemExit, match=r"^2$"):
            main(arguments)
        assert message in capsys.readouterr().err
    (tmp_path / "config.yaml").write_bytes((trained_once / "config.yaml").read_bytes())
    with pytest.raises(ConfigError, match=r"checkpoint\.pt is not there"):
        evaluate_run(tmp_path, [])


def test_a_loss_that_is_not_finite_is_null_in_json_and_said_in_words(monkeypatch, capsys):
    metrics = {"val/accuracy": 0.5, "val/loss": float("nan"), "test/loss": float("inf")}
    found = Evaluation("runs/a", "0123abcd", [], 8, metrics)
    monkeypatch.setattr("normlab.evaluate.evaluate_run", lambda *args: found)
    main(["runs/a", "--json"])
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert answer["metrics"] == {"val/accuracy": 0.5, "val/loss": None, "test/loss": None}
    main(["runs/a"])
    assert capsys.readouterr().out == "runs/a: val/accuracy 0.5000  val/loss nan  test/loss inf\n"


def test_the_command_prints_a_line_or_an_object_per_run_and_leaves_the_run_as_it_was(trained_once):
    before = {path: path.read_bytes() for path in trained_once.iterdir() if path.is_file()}
    command = [sys.executable, "-m", "normlab.evaluate", str(trained_once), str(trained_once)]
    command += ["norm.running_stats=precise", "--split", "val", "--json"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 2
    answer = json.loads(lines[0])
    assert answer["changes"] == ["norm.running_stats=precise"]
    assert answer["metrics"].keys() == {"val/accuracy", "val/loss"}
    assert trained_once.name.endswith(answer["hash"])
    assert {path: path.read_bytes() for path in trained_once.iterdir() if path.is_file()} == before
