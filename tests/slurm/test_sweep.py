"""Sweeps on a real cluster: real jobs, real requeues."""

import os
import signal
import sys
from collections.abc import Callable

import pytest
import torch

from normlab import checkpoint
from tests.slurm.cluster import NODES, PATIENCE_S, until
from tests.slurm.sweeps import TINY, TRAIN, Sweep, change_ranks


def assert_same_state(ours: dict, theirs: dict) -> None:
    for part in ("model", "optimizer"):
        assert str(ours[part].keys()) == str(theirs[part].keys())
    assert ours["step"] == theirs["step"]
    for name, tensor in theirs["model"].items():
        assert torch.equal(ours["model"][name], tensor), name
    assert torch.equal(ours["rank_state"], theirs["rank_state"])


MY_NETS = """
from torch import nn

def build(num_classes, width):
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
"""


def test_a_sweep_of_a_model_of_ones_own_ends_as_the_same_runs_trained_here(cluster, tmp_path, monkeypatch):
    # As at sites that give jobs no variables of the login node.
    monkeypatch.setitem(cluster.env, "SBATCH_EXPORT", "NONE")
    command = [*TINY, "epochs=1", "world_size=2", "seed=0,1", "norm=syncbn", "precision=fp64", "threads=1"]
    command += ["model=custom", "model.target=my_nets:build", "model.args.width=4"]
    there, here = Sweep(tmp_path / "there", cluster), Sweep(tmp_path / "here")
    for sweep in (there, here):
        sweep.folder.mkdir()
        (sweep.folder / "my_nets.py").write_text(MY_NETS)
        setup = ["hydra.launcher.setup=['export GLOO_SOCKET_IFNAME=lo']"] if sweep.cluster else []
        done = sweep.run(*command, *setup)
        assert done.returncode == 0, done.stdout + done.stderr
    found, expected = there.results(), here.results()
    assert len(found) == 2
    assert found.keys() == expected.keys()
    for name, result in found.items():
        assert result["metrics"] == pytest.approx(expected[name]["metrics"], rel=1e-9), name
        assert result["launch"]["geometry"]["nodes"] == 2
        assert result["launch"]["started"] == result["launch"]["submitted"]
    # The copy of the code that they ran is gone.
    assert [path.name for path in there.folder.glob("runs/.slurm/*/code*")] == []
    # One array, and the second rank of a run was on the second node.
    assert len({result["launch"]["job_id"].split("_")[0] for result in found.values()}) == 1
    (second,) = there.folder.glob("runs/.slurm/*/*_0_1_log.out")
    assert "node=1(2), global_rank=1(2)" in second.read_text()


SLOW_UNTIL_DISTURBED = """
import os, time
def slow(self, *args):
    if os.environ.get("SLURM_RESTART_COUNT") != "2":
        time.sleep(1)
    return step(self, *args)
Trainer._step = slow
"""
STEPS = ["batch_size=4", "max_samples=480", "epochs=1000", "eval_every_epochs=1000"]


def test_a_job_that_is_disturbed_twice_resumes_and_ends_with_the_same_parameters(cluster, tmp_path):
    undisturbed, sweep = Sweep(tmp_path / "undisturbed"), Sweep(tmp_path / "disturbed", cluster)
    for each in (undisturbed, sweep):
        each.folder.mkdir()
    done = undisturbed.run(*TINY, *STEPS, "world_size=2", "threads=1")
    assert done.returncode == 0, done.stderr
    slow = change_ranks(sweep.folder, SLOW_UNTIL_DISTURBED)
    done = sweep.run(*TINY, *STEPS, "world_size=2", "checkpoint_every_s=0", "hydra.launcher.wait=false", slow)
    assert done.returncode == 0, done.stderr
    job = sweep.launch()["job_id"]
    stopped_at = 0
    for disturb in (
        ("requeue", job),  # by SLURM: SIGTERM, and SIGKILL after KillWait
        ("update", f"JobId={job}", "TimeLimit=2"),  # SLURM warns of the limit with USR2, and we requeue
    ):
        sweep.wait_for_step(stopped_at + 2)
        cluster.run("scontrol", *disturb)
        until(lambda: cluster.run("squeue", "-h", "-j", job, "-o", "%T %r") == "PENDING BeginTime", "the requeue")
        stopped_at = sweep.checkpoint()["step"]
        assert stopped_at < undisturbed.checkpoint()["step"]
        assert not sweep.results()
        cluster.restart_soon(job, "TimeLimit=10")
    sweep.wait_for_result()
    result = sweep.result()
    assert (result["status"], result["resumed"], result["launch"]["restarts"]) == ("finished", 2, 2)
    assert_same_state(sweep.checkpoint(), undisturbed.checkpoint())


