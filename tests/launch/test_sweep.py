"""Sweeps as a person runs them: real processes, real signals, real failures."""

import importlib.util
import json
import os
import re
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.status import read_status
from normlab.run import Run
from tests.processes import LONG, TINY, TRAIN, Job, alive, descendants, until
from tests.runs import directory_of, run_training

ONE_THREAD = [*TINY, "threads=1", "study=test", "batch_size=8"]
QUICK = [*ONE_THREAD, "epochs=1"]
RESUMABLE = [*ONE_THREAD, "epochs=10", "checkpoint_every_s=0", "progress=false"]


def sweep(folder: Path, *overrides: str) -> tuple[int, str, str]:
    return Job(folder, TRAIN, "-m", *overrides).end()


def run_of(folder: Path, overrides: list[str], world_size: int = 1) -> Run:
    return directory_of([*overrides, f"output_dir={folder}/runs"], world_size)


def summary(out: str) -> dict[str, list[str]]:
    """State -> the lines of the final table."""
    lines: dict[str, list[str]] = {}
    for line in out.splitlines():
        if found := re.match(r"(\w+) +(.*=.*)", line):
            lines.setdefault(found[1], []).append(found[2])
    return lines


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two geometries, four jobs: one fails, another process has one. Then the same again, undisturbed."""
    folder = tmp_path_factory.mktemp("swept")
    command = [*QUICK, "norm=bn,gn", "world_size=1,2"]
    (run_of(folder, [*QUICK, "norm=gn"]).directory / "metrics.jsonl").mkdir(parents=True)
    with run_of(folder, [*QUICK, "norm=gn"], 2).lock():
        first = sweep(folder, *command)
    (run_of(folder, [*QUICK, "norm=gn"]).directory / "metrics.jsonl").rmdir()
    return folder, first, sweep(folder, *command)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_sweep_of_two_geometries_gives_the_metrics_of_single_runs(world_size, swept, ranks, tmp_path):
    folder, _, _ = swept
    result = run_of(folder, [*QUICK, "norm=bn"], world_size).result()
    single = [*QUICK, "norm=bn", f"output_dir={tmp_path}"]
    alone = ranks.run(run_training, single, world_size=world_size)[0]["outcome"]
    assert result["world_size"] == world_size
    assert result["metrics"] == alone.metrics


def test_a_job_that_fails_stops_no_other_and_is_shown_with_its_error_and_log(swept):
    folder, (code, out, err), _ = swept
    assert code == 1
    assert "Traceback" not in err
    states = summary(out)
    assert {state: len(lines) for state, lines in states.items()} == {"finished": 2, "skipped": 1, "failed": 1}
    assert re.fullmatch(
        r"norm=gn world_size=1 +.*metrics\.jsonl cannot be read \(Is a directory\).*", states["failed"][0]
    )
    failed = run_of(folder, [*QUICK, "norm=gn"])
    assert f"log: {failed.log_path.relative_to(folder)}" in out
    assert "error: " in failed.log_path.read_text()


def test_a_run_that_another_process_trains_is_skipped(swept):
    _, (_, out, _), _ = swept
    (skipped,) = summary(out)["skipped"]
    assert re.fullmatch(r"norm=gn world_size=2 +another process is training it", skipped)


def test_a_second_start_skips_what_ended_and_trains_the_rest(swept):
    _, _, (code, out, err) = swept
    assert code == 0, err
    states = summary(out)
    assert len(states["skipped"]) == 2
    assert sorted(line.split("  ")[0] for line in states["finished"]) == [
        "norm=gn world_size=1",
        "norm=gn world_size=2",
    ]


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_leaves_no_process_and_goes_on_where_it_was(stop_signal, start, ranks, tmp_path):
    command = ["-m", *RESUMABLE, "norm=bn,gn", "world_size=2"]
    run = run_of(tmp_path, [*RESUMABLE, "norm=bn"], 2)
    job = start(TRAIN, *command)
    until(run.checkpoint_path.exists)
    everyone = descendants(job.process.pid)
    if stop_signal == signal.SIGINT:
        os.killpg(job.process.pid, stop_signal)  # as a terminal does
    else:
        job.process.send_signal(stop_signal)
    code, out, err = job.end()
    assert code == 128 + stop_signal, err
    assert "Traceback" not in err + run.log_path.read_text()
    until(lambda: not any(map(alive, everyone)))
    assert run.result() is None
    assert any(line.startswith("norm=bn ") for line in summary(out)["stopped"])
    if stop_signal == signal.SIGTERM:
        code, _, err = Job(tmp_path, TRAIN, *command[:-2], "norm=bn", "world_size=2").end()
        assert code == 0, err
        assert run.result()["resumed"] == 1
        undisturbed = [*RESUMABLE, "norm=bn", f"output_dir={tmp_path}/undisturbed"]
        alone = ranks.run(run_training, undisturbed, world_size=2)[0]["outcome"]
        assert run.result()["metrics"] == alone.metrics


@pytest.fixture
def one_core():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def test_a_killed_sweep_takes_its_jobs_with_it_and_leaves_no_socket(
    start, one_core, tmp_path, tmp_path_factory, monkeypatch
):
    sockets = tmp_path_factory.mktemp("tmp")
    monkeypatch.setenv("TMPDIR", str(sockets))
    first, second = (run_of(tmp_path, [*LONG, f"norm={norm}", "study=test"]) for norm in ("bn", "gn"))

    def states() -> list[str]:
        return [read_status(run.directory, {}).state for run in (first, second)]

    job = start(TRAIN, "-m", *LONG, "norm=bn,gn", "study=test")
    until(first.checkpoint_path.exists)
    assert states() == ["running", "queued"]
    others = descendants(job.process.pid)
    assert len(others) >= 2  # the fork server and a job
    job.process.kill()
    job.process.wait()
    until(lambda: not any(map(alive, others)))
    assert states() == ["stale", "waiting"]
    assert list(sockets.glob("pymp-*")) == []


def test_hydras_basic_launcher_works_as_well(tmp_path):
    code, out, err = sweep(tmp_path, *QUICK, "norm=bn,gn", "hydra/launcher=basic", "progress=false")
    assert code == 0, err
    assert out.count("finished:") == 2


@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="pip install hydra-optuna-sweeper, or normlab[optuna]"
)
def test_optuna_searches_with_what_runs_return_and_diverging_is_a_result(tmp_path):
    search = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.direction=minimize"]
    trials = ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "optim.lr=choice(0.05,1e30)"]
    code, out, err = sweep(tmp_path, *QUICK, *search, *trials, "sweep_metric=val/loss")
    assert code == 0, err
    assert "optim.lr=0.05" in summary(out)["finished"][0]
    assert "optim.lr=1e+30" in summary(out)["diverged"][0]
    results = [json.loads(path.read_text()) for path in tmp_path.glob("runs/test/*/result.json")]
    (loss,) = (result["metrics"]["val/loss"] for result in results if result["status"] == "finished")
    best = OmegaConf.load(tmp_path / "runs/optimization_results.yaml")
    assert (best.best_value, best.best_params["optim.lr"]) == (loss, 0.05)


@pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="pip install hydra-optuna-sweeper, or normlab[optuna]"
)
def test_an_optuna_search_with_a_seed_goes_on_where_it_was_cut_off(tmp_path):
    search = [*QUICK, "hydra/sweeper=optuna", "hydra.sweeper.sampler.seed=1", "hydra.sweeper.direction=maximize"]
    search += ["hydra.sweeper.n_jobs=1", "optim.lr=interval(0.01,1)"]
    trained = []
    for n_trials in (1, 2):
        code, out, err = sweep(tmp_path, *search, f"hydra.sweeper.n_trials={n_trials}")
        assert code == 0, err
        trained.append([line.split()[0] for line in summary(out).get("finished", [])])
    assert list(map(len, trained)) == [1, 1]
    assert set(trained[0]).isdisjoint(trained[1])
