"""A rank's way through a run whose directory holds damaged or foreign files, or results to be replaced."""

import shutil
from dataclasses import replace

import pytest

from launch import rank
from normlab import checkpoint, data
from normlab.preflight import plan
from normlab.run import Run
from tests.runs import typed

RUN = ["data.num_train=16", "data.num_test=12", "batch_size=8", "epochs=2", "model.width=4", "threads=1"]
RUN += ["eval_batch_size=8", "eval_train_samples=8", "diagnostics=false", "progress=false"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    cfg = replace(typed(*RUN, f"output_dir={tmp_path_factory.mktemp('ended')}"), world_size=1)
    run = plan(cfg, data.load(cfg.data), world_size=1, study="test")
    assert rank.run_rank(cfg, "test", run) == 0
    return run


@pytest.fixture
def copy(ended, tmp_path):
    """The ended run, in a directory of this test's own."""
    shutil.copytree(ended.directory, tmp_path / "run")
    return replace(ended, directory=tmp_path / "run")


def train(run: Run) -> int:
    return rank.run_rank(run.config, "test", run)


def contents(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.directory.iterdir() if path.name != "lock"}


@pytest.mark.parametrize("held", [b"", b'{"status": "fini', b"[]"])
def test_a_damaged_result_is_said_and_made_again_from_the_checkpoint(held, copy, ended, capsys):
    (copy.directory / "result.json").write_bytes(held)
    assert train(copy) == 0
    assert copy.result()["metrics"] == ended.result()["metrics"]
    assert copy.result()["resumed"] == 1
    assert "warning: " in (said := capsys.readouterr().err)
    assert "result.json" in said


@pytest.mark.parametrize("held", [b"", b"{", b'{"launcher": 3}'])
def test_a_damaged_launch_json_costs_a_run_that_entry_and_no_more(held, copy, capsys):
    (copy.directory / "result.json").unlink()
    (copy.directory / "launch.json").write_bytes(held)
    assert train(copy) == 0
    assert copy.result()["status"] == "finished"
    assert "launch" not in copy.result()
    assert "launch.json" in capsys.readouterr().err


def test_the_checkpoint_of_another_run_is_refused(copy, capsys):
    (copy.directory / "result.json").unlink()
    state = checkpoint.load(copy.checkpoint_path)
    checkpoint.save(copy.checkpoint_path, {**state, "hash": "another"})
    assert train(copy) == 2
    assert "checkpoint.pt is not this run's (it was saved by run another)" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["built", "trained"])
def test_an_error_is_shown_where_it_cannot_be_recorded(moment, copy, capsys, monkeypatch):
    def fail(*_):
        (copy.directory / "result.json").unlink(missing_ok=True)
        (copy.directory / "result.json").mkdir()
        raise RuntimeError("out of luck")

    (copy.directory / "result.json").unlink()
    monkeypatch.setattr(rank.Trainer, "__init__" if moment == "built" else "train", fail)
    assert train(copy) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: out of luck" in said
    assert "result.json cannot be written" in said


def test_nothing_goes_before_a_run_that_starts_over_begins_to_train(copy, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(rank.Trainer, "__init__", fail)
    before = contents(copy)
    assert train(replace(copy, attempt="again")) == 1
    assert "RuntimeError: out of luck" in capsys.readouterr().err
    assert contents(copy) == before
    assert copy.ended()


def test_a_run_that_starts_over_leaves_nothing_of_the_one_before(copy, ended):
    (copy.directory / "of before").mkdir()
    again = replace(copy, attempt="again")
    assert train(again) == 0
    assert again.result()["metrics"] == ended.result()["metrics"]
    assert again.result()["resumed"] == 0
    assert len(contents(again)) == len(contents(ended)) + 1  # `attempt`