@pytest.mark.full
def test_a_job_that_is_preempted_outlives_the_controller_and_loses_a_node_ends_as_if_undisturbed(
    cluster, tmp_path
):
    undisturbed, sweep = Sweep(tmp_path / "undisturbed"), Sweep(tmp_path / "disturbed", cluster)
    for each in (undisturbed, sweep):
        each.folder.mkdir()
    done = undisturbed.run(*TINY, *STEPS, "world_size=2", "threads=1")
    assert done.returncode == 0, done.stderr
    slow = change_ranks(sweep.folder, SLOW_UNTIL_DISTURBED)
    with sweep.started(*TINY, *STEPS, "world_size=2", "threads=1", "checkpoint_every_s=0", slow) as process:
        until(lambda: list(sweep.folder.glob("runs/*/*/checkpoint.pt")), "a checkpoint", sweep.about)
        job = sweep.launch()["job_id"]

        def is_in_state(job: str, state: str) -> Callable[[], bool]:
            return lambda: cluster.run("squeue", "-h", "-j", job, "-o", "%T") == state

        def wait_until_stopped() -> int:
            until(is_in_state(job, "PENDING"), "the requeue", sweep.about)
            assert sweep.checkpoint()["step"] < undisturbed.checkpoint()["step"]
            return sweep.checkpoint()["step"]

        sweep.wait_for_step(2)
        submit = "sbatch --parsable --partition=high --nodes=2 --exclusive --output=/dev/null --wrap"
        high = cluster.run(*submit.split(), "sleep 600")
        step = wait_until_stopped()
        until(is_in_state(high, "RUNNING"), "the one that preempts", sweep.about)
        cluster.run("scancel", high)
        cluster.restart_soon(job)
        sweep.wait_for_step(step + 2)
        with cluster.without_controller():
            sweep.wait_for_step(step + 5)
        with cluster.without_node(NODES[1]):
            wait_until_stopped()
            cluster.run("scontrol", "hold", job)
        cluster.restart_soon(job)
        cluster.run("scontrol", "release", job)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    result = sweep.result()
    assert (result["status"], result["resumed"], result["launch"]["restarts"]) == ("finished", 2, 2)
    assert_same_state(sweep.checkpoint(), undisturbed.checkpoint())


SLOW_UNTIL_REQUEUED = """
import os, time
def slow(self, *args):
    if self.total_steps > 20 and os.environ.get("SLURM_RESTART_COUNT") is None:
        time.sleep(1)
    return step(self, *args)
Trainer._step = slow
"""


def test_runs_that_share_a_job_end_one_by_one_and_a_requeue_resumes_those_that_are_left(cluster, tmp_path):
    undisturbed, sweep = Sweep(tmp_path / "undisturbed"), Sweep(tmp_path / "disturbed", cluster)
    for each in (undisturbed, sweep):
        each.folder.mkdir()
    sizes = [*TINY, *STEPS[:1], *STEPS[2:], "max_samples=48,480", "world_size=2", "threads=1"]
    done = undisturbed.run(*sizes)
    assert done.returncode == 0, done.stderr
    packed = ["hydra.launcher.runs_per_job=2", "hydra.launcher.tasks_per_node=4", "hydra.launcher.wait=false"]
    slow = change_ranks(sweep.folder, SLOW_UNTIL_REQUEUED)
    done = sweep.run(*sizes, *packed, "checkpoint_every_s=0", slow)
    assert done.returncode == 0, done.stderr
    job = cluster.run("squeue", "-h", "-o", "%i")
    long, short = sorted(undisturbed.results(), key=lambda name: undisturbed.results()[name]["samples_seen"])[::-1]
    directory = {path.name: path for path in sweep.directories()}
    saved = directory[long] / "checkpoint.pt"
    until((directory[short] / "result.json").exists, "the short run", sweep.about)
    until(lambda: saved.exists() and checkpoint.load(saved)["step"] >= 3, "a checkpoint", sweep.about)
    assert sorted(status["state"] for status in sweep.status()) == ["finished", "running"]
    cluster.run("scontrol", "requeue", job)
    until(lambda: cluster.run("squeue", "-h", "-j", job, "-o", "%T %r") == "PENDING BeginTime", "the requeue")
    assert checkpoint.load(saved)["step"] < undisturbed.results()[long]["samples_seen"] // 8
    cluster.restart_soon(job)
    cluster.wait_until_idle()
    results = sweep.results()
    assert {name: result["resumed"] for name, result in results.items()} == {long: 1, short: 0}, sweep.about()
    for name in results:
        ours, theirs = (each.folder / "runs/default" / name for each in (sweep, undisturbed))
        assert_same_state(checkpoint.load(ours / "checkpoint.pt"), checkpoint.load(theirs / "checkpoint.pt"))


FAILING_RANK = """
def fail(self, number, *rest):
    if self.ranks.rank == 1 and number == 2:
        raise RuntimeError("out of luck")
    return step(self, number, *rest)
Trainer._step = fail
"""


