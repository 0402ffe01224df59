"""What became of runs, from their directories and the queue."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from launch.jobs import announce
from launch.status import main, read_status, status_table
from normlab.console import duration, plain_console
from normlab.run import name_run
from normlab.run_files import read_progress
from normlab.run_state import STATES, began_at
from normlab.squeue import QueuedJob
from tests.processes import ROOT
from tests.runs import typed

NOT_A_PROCESS = 2**22 + 1  # above the kernel's largest process id
HERE = {"launcher": "local", "host": socket.gethostname(), "total_samples": 1000}
POINT = {"step": 1, "samples_seen": 100, "epoch": 0.5}
GLOO = "rank 0: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by [rank0] :x:"


@pytest.fixture(scope="module")
def config():
    return typed()


@pytest.fixture
def make_run(config, tmp_path):
    def make(seed=0):
        cfg = replace(config, output_dir=str(tmp_path), seed=seed)
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
        {**POINT, "train/loss": 1.0, "images_per_second": 50.0},
        {**POINT, "val/accuracy": 0.25},
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


def test_a_run_waits_for_its_turn_while_its_sweep_lives_and_is_begun_or_not_after(make_run):
    run = make_run()
    assert read_status(run.directory, {}).state == "stale"
    announce(run, {**HERE, "pid": os.getpid()})
    assert read_status(run.directory, {}).state == "queued"
    announce(run, {**HERE, "pid": NOT_A_PROCESS})
    status = read_status(run.directory, {})
    assert (status.state, "no checkpoint yet" in status.detail) == ("stale", True)
    (run.directory / "checkpoint.previous.pt").touch()
    status = read_status(run.directory, {})
    assert (status.state, "goes on from its checkpoint" in status.detail) == ("stale", True)


def test_a_later_process_with_a_sweeps_number_is_not_that_sweep(make_run):
    run = make_run()
    with subprocess.Popen(["sleep", "100"]) as later:
        before, began = began_at(os.getpid()), began_at(later.pid)
        announce(run, {**HERE, "pid": later.pid, "began": began})
        assert read_status(run.directory, {}).state == "queued"
        announce(run, {**HERE, "pid": later.pid, "began": before})
        assert read_status(run.directory, {}).state == "stale"
        later.kill()
    assert 0 < int(before) < int(began)


def test_a_run_that_was_planned_and_never_began_is_not_stale(make_run):
    run = make_run()
    (run.directory / "config.yaml").unlink()
    announce(run, {**HERE, "pid": NOT_A_PROCESS})
    status = read_status(run.directory, {})
    assert (status.state, status.detail.partition(";")[0]) == ("waiting", "not begun")


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
    point = {"epoch": 0.5, "val/accuracy": 0.1, "images_per_second": 1.0}
    lines = [json.dumps({"step": n, "samples_seen": n * 8, **point}) for n in range(5000)]
    run.metrics_path.write_text("\n".join([*lines, '{"step": 5000, "samples_seen": 40000, "epoch": 1.0}', ""]))
    progress = read_progress(run.directory)
    assert (progress.samples_seen, progress.score, progress.problem) == (40000, 0.1, "")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Calls `python -m launch.status`; gives its stdout, a line per run, and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["status", str(tmp_path), *arguments])
        monkeypatch.setattr("launch.status.read_queue", dict)
        main()
        return capsys.readouterr()

    return call


DAMAGES = [
    ("result.json", "{}"),
    ("result.json", "[1]"),
    ("result.json", '{"status": "finished", "metr'),
    ("launch.json", '{"host": "here"}'),
    ("launch.json", '{"launcher": "local", "host": [], "pid": -1}'),
    ("launch.json", "null"),
    ("metrics.jsonl", json.dumps(POINT) + "\n{broken\n[]\n" + json.dumps(POINT) + "\n"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGES)
def test_a_damaged_file_is_one_line_and_hides_no_other_run(name, content, make_run, command):
    damaged, good = make_run(0), make_run(1)
    good.write_result("finished", {"val/accuracy": 0.5})
    (damaged.directory / name).write_text(content)
    out, err = command()
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["stale", "finished"]
    (line,) = err.splitlines()
    assert line.startswith(f"warning: {damaged.directory}: {name} ")
    (status, _) = json.loads(command("--json").out)
    assert status["problems"][0].startswith(name)


@pytest.mark.parametrize("name", ["result.json", "launch.json", "metrics.jsonl"])
def test_a_directory_in_a_files_place_is_named(name, make_run, command):
    run = make_run(0)
    (run.directory / name).mkdir()
    assert command().err == f"warning: {run.directory}: {name} cannot be read (Is a directory)\n"


def refuse(error):
    def call(*_):
        raise OSError(error, os.strerror(error))

    return call


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EPERM])
def test_where_a_lock_cannot_be_looked_at_that_is_said_unless_the_run_has_ended(
    error, make_run, command, monkeypatch
):
    runs = [make_run(0), make_run(1)]
    for run in runs:
        with run.lock():
            pass
    runs[1].write_result("finished", {"val/accuracy": 0.5})
    monkeypatch.setattr(fcntl, "flock", refuse(error))
    unknown, finished = command().out.splitlines()[1:3]
    assert unknown.split()[0] == "unreadable"
    assert f"lock cannot be looked at ({os.strerror(error)})" in unknown
    assert finished.split()[0] == "finished"


@pytest.fixture
def command_of_another(command, tmp_path):
    """Calls the command as another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")

    def call():
        for folder in (tmp_path, *tmp_path.parents):
            if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
                folder.chmod(0o755)
        os.seteuid(65534)
        try:
            return command()
        finally:
            os.seteuid(0)

    return call


