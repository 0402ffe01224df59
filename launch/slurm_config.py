"""The keys of hydra/launcher=slurm, and the job that they give a run's ranks. Imports no torch."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from launch.commit import ROOT
from launch.geometry import Geometry, fit
from launch.jobs import Job
from normlab.config import ConfigError
from normlab.config.config import Device
from normlab.config.section import Section, setting

OWNED = {
    "array": "the launcher's own",
    "comment": "the launcher's own, by which it knows its jobs again",
    "signal": "hydra.launcher.signal_delay_s",
    "time": "hydra.launcher.timeout_min",
    "nodes": "world_size with hydra.launcher.tasks_per_node",
    "ntasks": "world_size",
    "ntasks_per_node": "hydra.launcher.tasks_per_node",
    "cpus_per_task": "hydra.launcher.cpus_per_task",
    "gpus": "hydra.launcher.gpus_per_node",
    "gpus_per_node": "hydra.launcher.gpus_per_node",
    "gpus_per_task": "hydra.launcher.gpus_per_node",
    "partition": "hydra.launcher.partition",
    "account": "hydra.launcher.account",
    "qos": "hydra.launcher.qos",
    "constraint": "hydra.launcher.constraint",
    "mem": "hydra.launcher.mem",
    "job_name": "study",
    "output": "the launcher's own, which reads it",
    "error": "the launcher's own, which reads it",
    "open_mode": "the launcher's own",
}
"""Parameters of sbatch that the launcher sets -> what sets them."""

OVERRULING = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "JOB_NAME", "TIMELIMIT", "SIGNAL", "OPEN_MODE", "REQUEUE", "NO_REQUEUE"),
        *("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK"),
    )
)
"""Variables that overrule what the launcher asks sbatch for in its script."""


@dataclass(kw_only=True)
class SlurmConfig(Section):
    """Keys under `hydra.launcher` with hydra/launcher=slurm. null leaves a choice to the cluster's default."""

    group: ClassVar[str] = "hydra.launcher"

    _target_: str = "hydra_plugins.normlab_slurm.SlurmLauncher"

    partition: str | None = None
    """Partition to submit to; `sinfo` lists them."""

    account: str | None = None
    """Account that the time is charged to; many clusters insist on one."""

    qos: str | None = None
    """Quality of service: its priority and limits."""

    constraint: str | None = None
    """Features that a node must have, such as a kind of GPU."""

    timeout_min: int = setting(60, minimum=1)
    """Minutes after which SLURM ends a job. The job is then requeued and goes on, so a short limit loses little,
    and is scheduled sooner."""

    signal_delay_s: int = setting(90, minimum=1)
    """How many seconds before that limit the ranks are told to save and leave. It must be longer than one step,
    the evaluation of one batch and writing a checkpoint together."""

    max_requeues: int = setting(20, minimum=0)
    """How often a job may requeue itself. After that it stops, and the same command resumes it."""

    gpus_per_node: int = setting(0, minimum=0)
    """GPUs per node, one rank each. A run asks for as many GPUs as it has ranks on a node. 0: ranks on CPUs."""

    gpu_type: str | None = None
    """Kind of GPU to ask for, such as a100; `sinfo -o %G` lists them. null: any."""

    use_gres: bool = False
    """Ask for GPUs by --gres=gpu:N instead of --gpus-per-node=N, for sites that know only that."""

    tasks_per_node: int | None = setting(None, minimum=1)
    """Most ranks on one node. null: the number of GPUs, or all ranks of the run on CPUs. 1 spreads a run over
    nodes."""

    cpus_per_task: int = setting(4, minimum=1)
    """Cores per rank; also its `threads`, unless you set those."""

    max_nodes: int | None = setting(None, minimum=1)
    """Most nodes per run; a run that needs more is refused. null: no limit."""

    mem: str | None = None
    """Memory of each node, such as 32G."""

    array_parallelism: int = setting(256, minimum=1)
    """Jobs of the sweep that may run at once. Runs with the same number of ranks are an array, and arrays share
    this by their sizes."""

    runs_per_job: int = setting(1, minimum=1)
    """Most runs that share a job, side by side on one node: for sites that give whole nodes. As many do as fit by
    gpus_per_node and tasks_per_node; a run of several nodes has its own job."""

    setup: list[str] = field(default_factory=list)
    """Shell lines to run before srun: modules to load, variables to export."""

    srun_args: list[str] = field(default_factory=list)
    """Further arguments of srun."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Further parameters of sbatch, each with a plus: +hydra.launcher.extra.reservation=course
    +hydra.launcher.extra.exclude=node7."""

    python: str | None = None
    """The Python that jobs run, which may be one in a container. null: the one that submits. The nodes must be
    able to reach it."""

    snapshot: bool = True
    """Copy normlab's code and your own modules for each submission, so that its jobs run what was submitted.
    false: they run what is there when they start."""

    wait: bool = True
    """Wait for the jobs and show their progress. false: print their ids and return at once. A sweeper that needs
    the results, such as Optuna, needs true."""

    poll_s: float = setting(10.0, above=0)
    """Seconds between queries of the queue while waiting."""

    retry_failed: bool = True
    """Train runs again that failed before. false: leave them alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in self.extra:
            if owner := OWNED.get(key.replace("-", "_")):
                fix = f"set {owner}" if "." in owner or owner in ("world_size", "study") else f"it is {owner}"
                raise ConfigError(f"hydra.launcher.extra.{key} is not to be set; {fix}.")
        if self.use_gres and "gres" in self.extra:
            raise ConfigError(
                f"hydra.launcher.extra.gres={self.extra['gres']} and hydra.launcher.use_gres=true are two "
                "requests; leave one out."
            )
        if self.gpu_type is not None and not self.gpus_per_node:
            raise ConfigError(
                f"hydra.launcher.gpu_type={self.gpu_type} asks for no GPU while hydra.launcher.gpus_per_node=0; "
                "set that to a node's GPUs."
            )
        # SLURM checks time limits about twice a minute, and may signal a job up to 60 s early.
        if self.timeout_min * 60 <= self.signal_delay_s + 60:
            fits = self.signal_delay_s // 60 + 2
            raise ConfigError(
                f"hydra.launcher.timeout_min={self.timeout_min} leaves a job no time: it is told to stop "
                f"signal_delay_s={self.signal_delay_s} s and up to 60 s more before; set it to {fits} or more."
            )

    def geometry(self, job: Job) -> Geometry:
        """Raises: ConfigError if the run's ranks do not fit these limits."""
        config = job.run.config
        assert config.world_size is not None
        if config.device is Device.cuda and not self.gpus_per_node:
            raise ConfigError(
                "device=cuda with hydra.launcher.gpus_per_node=0 gives ranks no GPU; set it to a node's GPUs."
            )
        return fit(
            config.world_size,
            gpus_per_node=0 if config.device is Device.cpu else self.gpus_per_node,
            tasks_per_node=self.tasks_per_node,
            cpus_per_task=self.cpus_per_task,
            max_nodes=self.max_nodes,
        )

    def runs_per_node(self, geometry: Geometry) -> int:
        """How many runs of this geometry share a job."""
        if geometry.nodes > 1:
            return 1
        room = [self.runs_per_job]
        if geometry.gpus_per_node:
            room.append(self.gpus_per_node // geometry.gpus_per_node)
        if self.tasks_per_node:
            room.append(self.tasks_per_node // geometry.tasks_per_node)
        return min(room)

    def _gpus(self, geometry: Geometry) -> dict[str, Any]:
        if not geometry.gpus_per_node:
            return {}
        kind = f"{self.gpu_type}:" if self.gpu_type else ""
        if self.use_gres:
            return {"gres": f"gpu:{kind}{geometry.gpus_per_node}"}
        return {"gpus_per_node": f"{kind}{geometry.gpus_per_node}"}

    def sbatch_parameters(
        self, geometry: Geometry, study: str, submission: str, code: Path = ROOT
    ) -> dict[str, Any]:
        """The parameters for submitit's executor. `code` is the folder of the source that jobs run."""
        named = {key: getattr(self, key) for key in ("partition", "account", "qos", "constraint", "mem")}
        return {
            **{key: value for key, value in named.items() if value is not None},
            "job_name": study,
            "comment": submission,
            "time": self.timeout_min,
            "signal_delay_s": self.signal_delay_s,
            "nodes": geometry.nodes,
            "ntasks_per_node": geometry.tasks_per_node,
            "cpus_per_task": geometry.cpus_per_task,
            "array_parallelism": self.array_parallelism,
            # Jobs may start outside the checkout, where normlab need not be installed.
            "setup": [f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}", *self.setup],
            # A rank that dies ends its job. srun has not inherited --cpus-per-task from sbatch since 22.05, and
            # would hide what `setup` exports if a site has SBATCH_EXPORT=NONE.
            "srun_args": [
                *("--kill-on-bad-exit=1", "--export=ALL", f"--cpus-per-task={geometry.cpus_per_task}"),
                *self.srun_args,
            ],
            "additional_parameters": {"requeue": True, **self._gpus(geometry), **self.extra},
        }