def test_a_job_whose_rank_1_raises_is_reported_failed_with_its_message(cluster, tmp_path):
    sweep = Sweep(tmp_path, cluster)
    done = sweep.run(*TINY, "world_size=2", change_ranks(tmp_path, FAILING_RANK))
    assert done.returncode == 1
    assert "rank 1: out of luck" in done.stdout
    assert "1 failed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    result = sweep.result()
    assert (result["status"], result["error"]) == ("failed", "rank 1: out of luck")


def test_submitting_twice_does_not_train_twice(cluster, tmp_path):
    sweep = Sweep(tmp_path, cluster)
    command = [*TINY, "epochs=1", "+hydra.launcher.extra.hold=true", "hydra.launcher.wait=false"]
    first, second = sweep.run(*command), sweep.run(*command)
    job = sweep.launch()["job_id"]
    assert f"SLURM job {job}" in first.stdout
    assert f"SLURM job {job}, queued before" in second.stderr
    assert cluster.run("squeue", "-h", "-o", "%i") == job
    assert [status["state"] for status in sweep.status()] == ["queued"]
    cluster.run("scontrol", "release", job)
    sweep.wait_for_result()
    third = sweep.run(*command)
    assert "finished before" in third.stdout
    assert cluster.run("squeue", "-h", "-o", "%i", "-t", "PENDING") == ""
    assert len(list(tmp_path.glob("runs/.slurm/*"))) == 1


def test_without_accounting_the_end_of_a_job_is_seen(cluster_without_accounting, tmp_path):
    """submitit would wait for ever for a job that was cancelled."""
    sweep = Sweep(tmp_path, cluster_without_accounting)
    with sweep.started(*TINY, "seed=0,1", "epochs=1000", "hydra.launcher.array_parallelism=1") as process:
        until(lambda: list(tmp_path.glob("runs/*/*/checkpoint.pt")), "a checkpoint", sweep.about)
        sweep.cluster.run("scancel", "--me")
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, out + err
    assert "1 stopped, 1 failed" in out, out + err
    assert "stopped by SLURM" in out or "CANCELLED" in out, out


def test_a_stop_signal_ends_the_waiting_and_not_the_jobs(cluster, tmp_path):
    sweep = Sweep(tmp_path, cluster)
    with sweep.started(*TINY, "+hydra.launcher.extra.hold=true") as process:
        until(lambda: list(tmp_path.glob("runs/*/*/launch.json")), "launch.json")
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    job = sweep.launch()["job_id"]
    assert process.returncode == 128 + signal.SIGINT
    assert f"scancel {job}" in err
    assert cluster.run("squeue", "-h", "-o", "%i") == job


TORCHRUN = """\
#!/bin/bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
srun --kill-on-bad-exit=1 bash -c '{torchrun} --nnodes=2 --nproc-per-node=1 --node-rank=$SLURM_NODEID \\
    --master-addr=$MASTER_ADDR --master-port=$MASTER_PORT {train}'
"""


def test_torchrun_inside_srun_trains_over_two_nodes(cluster, tmp_path):
    script = tmp_path / "job.sh"
    train = " ".join([TRAIN, *TINY, "epochs=1"])
    script.write_text(TORCHRUN.format(torchrun=f"{sys.executable} -m torch.distributed.run", train=train))
    cluster.run("sbatch", f"--chdir={tmp_path}", f"--output={tmp_path}/log", str(script))
    cluster.wait_until_idle()  # sbatch --wait looks every 2, 4, 8, ... seconds
    result = Sweep(tmp_path, cluster).result()
    assert (result["status"], result["world_size"]) == ("finished", 2), (tmp_path / "log").read_text()


@pytest.mark.full
def test_a_race_gives_its_runs_to_the_cluster(cluster, tmp_path):
    race = ["hydra/sweeper=race", "norm=bn,ln", "optim.lr=choice(0.1)", "hydra.sweeper.max_seeds=2"]
    done = Sweep(tmp_path, cluster).run(*TINY, *race, "epochs=1", "batch_size=8", "diagnostics=false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/race/*/result.json"))) == 2 + 4
    assert "race: after 2 seeds " in done.stderr


@pytest.mark.full
def test_an_optuna_search_that_was_stopped_finds_its_trials_in_the_queue(cluster, tmp_path):
    pytest.importorskip("optuna")
    sweep = Sweep(tmp_path, cluster)
    search = [*TINY, "epochs=1", "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_jobs=2"]
    search += ["hydra.sweeper.n_trials=2", "hydra.sweeper.direction=maximize", "optim.lr=interval(0.01,1)"]
    with sweep.started(*search, "+hydra.launcher.extra.hold=true") as process:
        until(
            lambda: len(cluster.run("squeue", "-h", "--array", "-o", "%i").split()) == 2, "two jobs", sweep.about
        )
        until(lambda: all(launch["job_id"] for launch in sweep.launches()), "their ids", sweep.about)
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    jobs = sorted(launch["job_id"] for launch in sweep.launches())
    for job in jobs:
        cluster.run("scontrol", "release", job)
    done = sweep.run(*search)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(result["launch"]["job_id"] for result in sweep.results().values()) == jobs
