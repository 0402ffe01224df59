"""Runs and points as DataFrames, from real runs and from files that are broken in every way."""

import json
import os

import pytest
import yaml

from launch.jobs import announce
from normlab.config import ConfigError
from normlab.report import load
from normlab.report.__main__ import main
from normlab.report.reading import read
from normlab.report.study import Study
from tests.launch.test_status import NOT_A_PROCESS
from tests.report.conftest import BATCH_SIZES, NORMS, SEEDS
from tests.report.made import make_run
from tests.runs import directory_of


def test_every_run_is_a_row_with_its_settings_and_results(trained):
    runs, _ = load(trained)
    assert len(runs) == len(NORMS) * len(BATCH_SIZES) * len(SEEDS) + 2
    for row in runs.to_dict("records"):
        directory = trained / row["run"]
        config = yaml.safe_load((directory / "config.yaml").read_text())
        assert (row["norm"], row["optim.lr"], row["seed"]) == (
            config["norm"]["name"],
            config["optim"]["lr"],
            config["seed"],
        )
        if row["state"] == "finished":
            result = json.loads((directory / "result.json").read_text())
            assert {tag: row[tag] for tag in result["metrics"]} == result["metrics"]
            assert row["normalization_batch_size"] == result["normalization_batch_size"]
    assert sorted(runs["state"].value_counts().items()) == [("failed", 1), ("finished", 8), ("stale", 1)]
    assert runs.loc[runs["state"] == "failed", "detail"].item() == "rank 0: out of luck"
    assert set(runs["problem"]) == {""}


def test_every_logged_point_is_a_row(trained):
    runs, points = load(str(trained))
    for name in runs["run"]:
        lines = []
        if (trained / name / "metrics.jsonl").exists():
            lines = [json.loads(line) for line in (trained / name / "metrics.jsonl").read_text().splitlines()]
        mine = points[points["run"] == name].drop(columns="run")
        rows = [{k: v for k, v in row.items() if v == v} for row in mine.to_dict("records")]
        assert rows == lines


def test_a_run_that_has_not_begun_is_known_by_its_name_and_overrides(study_folder, tmp_path):
    run = directory_of([f"output_dir={tmp_path}", "norm=ln", "batch_size=4", "seed=5"], 1)
    run.directory.mkdir(parents=True)
    overrides = ["norm=ln", "optim.lr=0.5", "data.root=x=y"]
    announce(run, {"launcher": "local", "host": "elsewhere", "pid": NOT_A_PROCESS, "overrides": overrides})
    run.directory.rename(study_folder / run.directory.name)
    row = load(study_folder)[0].set_index("run").loc[run.directory.name]
    assert (row["state"], row["norm"], row["batch_size"], row["seed"]) == ("waiting", "ln", 4, 5)
    assert (row["optim.lr"], row["virtual_ranks"], row["data.root"]) == (0.5, 1, "x=y")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "metrics.jsonl: the last line is half written": lambda run: cut(run / "metrics.jsonl"),
    "metrics.jsonl: 2 of 16 lines cannot be read, first line 15": lambda run: (run / "metrics.jsonl").write_text(
        (run / "metrics.jsonl").read_text() + 'not json\n{"step": "one", "samples_seen": null}\n'
    ),
    "metrics.jsonl: val/accuracy is not always a number": lambda run: (run / "metrics.jsonl").write_text(
        '{"step": 99, "samples_seen": 99, "epoch": 1.0, "val/accuracy": "high"}\n'
    ),
    "config.yaml is empty": lambda run: (run / "config.yaml").write_text(""),
    "config.yaml is missing": lambda run: (run / "config.yaml").unlink(),
    "config.yaml cannot be read": lambda run: (run / "config.yaml").write_bytes(b"norm: [bn\n\xff"),
    "result.json is empty or damaged": lambda run: cut(run / "result.json"),
    "result.json is not one of normlab's": lambda run: (run / "result.json").write_text('["finished"]'),
    "no norm in config.yaml, so not a run of train.py": lambda run: (
        run.rename(run.with_name("foreign")),
        (run.with_name("foreign") / "config.yaml").write_text("port: 80\n"),
    ),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_a_broken_file_is_named_with_its_run_and_every_other_run_is_there(problem, study_folder, trained):
    victim = next(study_folder.glob("gn-b8*s0-*"))
    BROKEN[problem](victim)
    runs, _ = load(study_folder)
    whole = load(trained)[0]
    assert len(runs) == len(whole)
    [named] = runs.loc[runs["problem"] != "", ["run", "problem", "state"]].values.tolist()
    assert problem in named[1]
    assert named[0] in (victim.name, "foreign")
    if "result" in problem or named[0] == "foreign":
        assert named[2] == "unreadable"
    # n of its cell is what can be read, and the run is counted somewhere.
    study = Study(read(study_folder))
    cell = next(cell for cell in study.cells if cell.norm == "gn" and cell.values["batch_size"] == 8)
    lost = named[2] == "unreadable"
    assert cell.estimate("val/accuracy").n == len(SEEDS) - lost
    assert len(study.unplaced) + sum(len(cell.runs) for cell in study.cells) == len(runs)


