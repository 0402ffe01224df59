"""Train one cell of the table: one norm, one batch size, one world size, one seed.

python train.py norm=syncbn batch_size=4 world_size=2
torchrun --standalone --nproc-per-node=2 train.py norm=syncbn batch_size=4
"""

import os
import signal
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch import local
from launch.environment import choose_world_size, rank_environment
from launch.process import USER_ERROR
from normlab.config import Config, ConfigError, register_schemas, to_typed

CONF = str(Path(__file__).parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
def app(composed: DictConfig) -> None:
    """Compose -> Config -> start or join the ranks -> train."""
    try:
        cfg = to_typed(composed)
        study = cfg.study or HydraConfig.get().runtime.choices["experiment"] or "default"
        joined = rank_environment(os.environ)
        world_size = choose_world_size(cfg.world_size, joined)
        code = join(cfg, study, joined) if joined else start(replace(cfg, world_size=world_size), study)
    except ConfigError as error:
        code = complain(str(error))
    if code:
        sys.exit(code)


def join(cfg: Config, study: str, environment: dict[str, str]) -> int:
    """Be one of the ranks that torchrun or SLURM started."""
    os.environ.update(environment)
    from launch.process import end_with_parent
    from launch.rank import run_rank

    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    return run_rank(cfg, study)


def start(cfg: Config, study: str) -> int:
    """Check, name the run, and train it: in this process, or on several ranks."""
    assert cfg.world_size is not None
    if cfg.world_size > 1:
        local.preload()
    from launch.rank import prepare, run_rank
    from normlab.distributed import available_cores, choose_device

    device = choose_device(cfg.device, cfg.world_size)
    if device.type == "cpu" and cfg.world_size > available_cores():
        print(
            f"warning: world_size={cfg.world_size} is more ranks than the {available_cores()} cores here",
            file=sys.stderr,
        )
    run = prepare(cfg, study, cfg.world_size)
    if run.ended():
        return 0
    return local.start_ranks(cfg, study, run) if cfg.world_size > 1 else run_rank(cfg, study, run)


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


def main() -> None:
    register_schemas()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands us its exceptions instead of printing them.
    if rank_environment(os.environ) and {"-m", "--multirun"} & set(sys.argv):
        command = " ".join(["python train.py", *sys.argv[1:]])
        sys.exit(complain(f"a sweep starts its own ranks; run it outside torchrun and srun: {command}"))
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(complain(explain(error)))


if __name__ == "__main__":
    main()
