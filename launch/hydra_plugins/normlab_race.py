"""`hydra/sweeper=race`: which norm is best, within a budget. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from launch.race_config import RaceConfig

ConfigStore.instance().store(group="hydra/sweeper", name="race", node=RaceConfig, provider="normlab")


class RaceSweeper(Sweeper):
    """Gives its launcher the runs that decide which norm is best, a few at a time."""

    def __init__(self, **settings: Any) -> None:
        # Checked only in `sweep`: Hydra would wrap the error of a value that is out of range.
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.config_loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: Sequence[str]) -> None:
        from launch.race import run_race

        settings: dict[str, Any] = {
            key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
            for key, value in self.settings.items()
        }
        assert self.config is not None
        assert self.launcher is not None
        run_race(self.config, self.config_loader, self.launcher, arguments, RaceConfig(**settings))
