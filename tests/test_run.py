"""A run's identity and its directory."""

import errno
import fcntl
import json
import math
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from normlab.config import ConfigError
from normlab.run import Run, name_run
from normlab.run_files import read_result
from tests.runs import typed


def named(*overrides: str, world_size: int = 2, fingerprint: str = "abc") -> Run:
    return name_run(typed(*overrides), world_size=world_size, study="test", data_fingerprint=fingerprint)


def test_the_directory_says_what_the_run_is():
    run = named("norm=gn", "batch_size=4", "model=resnet20", "seed=3", "output_dir=out")
    assert str(run.directory) == f"out/test/gn-b4-w2-resnet20-shapes-s3-{run.hash}"
    assert run.config.world_size == 2


@pytest.mark.parametrize("same", ["threads=1", "device=cpu", "output_dir=x", "log_every=1", "rerun=true"])
def test_what_does_not_change_the_result_does_not_change_the_hash(same):
    assert named(same).hash == named().hash


@pytest.mark.parametrize("other", ["seed=1", "optim.lr=0.2", "norm.eps=1e-3", "epochs=3", "precision=bf16"])
def test_what_changes_the_result_changes_the_hash(other):
    assert named(other).hash != named().hash


def test_data_enters_by_content():
    assert named(fingerprint="other").hash != named().hash
    assert named("data=image_folder", "data.root=a").hash == named("data=image_folder", "data.root=b").hash


@pytest.mark.parametrize(
    ("overrides", "samples", "expected"),
    [
        (["batch_size=8", "epochs=3"], 50, (3, 9)),
        (["batch_size=8", "epochs=3", "max_samples=100"], 50, (3, 6)),
        (["batch_size=8", "accumulate=3", "epochs=2"], 50, (1, 2)),
    ],
)
def test_steps_count_whole_global_batches(overrides, samples, expected):
    assert named(*overrides).steps(samples) == expected


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batch_size=32"], ["batch_size=32", "world_size=2", "64", "50 training samples", "batch_size to 25"]),
        (["batch_size=8", "max_samples=10"], ["global batch of 16", "10 max_samples", "batch_size to 5"]),
        (["batch_size=8", "epochs=2", "optim.warmup_epochs=2"], ["optim.warmup_epochs=2", "2 epochs"]),
    ],
)
def test_lengths_that_do_not_fit_are_named(overrides, words):
    with pytest.raises(ConfigError) as caught:
        named(*overrides).steps(50)
    assert all(word in str(caught.value) for word in words)


def test_a_result_says_what_the_run_was_and_how_it_ended(tmp_path):
    run = named("norm=syncbn", "batch_size=4", "accumulate=2", f"output_dir={tmp_path}")
    run.create()
    assert run.result() is None
    assert not run.ended()
    run.write_result("finished", {"val/accuracy": 0.5}, {"wall_s": 1.0})
    result = json.loads((run.directory / "result.json").read_text())
    expected = {"status": "finished", "global_batch_size": 16, "normalization_batch_size": 8, "wall_s": 1.0}
    assert expected.items() <= result.items()
    assert run.ended()


def test_the_first_rank_that_fails_is_the_cause_and_a_new_attempt_forgets_it(tmp_path):
    run = named(f"output_dir={tmp_path}")
    run.create()
    assert run.fail("rank 1: out of memory", "...")
    assert not run.fail("rank 0: connection closed by peer", "...")
    assert run.result()["error"] == "rank 1: out of memory"
    assert not run.ended()
    run.forget_failure()
    assert run.result() is None


def test_rerun_starts_from_an_empty_directory(tmp_path):
    run = named(f"output_dir={tmp_path}")
    run.create()
    run.checkpoint_path.write_text("old")
    run.create()
    assert run.checkpoint_path.exists()
    named(f"output_dir={tmp_path}", "rerun=true").create()
    assert sorted(p.name for p in run.directory.iterdir()) == ["attempt", "config.yaml"]


def test_a_run_starts_over_once_for_each_command(tmp_path):
    """As a job that is requeued does, with the run that it was submitted with."""
    named(f"output_dir={tmp_path}").create()
    named(f"output_dir={tmp_path}").write_result("finished", {"val/accuracy": 0.5})
    first, second = (named(f"output_dir={tmp_path}", "rerun=true") for _ in range(2))
    for run in (first, second):
        assert run.starts_over
        assert not run.ended()
        run.create()
        run.checkpoint_path.write_text("of this command")
        run.create()
        assert run.checkpoint_path.exists()
        run.write_result("finished", {"val/accuracy": 0.6})
        assert run.ended()


