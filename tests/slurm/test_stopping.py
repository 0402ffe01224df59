"""What a job does that was told to stop, against stand-ins of SLURM's commands."""

import pytest

from launch import rank
from launch.commit import current_code
from launch.slurm_task import SlurmTask
from tests.slurm.sweeps import job

STOPPED_BY_USR2 = 128 + 12


@pytest.fixture
def stop(commands, tmp_path, monkeypatch, capsys):
    """Runs one rank of element 2 of array 7, stopped by USR2: its exit code, what was requeued, what it said."""

    def run(*, rank_number=0, state="RUNNING", restarts=0):
        commands(squeue=f"echo {state}", scontrol=f'echo "$@" >>{tmp_path}/scontrol')
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