def test_only_what_has_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no runs in it"):
        load(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    runs, points = load(tmp_path)
    assert (runs["state"].tolist(), len(points)) == (["unreadable"], 0)


FOREIGN = {
    "metrics.jsonl": [
        '{"step": HUGE, "samples_seen": 1, "epoch": 1}\n',
        '{"step": 1, "samples_seen": 1, "epoch": HUGE}\n',
        '{"step": 1, "samples_seen": 1, "epoch": 1, "val/accuracy": HUGE}\n',
        '{"step": 1, "samples_seen": 1, "epoch": 1, "val/accuracy": [NaN], "norm": "x"}\n',
        "[" * 25_000_000 + "\n",
        '{"step": 1, "samples_seen": 1, "epoch": 1}, {"step": 2, "samples_seen": 2, "epoch": 1}\n',
        r'{"step": 1, "samples_seen": 1, "epoch": 1, "val/\ud800": 0.5}' + "\n",
    ],
    "config.yaml": [
        "norm: {name: bn}\nseed: HUGE\n",
        "norm: {name: bn}\nseed: 1\nbatch_size: HUGE\nmodel: {name: [1]}\n",
        "norm: {name: 5}\nseed: 0\n",
        "norm: {name: bn}\nseed: one\nstate: x\nproblem: {a: b}\n",
        "norm: " + "[" * 1_000_000,
        "- " * 100_000,
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "2026-01-01: {1: .nan, null: 2}\n",
    ],
    "result.json": [
        '{"status": "finished", "metrics": {"val/accuracy": HUGE}}',
        '{"status": "finished", "metrics": {}, "images_per_second": HUGE, "normalization_batch_size": "x"}',
        '{"status": "finished", "metrics": {"run": 1, "norm": 3}, "norm": 4, "images_per_second": "x"}',
        '{"status": "failed", "metrics": {}, "error": [1], "results_version": "x", "eval_split": 3}',
        "[" * 1_000_000,
        r'{"status": "failed", "metrics": {}, "error": "no \udcff"}',
    ],
    "launch.json": ["HUGE", '{"launcher": "local"}', '{"launcher": "slurm", "job_id": HUGE}'],
}


def test_no_content_of_a_file_ends_the_report(tmp_path, capsys):
    """A number of 400 digits, nesting without an end, another program's files, text that is none: each in a run of
    its own."""
    study = tmp_path / "study"
    for seed in (0, 1):
        make_run(study, seed=seed, name=f"whole{seed}", curve={8: 0.25})
    victims = {
        f"{name}-{i}": (name, held) for name, contents in FOREIGN.items() for i, held in enumerate(contents)
    }
    for seed, (victim, (name, held)) in enumerate(victims.items(), start=2):
        make_run(study, seed=seed, name=victim, curve={8: 0.25})
        (study / victim / name).write_text(held.replace("HUGE", "9" * 400))
        load(study / victim)
    (study / "whole0" / "lock").mkdir()
    make_run(study, seed=1000, name=os.fsdecode(b"no \xff"))
    main([str(study), "--out", str(tmp_path / "out")])
    assert f"{3 + len(victims)} runs: " in capsys.readouterr().out
    runs = load(study)[0].set_index("run")
    assert runs.loc[["whole0", "whole1"], "state"].tolist() == ["finished", "finished"]
    odd = {"config.yaml": (0, 1, 3), "result.json": (1, 2, 3, 5), "metrics.jsonl": (6,)}
    named = runs.loc[runs["problem"] != ""].index
    assert set(victims) - set(named) == {f"{name}-{i}" for name, places in odd.items() for i in places}
