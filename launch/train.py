"""Compose -> Config -> start or join the ranks -> train: what `train.py` and `normlab train` do."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch import local
from launch.environment import choose_world_size, rank_environment, spin_briefly
from launch.jobs import refuse_inside_rank, study_name, sweep_record, sweep_value
from launch.plugins import accept_hydras_help, register_launchers
from launch.process import RUN_IS_BUSY, USER_ERROR
from normlab.config import Config, ConfigError
from normlab.config.mistakes import check_hydra_keys, check_overrides, explain, to_typed
from normlab.config.saved import NAME as OF_A_RUN
from normlab.config.saved import register_saved
from normlab.config.schema import CONF, register_schemas
from normlab.run import Run


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(composed: DictConfig) -> float | None:
    """Compose -> Config -> start or join the ranks -> train. Returns `sweep_metric`, for a sweeper."""
    run: Run | None = None
    try:
        check_hydra_keys(HydraConfig.get())
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
    """Run as one of the ranks that torchrun or SLURM started."""
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
    from normlab.devices import choose_device
    from normlab.distributed import available_cores

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


def complain(message: str) -> int:
    """Print an error once for all ranks. Returns the exit code."""
    if (rank_environment(os.environ) or {}).get("RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
    return USER_ERROR


def check_command(arguments: list[str]) -> list[str]:
    """The command line for Hydra, in which a run's config.yaml can be the configuration to start from.

    Raises: ConfigError for what Hydra would silently accept, or end in a traceback.
    """
    command = get_args_parser().parse_args(arguments)
    if command.multirun:
        refuse_inside_rank()
    if command.multirun and (command.cfg or command.info):
        raise ConfigError("-m shows no configuration; leave it out, and give one value for each key.")
    if command.resolve and not command.cfg:
        raise ConfigError("--resolve goes with --cfg job; add that.")
    overrides = OverridesParser.create().parse_overrides(command.overrides)
    check_overrides(overrides)
    if command.config_name is None and command.config_path is None:
        return arguments
    name = Path(command.config_name or "config").with_suffix(".yaml")
    for folder in (command.config_dir, command.config_path, CONF):
        if folder and (Path(folder) / name).is_file():
            if register_saved(Path(folder) / name, overrides):
                return [*arguments, "--config-path", str(CONF), "--config-name", OF_A_RUN]
            break
    return arguments


def call_hydra() -> int:
    """Train, or sweep. Returns the exit code."""
    try:
        sys.argv[1:] = check_command(sys.argv[1:])
        app()
    except SystemExit as left:
        return int(left.code or 0)
    except ConfigError as error:
        return complain(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        return complain(explain(error, sys.argv[1:]))
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
        code = code or int(any(ended.is_left for ended in record))
    if code:
        sys.exit(code)
