"""What a site offers, found out on a real cluster, and on stand-ins of its commands."""

import subprocess
import sys

import pytest

from launch import doctor
from launch.doctor import Finding, _judge
from tests.slurm.cluster import PATIENCE_S
from tests.slurm.sweeps import ROOT


def on_cluster(cluster, output_dir, *settings):
    command = [sys.executable, "-m", "launch.doctor", "--output-dir", str(output_dir), "poll_s=0.1", *settings]
    return subprocess.run(command, cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_healthy_cluster_can_run_sweeps(cluster, tmp_path):
    done = on_cluster(cluster, tmp_path / "runs", "cpus_per_task=1")
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "ok  commands: all found",
        "of two ranks on two nodes",
        "ok  the ranks ran on 127.0.0.11 and 127.0.0.12",
        "ok  gloo all-reduce: ",
        "ok  a lock (flock) of rank 0 is respected by rank 1 between nodes",
        "a sweep can run here",
    ):
        assert line in done.stdout, done.stdout
    assert list((tmp_path / "runs/.slurm").iterdir()) == []


def test_a_job_that_ends_early_is_told_with_its_last_words(cluster, tmp_path):
    done = on_cluster(
        cluster, tmp_path / "runs", "cpus_per_task=1", "setup=['echo error: no module cuda >&2; exit 1']"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "BAD job " in done.stdout
    assert "ended early: " in done.stdout
    assert "1 of these a sweep needs" in done.stdout


REPORT = {
    "host": "n1",
    "python": "Python 3.11 (/env)",
    "torch": "2.15",
    "backend": "gloo",
    "message_ms": 0.1,
    "cpus": 2,
    "gpus": 0,
    "interfaces": ["lo 127.0.0.1"],
    "flock": True,
}


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"flock": False}, "a lock (flock) of rank 0 is not respected by rank 1 between nodes"),
        ({"torch": "2.9"}, "ranks differ: Python 3.11 (/env), torch 2.15; Python 3.11 (/env), torch 2.9"),
    ],
)
def test_what_a_sweep_needs_and_a_site_does_not_have_is_bad(second, text):
    found = list(_judge([REPORT, REPORT | second], nodes=2))
    assert [one for one in found if one.holds is False] == [Finding(False, text)]


def test_where_slurm_is_not_to_be_had_no_job_is_tried(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["doctor", "--output-dir", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as left:
        doctor.main()
    assert left.value.code == 1
    assert "BAD commands: sbatch, squeue, srun, scontrol, scancel not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("partiton=gpu", "partiton=gpu is no key=value of hydra.launcher"),
        ("gpus_per_node=-1", "hydra.launcher.gpus_per_node=-1"),
        ("gpus_per_node=two", "hydra.launcher.gpus_per_node=two: Value 'two' of type 'str'"),
        ("setup=[", "hydra.launcher.setup=[: while parsing"),
    ],
)
def test_a_mistake_is_one_line(word, error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["doctor", word])
    with pytest.raises(SystemExit) as left:
        doctor.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {error}")


def test_ctrl_c_ends_the_job_too(commands, monkeypatch, tmp_path, capsys):
    cancelled = tmp_path / "cancelled"
    line = f'echo "71|PENDING|Resources|$(basename {tmp_path}/runs/.slurm/*)"; kill -INT $PPID'
    commands(
        sbatch="echo Submitted batch job 71",
        squeue=f"if [ -d {tmp_path}/runs/.slurm ]; then {line}; fi",
        scancel=f"echo $* >{cancelled}",
        scontrol="",
    )
    monkeypatch.setattr(sys, "argv", ["doctor", "--output-dir", str(tmp_path / "runs"), "poll_s=0.01"])
    with pytest.raises(SystemExit) as left:
        doctor.main()
    assert left.value.code == 130
    assert cancelled.read_text() == "71\n"
    assert "job 71 is cancelled" in capsys.readouterr().err