def test_another_users_lock_cannot_be_looked_at(make_run, command_of_another):
    (make_run().directory / "lock").touch(0o600)
    assert "lock cannot be looked at (Permission denied)" in command_of_another().out.splitlines()[1]


def test_another_users_closed_folder_may_be_a_run_and_hides_no_other(make_run, command_of_another):
    closed, readable = make_run(0), make_run(1)
    closed.directory.chmod(0o700)
    readable.write_result("finished", {"val/accuracy": 0.5})
    shown = command_of_another()
    unreadable, finished = shown.out.splitlines()[1:3]
    assert unreadable.split()[:2] == ["unreadable", f"test/{closed.directory.name}"]
    assert finished.split()[:2] == ["finished", f"test/{readable.directory.name}"]
    assert f"{closed.directory}: result.json cannot be read (Permission denied)" in shown.err


def test_a_detail_is_shown_as_it_is(make_run, command):
    make_run().write_result("failed", {}, {"error": GLOO})
    assert GLOO in command().out


def test_what_is_not_utf8_is_shown_escaped(make_run, command):
    """A folder's name, and an error that quotes one."""
    run = make_run()
    run.write_result("failed", {}, {"error": os.fsdecode(b"no file p\xffcture.png")})
    run.directory.rename(run.directory.with_name(os.fsdecode(b"r\xffn")))
    shown = command().out
    assert r"test/r\udcffn" in shown
    assert r"no file p\udcffcture.png" in shown


def test_on_a_terminal_details_stand_below_the_table_and_cut_no_column(make_run, monkeypatch, capsys, tmp_path):
    make_run().write_result("failed", {}, {"error": GLOO})
    statuses = [read_status(run, {}) for run in tmp_path.glob("test/*")]
    monkeypatch.setattr(
        "launch.status.plain_console", lambda: plain_console(force_terminal=True, width=80, no_color=True)
    )
    status_table(statuses * 2, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert all(word in lines[0] for word in ("state", "run", "samples", "acc/mIoU", "last sign"))
    assert lines[-1] == f"failed: test/{Path(statuses[0].run).name} and 1 more: {GLOO}"


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


def test_a_reader_that_leaves_ends_the_command_quietly(make_run, tmp_path):
    make_run()
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "launch.status", tmp_path, "--json"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert "BrokenPipe" not in done.stderr


def test_the_documentation_explains_every_state():
    section = (ROOT / "docs" / "sweeps.md").read_text().partition("## States")[2]
    explained = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")][1:]
    assert sorted(" ".join(explained).replace(",", "").split()) == sorted(STATES)


def test_durations_are_short():
    assert [duration(s) for s in (None, 5, 90, 5400, 200000)] == ["", "5 s", "2 min", "1.5 h", "2.3 d"]
