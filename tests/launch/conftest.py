import pytest

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
