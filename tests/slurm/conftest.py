import os

import pytest

from tests.slurm.cluster import Cluster, missing_programs


def start(*, accounting: bool):
    missing = missing_programs()
    if missing:
        message = f"no {', '.join(missing)} here: .ci/install-slurm installs what a cluster needs"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    cluster = Cluster(accounting=accounting)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def session_cluster():
    yield from start(accounting=True)


@pytest.fixture(scope="session")
def session_cluster_without_accounting():
    yield from start(accounting=False)


@pytest.fixture
def cluster(session_cluster):
    """Two nodes with accounting, and no job."""
    yield session_cluster
    session_cluster.cancel_all()


@pytest.fixture
def cluster_without_accounting(session_cluster_without_accounting):
    """Two nodes, no sacct that knows anything, and no job."""
    yield session_cluster_without_accounting
    session_cluster_without_accounting.cancel_all()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts stand-ins for SLURM's commands on the path: `commands(squeue="echo ...")`, in shell."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**scripts: str) -> None:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / name).chmod(0o755)

    put(
        srun="",
        squeue="",
        scontrol="exit 1",
        sbatch=f"env >{tmp_path}/env; echo Submitted batch job 7$(ls {folder} | wc -l)",
    )
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return put
