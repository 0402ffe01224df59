"""Joining or starting: what counts as a rank of a job."""

import os
import platform
import subprocess
import sys

import pytest

from launch.environment import choose_world_size, rank_environment, spin_briefly
from normlab.config import ConfigError

TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "10.0.0.1,10.0.0.2,10.0.0.3",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
}


def test_torchruns_ranks_join():
    assert rank_environment({**TORCHRUN, "HOME": "/"}) == TORCHRUN


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-07,9]", "gpu03"),
        ("login1,gpu[03-07]", "login1"),
        ("r[1-2]n[08,10-12]-ib,other", "r1n08-ib"),
        ("10.0.0.1,10.0.0.2", "10.0.0.1"),
    ],
)
def test_the_first_node_is_found_without_asking_slurm(nodes, first, monkeypatch):
    """A container may have no scontrol."""
    monkeypatch.setenv("PATH", "/nowhere")
    found = rank_environment({**SRUN, "SLURM_STEP_NODELIST": nodes})
    assert found["MASTER_ADDR"] == first


def test_tasks_of_a_slurm_step_join():
    found = rank_environment(SRUN)
    assert found.pop("MASTER_PORT").isdigit()
    assert found == {
        "RANK": "3",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1",
    }


def test_steps_meet_at_ports_that_the_kernel_gives_to_no_connection():
    ports = {int(rank_environment({**SRUN, "SLURM_JOB_ID": str(job)})["MASTER_PORT"]) for job in range(3000)}
    assert len(ports) == 3000
    assert all(20_000 <= port < 32_768 for port in ports)


def test_the_last_node_of_a_step_may_have_fewer_tasks():
    assert rank_environment({**SRUN, "SLURM_NODEID": "2", "SLURM_LOCALID": "0"})["LOCAL_WORLD_SIZE"] == "1"


@pytest.mark.parametrize("env", [{}, {"RANK": "0"}, {"SLURM_NTASKS": "4"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_others_start_their_own(env):
    assert rank_environment(env) is None


def test_world_size_is_what_the_job_has_else_what_was_asked_for_else_1():
    assert choose_world_size(None, TORCHRUN) == choose_world_size(2, TORCHRUN) == 2
    assert (choose_world_size(3, None), choose_world_size(None, None)) == (3, 1)
    with pytest.raises(ConfigError, match="world_size=4 contradicts the 2 ranks"):
        choose_world_size(4, TORCHRUN)


def test_tasks_of_submitits_local_executor_join():
    env = {
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_LOCALID": "1",
        "SUBMITIT_LOCAL_JOB_ID": "77",
    }
    found = rank_environment(env)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("1", "2", "2")
    assert rank_environment({**env, "SUBMITIT_LOCAL_NTASKS": "1"}) is None


@pytest.mark.parametrize(
    ("given", "rounds"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_sleep_soon_while_they_wait_unless_the_user_says_otherwise(given, rounds, monkeypatch):
    for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(key, "")  # so that it is as before when the test ends
        monkeypatch.delenv(key)
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == rounds


PAGES_TAKEN_AGAIN = """
import resource, sys
import numpy as np
from launch.environment import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
[np.ones(2 << 20) for _ in range(10)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    [np.ones(2 << 20) for _ in range(10)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _pages_taken_again(kept, **env):
    """Page faults of ten arrays of 16 MiB, made and freed three times, after a first time."""
    command = [sys.executable, "-c", PAGES_TAKEN_AGAIN, kept]
    answer = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
    return int(answer.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_that_a_step_frees_serves_the_next_one_unless_the_user_has_set_the_allocator():
    assert _pages_taken_again("keep") < 100 < _pages_taken_again("default")
    assert _pages_taken_again("keep", MALLOC_TRIM_THRESHOLD_="131072") > 100
