"""Make normlab's Hydra launchers known. Imports no torch."""

import importlib
import sys
from pathlib import Path


def register_launchers() -> None:
    """Put `hydra_plugins` on the path, where Hydra looks for launchers, and register their schemas.

    Hydra takes launcher classes only from that namespace package, found by its own scan. Call before composing.
    """
    folder = Path(__file__).parent
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    for module in sorted((folder / "hydra_plugins").glob("normlab_*.py")):
        importlib.import_module(f"hydra_plugins.{module.stem}")
