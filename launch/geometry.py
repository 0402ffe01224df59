"""How the ranks of a run are placed on a cluster's nodes. Pure; imports no torch."""

from dataclasses import dataclass

from normlab.config import ConfigError


@dataclass(frozen=True, order=True)
class Geometry:
    """What SLURM is asked for: one task per rank, and the same number on every node."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    """GPUs per node: one for each of its ranks, or 0 for ranks on CPUs."""
    cpus_per_task: int
    """Cores per rank, and the threads it computes with."""

    def of_runs(self, runs: int) -> "Geometry":
        """The geometry of a job of several such runs on one node, whose only task starts the ranks of all."""
        if runs == 1:
            return self
        assert self.nodes == 1
        return Geometry(1, 1, runs * self.gpus_per_node, runs * self.tasks_per_node * self.cpus_per_task)

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks_per_node


def fit(
    world_size: int,
    *,
    gpus_per_node: int,
    tasks_per_node: int | None,
    cpus_per_task: int,
    max_nodes: int | None,
) -> Geometry:
    """The fewest nodes that hold `world_size` ranks, the same number on each.

    A node holds one rank per GPU if it has any (`gpus_per_node` > 0), at most `tasks_per_node` if that is given,
    and all of them if neither is.

    Raises: ConfigError if the ranks cannot be spread evenly, or need more than `max_nodes` nodes.
    """
    limits = {"tasks_per_node": tasks_per_node, "gpus_per_node": gpus_per_node or None}
    given = {key: limit for key, limit in limits.items() if limit is not None}
    key = min(given, key=given.__getitem__) if given else "tasks_per_node"
    per_node = given.get(key, world_size)
    nodes = -(-world_size // per_node)
    if world_size % nodes:
        below, above = (world_size // nodes) * nodes, (world_size // nodes + 1) * nodes
        raise ConfigError(
            f"world_size={world_size} needs {nodes} nodes at hydra.launcher.{key}={per_node}, and they would not "
            f"hold the same number of ranks; choose world_size={below} or {above}."
        )
    if max_nodes is not None and nodes > max_nodes:
        raise ConfigError(
            f"world_size={world_size} needs {nodes} nodes at hydra.launcher.{key}={per_node}, more than "
            f"hydra.launcher.max_nodes={max_nodes}; lower world_size to {max_nodes * per_node}, or raise it."
        )
    tasks = world_size // nodes
    return Geometry(nodes, tasks, tasks if gpus_per_node else 0, cpus_per_task)
