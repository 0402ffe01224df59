import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The user's own cache folder, where it is remembered what of a cache was verified."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    return tmp_path / "own"
