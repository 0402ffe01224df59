import pytest

from tests.rank_pool import RankPool


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """A pool of 4 gloo ranks for the session: `ranks.run(fn, *args, world_size=2)`."""
    pool = RankPool(4, tmp_path_factory.mktemp("ranks"))
    yield pool
    pool.close()
