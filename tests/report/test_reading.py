"""Runs and points as DataFrames, from real runs and from files that are broken in every way."""

import json

import pytest
import yaml

from launch.jobs import announce
from normlab.config import ConfigError
from normlab.report import load
from normlab.report.reading import read
from normlab.report.study import Study
from tests.launch.test_status import NOT_A_PROCESS
from tests.report.conftest import BATCH_SIZES, NORMS, SEEDS
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
    assert (row["state"], row["norm"], row["batch_size"], row["seed"]) == ("stale", "ln", 4, 5)
    assert (row["optim.lr"], row["virtual_ranks"], row["data.root"]) == (0.5, 1, "x=y")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "metrics.jsonl: the last line is half written": lambda run: cut(run / "metrics.jsonl"),
    "metrics.jsonl: 2 of 16 lines cannot be read": lambda run: (run / "metrics.jsonl").write_text(
        (run / "metrics.jsonl").read_text() + 'not json\n{"step": "one", "samples_seen": null}\n'
    ),
    "metrics.jsonl: val/accuracy is not always a number": lambda run: (run / "metrics.jsonl").write_text(
        '{"step": 99, "samples_seen": 99, "epoch": 1.0, "val/accuracy": "high"}\n'
    ),
    "config.yaml is empty": lambda run: (run / "config.yaml").write_text(""),
    "config.yaml is missing": lambda run: (run / "config.yaml").unlink(),
    "config.yaml cannot be read": lambda run: (run / "config.yaml").write_bytes(b"norm: [bn\n\xff"),
    "result.json cannot be read": lambda run: cut(run / "result.json"),
    "result.json is not one of normlab's": lambda run: (run / "result.json").write_text('["finished"]'),
    "no norm in config.yaml, so no run of train.py": lambda run: (
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
    with pytest.raises(ConfigError, match="nowhere is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no runs in it"):
        load(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    runs, points = load(tmp_path)
    assert (runs["state"].tolist(), len(points)) == (["unreadable"], 0)
