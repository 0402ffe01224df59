"""A sweep outlives the deaths of its processes. The figures of a large one: `python -m tests.soak.sweeps`."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.soak.sweeps import soak


@pytest.mark.full
def test_a_sweep_that_is_killed_at_random_ends_as_an_undisturbed_one():
    folder = Path(tempfile.mkdtemp(prefix="soak-"))  # a socket's path is short, and pytest's folders are deep
    print(soak(folder, runs=20, kills=6, sweep_kills=2, seed=0))
    shutil.rmtree(folder)
