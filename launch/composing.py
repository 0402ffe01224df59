"""Compose the configurations of a sweep's jobs."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from normlab.config import Config
from normlab.config.section import SCHEMAS


class Composer:
    """Composes what Hydra would for each job, but faster: jobs that choose the same files share their composition.

    Hydra reads and merges files, which takes a tenth of a second, and then sets values such as seed=1. A sweep
    has few choices of files and many of values, so values are set on a copy of an earlier composition.
    """

    def __init__(self, master_config: DictConfig, config_loader: ConfigLoader) -> None:
        self._master_config, self._config_loader = master_config, config_loader
        self._parser = OverridesParser.create()
        self._composed: dict[tuple[str, ...], tuple[DictConfig, Mapping[str, Any]]] = {}

    def compose(self, overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, Any]]:
        """(the configuration of a job without Hydra's part, the choice of each config group).

        Raises: HydraException or OmegaConfBaseException if it does not compose.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        files = [str(one.input_line) for one in parsed if not _sets_a_value(one)]
        try:
            task, choices = self._with_files(files)
            task = copy.deepcopy(task)
            for one in filter(_sets_a_value, parsed):
                OmegaConf.update(task, one.key_or_group, one.value(), merge=True)
        except (HydraException, OmegaConfBaseException):
            return self._compose(overrides)  # for Hydra's own error message
        return task, choices

    def _with_files(self, overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, Any]]:
        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key] = self._compose(overrides)
        return self._composed[key]

    def _compose(self, overrides: Sequence[str]) -> tuple[DictConfig, Mapping[str, Any]]:
        composed = self._config_loader.load_sweep_config(self._master_config, list(overrides))
        choices = composed.hydra.runtime.choices
        task = composed.copy()
        with flag_override(task, ["struct", "readonly"], [False, False]):
            del task["hydra"]
        return task, choices


def given_overrides(master_config: DictConfig) -> list[str]:
    """The command line's overrides as given: each job resolves interpolations itself."""
    given: list[str] = OmegaConf.to_container(master_config.hydra.overrides.task, resolve=False)  # type: ignore[assignment]
    return given


def _sets_a_value(override: Override) -> bool:
    """Whether it only sets a value, like seed=1: chooses no file, adds or deletes nothing, and is not Hydra's."""
    if override.type is not OverrideType.CHANGE or override.package is not None:
        return False
    section, _, key = override.key_or_group.partition(".")
    return bool(key) == (section in SCHEMAS) and section in {spec.name for spec in fields(Config)}
