"""world_size -> nodes, tasks and GPUs of a node; and what does not fit."""

import pytest

from launch.geometry import Geometry, fit
from normlab.config import ConfigError


def on(world_size, *, gpus=0, tasks=None, cpus=4, max_nodes=None):
    return fit(world_size, gpus_per_node=gpus, tasks_per_node=tasks, cpus_per_task=cpus, max_nodes=max_nodes)


@pytest.mark.parametrize(
    ("world_size", "limits", "expected"),
    [
        (1, {}, Geometry(1, 1, 0, 4)),
        (16, {}, Geometry(1, 16, 0, 4)),
        (1, {"gpus": 8}, Geometry(1, 1, 1, 4)),
        (8, {"gpus": 8}, Geometry(1, 8, 8, 4)),
        (12, {"gpus": 8}, Geometry(2, 6, 6, 4)),
        (32, {"gpus": 8, "cpus": 12}, Geometry(4, 8, 8, 12)),
        (2, {"tasks": 1}, Geometry(2, 1, 0, 4)),
        (8, {"gpus": 8, "tasks": 4}, Geometry(2, 4, 4, 4)),
        (8, {"gpus": 4, "tasks": 16}, Geometry(2, 4, 4, 4)),
    ],
)
def test_ranks_lie_evenly_on_the_fewest_nodes(world_size, limits, expected):
    geometry = on(world_size, **limits)
    assert geometry == expected
    assert geometry.world_size == world_size


def test_ranks_that_would_lie_unevenly_are_refused_with_the_nearest_that_fit():
    with pytest.raises(ConfigError, match="world_size=11 needs 2 nodes") as error:
        on(11, gpus=8)
    assert "hydra.launcher.gpus_per_node=8" in str(error.value)
    assert "choose world_size=10 or 12" in str(error.value)
    assert on(10, gpus=8).world_size == 10
    assert on(12, gpus=8).world_size == 12


def test_the_limit_that_binds_is_the_one_that_is_named():
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.tasks_per_node=2"):
        on(5, gpus=4, tasks=2)


def test_more_nodes_than_allowed_are_refused_with_what_fits():
    with pytest.raises(ConfigError, match="world_size=32 needs 4 nodes") as error:
        on(32, gpus=8, max_nodes=2)
    assert "hydra.launcher.max_nodes=2" in str(error.value)
    assert "lower world_size to 16" in str(error.value)
