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
    cluster.cancel_all()
    cluster.stop()


@pytest.fixture(scope="session")
def cluster():
    """Two nodes with accounting."""
    yield from start(accounting=True)


@pytest.fixture(scope="session")
def cluster_without_accounting():
    """Two nodes, and no sacct that knows anything."""
    yield from start(accounting=False)
