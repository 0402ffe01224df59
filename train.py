"""Train one cell of the table: one norm, one batch size, one world size, one seed.

python train.py norm=syncbn batch_size=4 world_size=2
torchrun --standalone --nproc-per-node=2 train.py norm=syncbn batch_size=4
"""

if __name__ == "__main__":
    from launch.process import begin_command

    begin_command()

import os
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch import local
from launch.environment import choose_world_size, rank_environment, spin_briefly
from launch.jobs import refuse_inside_rank, study_name, sweep_record, sweep_value
from launch.plugins import accept_hydras_help, register_launchers
from launch.process import RUN_IS_BUSY, USER_ERROR
from normlab.config import Config, ConfigError, register_schemas, to_typed
from normlab.run import Run

CONF = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def app(composed: DictConfig) -> float | None:
    """Compose -> Config -> start or join the ranks -> train. Returns `sweep_metric`, for a sweeper."""
    run: Run | None = None
    try:
        cfg = to_typed(composed)
        study = study_name(cfg, HydraConfig.get().runtime.choices)
        joined = rank_environment(os.environ)
        world_size = choose_world_size(cfg.world_size, joined)
        if joined:
            code = join(cfg, study, joined)
        else:
            code, run = start(replace(cfg, world_size=world_size), study)
    except ConfigError as error:
        code = complain(str(error))
    if code:
        sys.exit(USER_ERROR if code == RUN_IS_BUSY else code)
    return sweep_value(run) if run else None


def join(cfg: Config, study: str, environment: dict[str, str]) -> int:
    """Be one of the ranks that torchrun or SLURM started."""
    os.environ.update(environment)
    from launch.process import end_with_parent
    from launch.rank import run_rank

    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    return run_rank(cfg, study)


def start(cfg: Config, study: str) -> tuple[int, Run]:
    """Check, name the run, and train it: in this process, or on several ranks."""
    assert cfg.world_size is not None
    if cfg.world_size > 1:
        local.preload()
    from launch.rank import ended, prepare, run_rank
    from normlab.distributed import available_cores, choose_device

    device = choose_device(cfg.device, cfg.world_size)
    if device.type == "cpu" and cfg.world_size > available_cores():
        print(
            f"warning: world_size={cfg.world_size} is more ranks than the {available_cores()} cores here",
            file=sys.stderr,
        )
    run = prepare(cfg, study, cfg.world_size)
    if ended(run):
        return 0, run
    return local.start_ranks(cfg, study, run) if cfg.world_size > 1 else run_rank(cfg, study, run), run


def explain(error: Exception) -> str:
    """The message of a mistake in the command line, with the valid keys where one does not exist."""
    lines = [str(error).strip()]
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        lines.append(str(cause).strip())
        section = cause.object_type
        if cause.key is not None and is_dataclass(section):
            known = [spec.name for spec in fields(section)]
            if cause.key not in known:
                lines.append(f"Valid keys: {', '.join(known)}")
    return "\n".join(lines)


def complain(message: str) -> int:
    """Say it once for all ranks. Returns the exit code."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


def call_hydra() -> int:
    """Train, or sweep. Returns the exit code."""
    try:
        if {"-m", "--multirun"} & set(sys.argv):
            refuse_inside_rank()
        app()
    except SystemExit as left:
        return int(left.code or 0)
    except ConfigError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(explain(error))
    return 0


def main() -> None:
    register_schemas()
    register_launchers()
    accept_hydras_help()
    spin_briefly()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands us its exceptions instead of printing them.
    with sweep_record() as record:
        code = call_hydra()
    if record:
        from launch.table import print_summary

        print_summary(record)
        code = code or int(any(ended.state in ("failed", "stopped") for ended in record))
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
