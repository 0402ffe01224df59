"""What became of runs, from their directories and the queue."""

import json
import os
import socket
import subprocess
import sys

import pytest

from launch.jobs import announce
from launch.squeue import QueuedJob
from launch.status import duration, read_progress, read_status
from normlab.run import name_run
from tests.processes import ROOT
from tests.runs import typed

NOT_A_PROCESS = 2**22 + 1  # above the kernel's largest process id
HERE = {"launcher": "local", "host": socket.gethostname(), "total_samples": 1000}


@pytest.fixture
def make_run(tmp_path):
    def make(seed=0):
        cfg = typed(f"output_dir={tmp_path}", f"seed={seed}")
        run = name_run(cfg, world_size=1, study="test", data_fingerprint="")
        run.create()
        return run

    return make


def test_an_ended_run_has_the_state_of_its_result(make_run):
    run = make_run()
    for status in ("finished", "diverged"):
        run.write_result(status, {"val/accuracy": 0.5} if status == "finished" else {})
        assert read_status(run.directory, {}).state == status
    run.write_result("failed", {}, {"error": "rank 1: first\nout of luck"})
    status = read_status(run.directory, {})
    assert (status.state, status.detail) == ("failed", "out of luck")


def test_a_run_whose_lock_is_held_is_running_whatever_is_left_of_an_earlier_attempt(make_run):
    run = make_run()
    run.write_result("failed", {}, {"error": "before"})
    points = [
        {"step": 1, "samples_seen": 100, "train/loss": 1.0, "images_per_second": 50.0},
        {"step": 1, "samples_seen": 100, "val/accuracy": 0.25},
    ]
    run.metrics_path.write_text("".join(json.dumps(point) + "\n" for point in points) + '{"cut')
    announce(run, {**HERE, "pid": os.getpid()})
    os.utime(run.directory / "config.yaml", (0, 0))
    with run.lock():
        status = read_status(run.directory, {})
    assert (status.state, status.samples_seen, status.total_samples) == ("running", 100, 1000)
    assert (status.score, status.time_left_s) == (0.25, 18.0)
    assert 0 <= status.age_s < 60
    assert read_status(run.directory, {}).state == "failed"


def test_a_run_waits_for_its_turn_while_its_sweep_lives_and_is_stale_after(make_run):
    run = make_run()
    assert read_status(run.directory, {}).state == "stale"
    announce(run, {**HERE, "pid": os.getpid()})
    assert read_status(run.directory, {}).state == "queued"
    announce(run, {**HERE, "pid": NOT_A_PROCESS})
    assert read_status(run.directory, {}).state == "stale"


@pytest.mark.parametrize(
    ("slurm_state", "expected"), [("PENDING", "queued"), ("RUNNING", "running"), (None, "stale")]
)
def test_slurms_queue_tells_of_jobs_on_other_machines(slurm_state, expected, make_run):
    run = make_run()
    announce(run, {"launcher": "slurm", "job_id": "12_3", "submission": "me"})
    queue = {"12_3": QueuedJob("12_3", slurm_state, "Priority", "me")} if slurm_state else {}
    status = read_status(run.directory, queue)
    assert status.state == expected
    assert (status.detail == "Priority") == (slurm_state == "PENDING")


def test_progress_is_read_from_the_end_of_a_long_file(make_run):
    run = make_run()
    assert read_progress(run.directory).samples_seen == 0
    point = {"val/accuracy": 0.1, "images_per_second": 1.0}
    lines = [json.dumps({"step": n, "samples_seen": n * 8, **point}) for n in range(5000)]
    run.metrics_path.write_text("\n".join([*lines, '{"step": 5000, "samples_seen": 40000}', ""]))
    progress = read_progress(run.directory)
    assert (progress.samples_seen, progress.score) == (40000, 0.1)


STATUS = """
import sys
sys.argv = ["status", *{arguments!r}]
from launch.status import main
main()
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_the_command_shows_every_run_and_imports_no_torch(form, make_run, tmp_path):
    make_run(0).write_result("finished", {"val/accuracy": 0.5})
    make_run(1)
    script = STATUS.format(arguments=[str(tmp_path), *form])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if form:
        shown = {run["run"].split("-")[-2]: run["state"] for run in json.loads(done.stdout)}
        assert shown == {"s0": "finished", "s1": "stale"}
    else:
        finished, stale = done.stdout.splitlines()[1:3]
        assert finished.split()[0] == "finished"
        assert "test/bn-b32-w1-resnet8-shapes-s0" in finished
        assert "0.5000" in finished
        assert stale.split()[0] == "stale"
        assert done.stdout.splitlines()[-1] == "1 stale, 1 finished"


def test_a_folder_that_is_not_there_is_one_line_and_exit_code_2():
    command = [sys.executable, "-m", "launch.status", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nowhere" in done.stderr


def test_durations_are_short():
    assert [duration(s) for s in (None, 5, 90, 5400, 200000)] == ["", "5 s", "2 min", "1.5 h", "2.3 d"]
