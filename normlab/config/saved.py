"""A run's config.yaml read back: as it is, or as a configuration to start from (`--config-name config`)."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab.config.config import Config
from normlab.config.mistakes import explain, no_such_key, to_typed
from normlab.config.schema import SCHEMAS, choice_of
from normlab.config.section import Choice, ConfigError

NAME = "of_a_run"
"""What a run's settings are called among Hydra's configurations."""


def register_saved(path: Path, overrides: Sequence[Override]) -> bool:
    """Put the settings of a run's config.yaml on top of conf/config.yaml, under NAME.

    It has values alone and no defaults list, so each section's choice is found by its name and keys. A section
    that `overrides` choose anew is left out. False where the file is not one of a run.
    Raises: ConfigError where it cannot be read, or an experiment is to come on top, which it would hide.
    """
    values = _values(path)
    if "defaults" in values or not all(isinstance(values.get(group), dict) for group in SCHEMAS):
        return False
    values.pop("rerun", None)  # asked of that command alone; here it would delete what it starts from
    chosen = {one.key_or_group for one in overrides}
    if "experiment" in chosen:
        raise ConfigError(
            f"experiment=... and --config-name of a run ({path}) exclude each other; give one of them."
        )
    choices = []
    for group in SCHEMAS:
        section = values.pop(group)
        if group not in chosen:
            choice, values[group] = _choice(group, section, path)
            choices.append({f"override /{group}": choice})
    ConfigStore.instance().store(NAME, {"defaults": ["config", *choices, "_self_"], **values})
    return True


def read_saved(path: Path, changes: Sequence[str] = ()) -> Config:
    """The configuration in a run's config.yaml, with `changes` such as norm.running_stats=pooled made to it.

    Raises: ConfigError where it cannot be read, or a change is none of a key that is there.
    """
    values = _values(path)
    node = OmegaConf.structured(Config)
    try:
        for group in SCHEMAS:
            section = values.pop(group, None)
            if not isinstance(section, dict):
                raise ConfigError(f"{path} has no {group}; give the directory of a run.")
            schema = SCHEMAS[group][_schema(group, section, path)]
            node[group] = OmegaConf.merge(OmegaConf.structured(schema), section)
        node = OmegaConf.merge(node, values)
        assert isinstance(node, DictConfig)
        for change in OverridesParser.create().parse_overrides(list(changes)):
            key, line = change.key_or_group, change.input_line
            if change.type is not OverrideType.CHANGE or change.is_sweep_override() or key in SCHEMAS:
                raise ConfigError(f"{line}: give a key and its value, such as norm.running_stats=pooled.")
            group, _, leaf = key.rpartition(".")
            if leaf not in (node[group] if group in SCHEMAS else node):
                raise ConfigError(no_such_key(key, f"{group}={node[group].name}" if group in SCHEMAS else ""))
            OmegaConf.update(node, key, change.value())
        return to_typed(node)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, changes)) from None


def _values(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    return values if isinstance(values, dict) else {}


def _schema(group: str, section: dict[str, Any], path: Path) -> str:
    """The smallest schema that has the keys and the name of a section."""
    fitting = []
    for key, schema in SCHEMAS[group].items():
        assert issubclass(schema, Choice)
        known = {spec.name for spec in fields(schema)}
        own = (choice_of(group, key),) if schema.names == () else schema.names
        if set(section) <= known and (own is None or section.get("name") in own):
            fitting.append((len(known), key))
    if not fitting:
        raise ConfigError(f"{path} has a {group} that this normlab does not know; give {group}=<choice> besides.")
    return min(fitting)[1]


def _choice(group: str, section: dict[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """(the file under conf/<group>, what it sets)."""
    key = _schema(group, section, path)
    schema = SCHEMAS[group][key]
    assert issubclass(schema, Choice)
    if schema.name == "":  # its name follows from its keys
        section = {name: value for name, value in section.items() if name != "name"}
        return choice_of(group, key), section
    return (section["name"] if schema.names else choice_of(group, key)), section