def test_no_half_emptied_directory_reads_as_that_of_a_run_that_has_ended(tmp_path, monkeypatch):
    """Cut short after any number of deletions, there is no result, and no checkpoint without what it counts on."""
    names = [
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "config.yaml",
        "events.out",
        "metrics.jsonl",
        "result.json",
    ]
    unlink, left = Path.unlink, [0]

    def cut_short(path, **options):
        left[0] -= 1
        if left[0] < 0:
            raise InterruptedError
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", cut_short)
    for deletions in range(1, len(names)):
        run = named(f"output_dir={tmp_path}/{deletions}", "rerun=true")
        run.directory.mkdir(parents=True)
        for name in names:
            (run.directory / name).write_text("before")
        left[0] = deletions
        with pytest.raises(ConfigError):
            run.create()
        there = {path.name for path in run.directory.iterdir()}
        assert "result.json" not in there
        assert not there & set(names[:2]) or set(names[2:5]) <= there
        assert run.starts_over


def test_what_killed_processes_left_half_written_is_swept_away(tmp_path):
    run = named(f"output_dir={tmp_path}")
    run.directory.mkdir(parents=True)
    here = socket.gethostname()
    gone, alive = subprocess.Popen(["true"]), os.getppid()
    gone.wait()
    swept = [".checkpoint.pt.unfinished~elsewhere~7", f".result.json.unfinished~{here}~{alive}"]
    swept += [f".launch.json.unfinished~{here}~{gone.pid}"]
    kept = [f".launch.json.unfinished~{here}~{alive}", ".launch.json.unfinished~elsewhere~7", ".nfs.unfinished~x"]
    for name in [*swept, *kept]:
        (run.directory / name).write_text("half")
    run.create()
    assert {path.name for path in run.directory.iterdir()} == {"config.yaml", *kept}


@pytest.mark.parametrize("held", [b"", b"{", b"[]", b'{"status": "finished"}'])
def test_a_damaged_result_is_none(held, tmp_path):
    run = named(f"output_dir={tmp_path}")
    run.create()
    (run.directory / "result.json").write_bytes(held)
    assert run.result() is None
    assert not run.ended()
    run.create()
    assert not (run.directory / "result.json").exists()


def test_the_result_of_another_run_is_none_and_named(tmp_path):
    """As in a directory that another's files were copied into."""
    other, run = (named(f"output_dir={tmp_path}", f"seed={seed}") for seed in (0, 1))
    run.create()
    other.create()
    other.write_result("finished", {"val/accuracy": 0.5})
    shutil.copy(other.directory / "result.json", run.directory)
    assert other.ended()
    assert not run.ended()
    assert read_result(run.directory) == (None, f"result.json is that of run {other.hash}")


def test_a_failure_that_cannot_be_recorded_is_still_told(tmp_path, capsys):
    run = named(f"output_dir={tmp_path}")
    (run.directory / "result.json").mkdir(parents=True)
    assert run.fail("rank 0: out of luck", "...")
    assert "result.json cannot be written" in capsys.readouterr().err


def test_a_failure_before_a_run_starts_over_leaves_its_result(tmp_path):
    named(f"output_dir={tmp_path}").create()
    named(f"output_dir={tmp_path}").write_result("finished", {"val/accuracy": 0.5})
    assert named(f"output_dir={tmp_path}", "rerun=true").fail("rank 0: out of luck", "...")
    assert named(f"output_dir={tmp_path}").result()["status"] == "finished"


def test_a_result_is_json_or_an_error(tmp_path):
    run = named(f"output_dir={tmp_path}")
    run.create()
    with pytest.raises(ValueError, match="JSON"):
        run.write_result("finished", {"val/loss": math.nan})
    assert run.result() is None


def test_an_output_dir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output_dir=.*file cannot be written"):
        named(f"output_dir={tmp_path}/file").create()


def test_one_process_has_a_run_at_a_time(tmp_path):
    run = named(f"output_dir={tmp_path}")
    with run.lock() as first:
        assert first
        with run.lock() as second:
            assert not second
    with run.lock() as third:
        assert third


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_flock_is_refused_since_nothing_else_keeps_two_processes_apart(
    error, tmp_path, monkeypatch
):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(ConfigError, match=rf"output_dir={tmp_path} .*without flock"),
        named(f"output_dir={tmp_path}").lock(),
    ):
        pass


def test_rerun_empties_the_directory_but_for_what_its_launcher_has_open(tmp_path):
    run = named(f"output_dir={tmp_path}", "rerun=true")
    with run.lock():
        for name in ("checkpoint.pt", "metrics.jsonl", "events.out", "log.txt", "launch.json"):
            (run.directory / name).write_text("before")
        (run.directory / "figures").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (run.directory / "linked").symlink_to(tmp_path / "elsewhere")
        run.create()
        names = {path.name for path in run.directory.iterdir()}
        assert names == {"lock", "log.txt", "launch.json", "config.yaml", "attempt"}
        assert run.log_path.read_text() == ""
        assert (tmp_path / "elsewhere").exists()
        with run.lock() as second:
            assert not second
