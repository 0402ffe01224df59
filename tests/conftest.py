import warnings

import pytest

from normlab.bench.ranks import RankPool


@pytest.fixture(scope="session")
def ranks():
    """A pool of 4 gloo ranks for the session: `ranks.run(fn, *args, world_size=2)`."""
    with RankPool(4, threads=1) as pool:
        pool.run(take_warnings_for_errors, world_size=4)
        yield pool


def take_warnings_for_errors(rank):
    warnings.simplefilter("error")
