"""The copy of the code that jobs run. No cluster is needed."""

import os
import subprocess
import sys

import pytest

from launch import snapshot
from launch.commit import current_code
from launch.slurm import submit
from launch.slurm_config import SlurmConfig
from launch.snapshot import remove_snapshots, take_snapshot
from normlab.run_files import find_runs
from normlab.squeue import QueuedJob
from tests.slurm.sweeps import job

WHAT_RUNS = """
from launch.commit import current_code
from launch.slurm_task import SlurmTask
from normlab.targets import call_target
print(current_code())
print(SlurmTask.__module__, __import__("launch").__path__[0])
print(call_target("model.target", "my_nets:build", {}))
"""


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The copy for a job with a model of the user's own, which imports another module of theirs."""
    (tmp_path / "my_nets.py").write_text("from my_parts.block import NAME\ndef build():\n    return NAME\n")
    (tmp_path / "my_parts").mkdir()
    (tmp_path / "my_parts/block.py").write_text("NAME = 'as it was submitted'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("my_nets")  # as planning does, which builds the model
    yield take_snapshot(tmp_path / "logs", [job(tmp_path, "model=custom", "model.target=my_nets:build")], "here")
    for name in ("my_nets", "my_parts", "my_parts.block"):
        sys.modules.pop(name, None)


def test_a_job_runs_normlab_and_the_users_modules_as_they_were_submitted(copy, tmp_path):
    (tmp_path / "my_parts/block.py").write_text("NAME = 'changed since'\n")
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", WHAT_RUNS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        str(current_code()),
        f"launch.slurm_task {copy}/launch",
        "as it was submitted",
    ], done.stderr


def test_nothing_else_of_the_users_folder_is_copied(copy, tmp_path):
    copied = sorted(str(path.relative_to(copy)) for path in (copy / "own_modules").rglob("*") if path.is_file())
    assert copied == ["own_modules/my_nets.py", "own_modules/my_parts/block.py"]
    assert not (take_snapshot(tmp_path / "other", [job(tmp_path)], "here") / "own_modules").exists()


def test_a_copy_is_no_run(tmp_path):
    take_snapshot(tmp_path / ".slurm/normlab-1", [job(tmp_path)], "here")
    assert list(tmp_path.rglob("config.yaml"))
    assert find_runs(tmp_path) == []


def queued(submission: str) -> QueuedJob:
    return QueuedJob("7", "PENDING", "Priority", submission)


@pytest.mark.parametrize(
    ("queue", "cluster", "user", "stays"),
    [
        ({"7": queued("normlab-1")}, "here", 0, True),
        ({"7": queued("normlab-2")}, "here", 0, False),
        ({}, "another", 0, True),
        ({}, "here", 1, True),
    ],
)
def test_a_copy_goes_once_none_of_its_jobs_is_queued_here(queue, cluster, user, stays, tmp_path, monkeypatch):
    made = take_snapshot(tmp_path / ".slurm/normlab-1", [job(tmp_path)], "here")
    owner = os.getuid()
    monkeypatch.setattr(snapshot.os, "getuid", lambda: owner + user)
    remove_snapshots(tmp_path, queue, cluster)
    assert made.exists() == stays


@pytest.mark.parametrize("copied", [True, False])
def test_snapshot_false_runs_the_checkout_and_a_refused_submission_leaves_no_copy(copied, commands, tmp_path):
    submit([job(tmp_path)], SlurmConfig(snapshot=copied))
    (script,) = tmp_path.glob("runs/.slurm/*/*_submission.sh")
    assert (f"PYTHONPATH={script.parent}/code$" in script.read_text()) == copied
    assert bool(list(tmp_path.glob("runs/.slurm/*/code"))) == copied
    commands(sbatch="echo 'sbatch: error: invalid account' >&2; exit 1")
    with pytest.raises(Exception, match="invalid account"):
        submit([job(tmp_path, "seed=1")], SlurmConfig(snapshot=copied))
    assert len(list(tmp_path.glob("runs/.slurm/*/code"))) == 0  # the first is no longer in the queue


def test_the_place_of_an_error_in_a_copied_module_is_told(copy, tmp_path, monkeypatch):
    (copy / "own_modules/my_nets.py").write_text("def build():\n    raise RuntimeError('no')\n")
    code = "from normlab.targets import call_target\ncall_target('model.target', 'my_nets:build', {})"
    env = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "RuntimeError at my_nets.py:2: no" in done.stderr


def test_an_editors_dangling_link_is_not_copied_and_what_cannot_be_is_said_in_words(tmp_path, monkeypatch):
    tree = tmp_path / "tree/launch"
    tree.mkdir(parents=True)
    (tree / "edited.py").touch()
    (tree / ".#edited.py").symlink_to("me@host.1234:5678")
    monkeypatch.setattr(snapshot, "ROOT", tree.parent)
    assert [path.name for path in (take_snapshot(tmp_path / "copy", [], "") / "launch").iterdir()] == ["edited.py"]
    os.mkfifo(tree / "pipe")
    with pytest.raises(OSError, match="pipe` is a named pipe") as refused:
        take_snapshot(tmp_path / "again", [], "")
    assert "is a named pipe" in refused.value.strerror
