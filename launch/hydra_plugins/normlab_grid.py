"""`hydra/sweeper=grid`, the default: Hydra's basic sweeper, without its check of each job. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore


@dataclass
class GridSweeperConfig(BasicSweeperConf):
    """Keys under `hydra.sweeper`."""

    _target_: str = "hydra_plugins.normlab_grid.GridSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConfig, provider="normlab")


class GridSweeper(BasicSweeper):
    """Every combination of the swept values. Hydra's own composes each job once more before any is launched."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """The launcher finds what is wrong with any job before it starts the first."""
