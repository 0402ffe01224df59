"""submitit's local executor, the middle ground: a submitted job without a cluster."""

from dataclasses import replace

import submitit

from launch.commit import Code, current_code
from launch.jobs import announce
from launch.slurm_task import SlurmTask
from tests.runs import TINY, directory_of
from tests.slurm.cluster import until


def test_a_job_trains_on_two_ranks_and_says_that_it_started_on_another_commit(tmp_path):
    run = directory_of([*TINY, f"output_dir={tmp_path}/runs", "epochs=1", "threads=1"], world_size=2)
    announce(run, {"launcher": "slurm", "job_id": "1", "submission": "normlab-1"})
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(tasks_per_node=2, timeout_min=10)
    job = executor.submit(SlurmTask(run, "test", Code("f" * 40), max_requeues=3))
    until(job.done, "the job", lambda: f"{job.stderr()}")
    result = run.result()
    assert result is not None, job.stderr()
    assert (result["status"], result["world_size"]) == ("finished", 2)
    started = current_code().commit
    assert result["launch"]["started"]["commit"] == started
    assert f"submitted from commit ffffffffff, started on commit {started[:10]}" in result["launch"]["note"]
    assert "warning: submitted from commit ffffffffff" in job.task(0).stderr()


def test_a_job_whose_data_have_changed_since_it_was_submitted_fails(tmp_path):
    run = directory_of([*TINY, f"output_dir={tmp_path}/runs", "epochs=1", "threads=1"], world_size=1)
    former = run.directory.with_name(run.directory.name.replace(run.hash, "00000000"))
    run = replace(run, hash="00000000", directory=former)
    executor = submitit.LocalExecutor(tmp_path / "logs")
    executor.update_parameters(timeout_min=10)
    job = executor.submit(SlurmTask(run, "test", current_code(), max_requeues=3))
    until(job.done, "the job", lambda: f"{job.stderr()}")
    assert run.result()["status"] == "failed", job.stderr()
    assert "no longer those that run 00000000 was named for" in run.result()["error"]
