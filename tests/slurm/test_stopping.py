"""What a job does that was told to stop, against stand-ins of SLURM's commands."""

import os
import subprocess

import pytest

from launch import rank, slurm_task
from launch.commit import current_code
from launch.slurm_task import SlurmPack, SlurmTask
from tests.slurm.sweeps import job

STOPPED_BY_USR2 = 128 + 12


@pytest.fixture
def stop(commands, tmp_path, monkeypatch, capsys):
    """Runs one rank of element 2 of array 7, stopped by USR2: its exit code, what was requeued, what it said."""

    def run(*, rank_number=0, state="RUNNING", restarts=0, squeue="", scontrol=""):
        monkeypatch.setattr(slurm_task, "PAUSES_S", (0.0, 0.0))
        commands(squeue=squeue or f"echo {state}", scontrol=f'echo "$@" >>{tmp_path}/scontrol; {scontrol}')
        env = {
            "SUBMITIT_EXECUTOR": "slurm",
            "SLURM_JOB_ID": "9",
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_RESTART_COUNT": str(restarts),
            "SUBMITIT_FOLDER": str(tmp_path),
            "RANK": str(rank_number),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "localhost",
        }
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(rank, "run_rank", lambda *args: STOPPED_BY_USR2)
        task = SlurmTask(job(tmp_path, world_size=2).run, "sizes", current_code(), max_requeues=3)
        with pytest.raises(SystemExit) as left:
            task()
        called = tmp_path / "scontrol"
        return left.value.code, called.read_text().strip() if called.exists() else "", capsys.readouterr().err

    return run


def test_rank_0_requeues_its_element_of_the_array_and_no_other(stop):
    assert stop()[:2] == (0, "requeue 7_2")


def test_other_ranks_leave_in_peace_since_srun_would_kill_rank_0(stop):
    assert stop(rank_number=1)[:2] == (0, "")


@pytest.mark.parametrize("state", ["COMPLETING", ""])
def test_a_job_that_slurm_is_ending_is_not_requeued_a_cancelled_one_above_all(state, stop):
    code, called, said = stop(state=state)
    assert (code, called) == (STOPPED_BY_USR2, "")
    assert "stopped by SLURM" in said


def test_a_job_within_its_budget_of_requeues_is_requeued(stop):
    assert stop(restarts=2)[:2] == (0, "requeue 7_2")


def test_a_job_whose_budget_of_requeues_is_spent_says_so(stop):
    code, called, said = stop(restarts=3)
    assert (code, called) == (STOPPED_BY_USR2, "")
    assert "hydra.launcher.max_requeues=3" in said


CANNOT_TELL = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


def test_a_queue_that_does_not_answer_does_not_cancel_the_requeue(stop):
    assert stop(squeue=CANNOT_TELL)[:2] == (0, "requeue 7_2")


def test_a_queue_that_answers_late_is_asked_again(stop, tmp_path):
    once = f"[ -e {tmp_path}/asked ] && echo COMPLETING && exit; touch {tmp_path}/asked; {CANNOT_TELL}"
    assert stop(squeue=once)[:2] == (STOPPED_BY_USR2, "")


def test_a_job_that_slurm_no_longer_knows_is_over(stop):
    unknown = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    code, called, said = stop(squeue=unknown)
    assert (code, called) == (STOPPED_BY_USR2, "")
    assert "stopped by SLURM (no longer queued)" in said


def test_a_requeue_is_tried_again_and_its_failure_is_told(stop, tmp_path):
    busy = "echo 'Socket timed out on send/recv operation' >&2"
    code, called, _ = stop(scontrol=f"[ $(wc -l <{tmp_path}/scontrol) -gt 2 ] && exit; {busy}; exit 1")
    assert (code, called.splitlines()) == (0, ["requeue 7_2"] * 3)
    code, called, said = stop(scontrol=f"{busy}; exit 1")
    assert code == 1
    assert "error: the job could not be requeued: Socket timed out" in said


def test_a_container_without_slurms_commands_says_that_it_cannot_requeue(stop, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: os.stat(f"/gone/{command[0]}"))
    code, _, said = stop()
    assert code == 1
    assert "error: the job could not be requeued: [Errno 2] No such file or directory: '/gone/scontrol'" in said


def test_a_job_of_several_runs_that_is_requeued_after_all_have_ended_leaves_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.local.preload", lambda: pytest.fail("something is to be trained"))
    both = tuple(job(tmp_path, f"seed={seed}") for seed in (0, 1))
    for one in both:
        one.run.create()
        one.run.write_result("finished", {"val/accuracy": 0.5})
    SlurmPack(both, current_code(), max_requeues=3, cores=2)()
