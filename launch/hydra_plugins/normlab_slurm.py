"""`hydra/launcher=slurm`: the jobs of a sweep on a SLURM cluster. Imports no torch."""

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from launch.jobs import make_sweep_folder, refuse_inside_rank
from launch.slurm_config import SlurmConfig
from normlab.config.mistakes import check_hydra_keys

ConfigStore.instance().store(group="hydra/launcher", name="slurm", node=SlurmConfig, provider="normlab")


class SlurmLauncher(Launcher):
    """Submits one array of jobs per geometry, and waits for them if asked to."""

    def __init__(self, **settings: Any) -> None:
        # Checked only in `launch`: Hydra would wrap the error of a value that is out of range.
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        refuse_inside_rank()
        check_hydra_keys(config.hydra)
        make_sweep_folder(config.hydra.sweep.dir)
        self.config, self.config_loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from launch.slurm import sweep

        settings: dict[str, Any] = {
            key: OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
            for key, value in self.settings.items()
        }
        return sweep(self.config, self.config_loader, job_overrides, SlurmConfig(**settings))
