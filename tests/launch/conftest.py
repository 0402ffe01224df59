import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

from launch import local, train
from tests.processes import Job


@pytest.fixture
def start(tmp_path):
    """Starts jobs in the test's folder; they end with the test."""
    jobs: list[Job] = []

    def begin(*command: str) -> Job:
        jobs.append(Job(tmp_path, *command))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.kill()


@pytest.fixture
def run_train(monkeypatch, capsys, tmp_path):
    """Calls train.py's main in an empty folder; gives exit code and stderr."""

    def run(*overrides):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(local, "start_ranks", lambda *args: pytest.fail("ranks were started"))
        monkeypatch.setattr(local, "preload", lambda: None)
        with pytest.raises(SystemExit) as left:
            train.main()
        GlobalHydra.instance().clear()
        return left.value.code, capsys.readouterr().err

    return run
