"""Registration of normlab's Hydra launchers. Imports no torch."""

import argparse
import importlib
import sys
from pathlib import Path

from omegaconf import OmegaConf

from launch.environment import training_command


def register_launchers() -> None:
    """Put `hydra_plugins` on the path, where Hydra looks for launchers, and register their schemas.

    Hydra takes launcher classes only from that namespace package, found by its own scan. Call before composing.
    """
    OmegaConf.register_new_resolver("normlab_command", training_command, replace=True)
    folder = Path(__file__).parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    for module in sorted((folder / "hydra_plugins").glob("normlab_*.py")):
        importlib.import_module(f"hydra_plugins.{module.stem}")


def accept_hydras_help() -> None:
    """Let argparse of Python 3.14 and later accept the one help text of Hydra 1.3 that is not a string.

    It checks help texts when they are added, while earlier versions do so when they print them. Call before Hydra.
    """
    if sys.version_info >= (3, 14):
        argparse.ArgumentParser._check_help = lambda self, action: None  # type: ignore[attr-defined]
