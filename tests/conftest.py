import gc
import importlib
import warnings

import pytest
import torch.distributed as dist

from normlab.bench.ranks import RankPool

OF_A_FOLDER = {"cluster", "cluster_without_accounting", "browser", "start_tensorboard", "thousand", "trained"}
OF_A_FILE = {"swept", "raced", "started", "trained_once"}
"""Fixtures that are made once and take long to make."""

SLOW = {
    *("slurm", "faults", "soak", "experiments"),
    *("test_trainer.py", "test_virtual_ranks.py", "test_segmentation.py", "test_evaluate.py", "test_training.py"),
    *("test_train.py", "test_sweep.py", "test_teardown.py", "test_bad_input.py", "test_jobs.py", "test_rank.py"),
    *("test_race.py", "test_race_decisions.py"),
    *("test_step_on_meta.py", "test_composing.py", "test_damaged_files.py", "test_fuzz.py", "test_wheel.py"),
    *("test_any_model.py", "test_commands.py", "test_measure.py", "test_page.py", "test_command.py"),
}
"""Folders and files whose tests train, or start processes."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Tests that share such a fixture run in one of pytest-xdist's workers; `ranks` is in one alone."""
    for item in items:
        names = set(item.fixturenames)
        group = item.path.parent if names & OF_A_FOLDER else item.path if names & OF_A_FILE else None
        group = "ranks" if "ranks" in names else group
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(name=str(group)))
        if group is not None or SLOW & {item.path.name, item.path.parent.name}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def port():
    """A free one, for ranks that meet."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    number = store.port
    del store
    return number


@pytest.fixture
def own_module(tmp_path, monkeypatch, request):
    """Writes a user's module into the working folder; gives its name, another in each test."""

    def write(source: str) -> str:
        name = f"own_{abs(hash(request.node.nodeid))}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        return name

    return write


@pytest.fixture(scope="session")
def ranks():
    """A pool of 4 gloo ranks for the session: `ranks.run(fn, *args, world_size=2)`."""
    with RankPool(4, threads=1) as pool:
        pool.run(prepare, world_size=4)
        yield pool


def prepare(rank):
    """Take warnings for errors, and look for garbage, at the end of each call, among what is new alone."""
    importlib.import_module("torch._dynamo")  # as the first DDP model does
    warnings.simplefilter("error")
    gc.collect()
    gc.freeze()
