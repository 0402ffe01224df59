"""`hydra/launcher=local`: the jobs of a sweep side by side on this machine. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from launch.jobs import make_sweep_folder, refuse_inside_rank
from normlab.config import ConfigError
from normlab.config.mistakes import check_hydra_keys


@dataclass
class LocalLauncherConfig:
    """Keys under `hydra.launcher`."""

    _target_: str = "hydra_plugins.normlab_local.LocalLauncher"

    jobs_per_gpu: int = 1
    """Jobs that share a GPU. Without GPUs, jobs are packed on the cores: one core per rank, or `threads`."""

    retry_failed: bool = True
    """Train runs again that failed before. false: leave them alone."""


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalLauncherConfig, provider="normlab")


class LocalLauncher(Launcher):
    """Packs jobs, each with its own world_size, on the cores or GPUs of this machine."""

    def __init__(self, *, jobs_per_gpu: int, retry_failed: bool) -> None:
        self.jobs_per_gpu, self.retry_failed = jobs_per_gpu, retry_failed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        refuse_inside_rank()
        check_hydra_keys(config.hydra)
        make_sweep_folder(config.hydra.sweep.dir)
        self.config, self.config_loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from launch.sweep import sweep

        if self.jobs_per_gpu < 1:
            raise ConfigError(f"hydra.launcher.jobs_per_gpu={self.jobs_per_gpu} must be at least 1.")
        return sweep(
            self.config,
            self.config_loader,
            job_overrides,
            jobs_per_gpu=self.jobs_per_gpu,
            retry_failed=self.retry_failed,
        )
