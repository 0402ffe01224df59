"""A run's config.yaml as the configuration to start from: `--config-path <run> --config-name config`."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override

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
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--config-name: {path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict) or "defaults" in values:
        return False
    if not all(isinstance(values.get(group), dict) for group in SCHEMAS):
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


def _choice(group: str, section: dict[str, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """(the file under conf/<group>, what it sets), by the smallest schema that has its keys and name."""
    fitting = []
    for key, schema in SCHEMAS[group].items():
        assert issubclass(schema, Choice)
        known = {spec.name for spec in fields(schema)}
        own = (choice_of(group, key),) if schema.names == () else schema.names
        if set(section) <= known and (own is None or section.get("name") in own):
            fitting.append((len(known), key, schema))
    if not fitting:
        raise ConfigError(
            f"--config-name: {path} has a {group} that this normlab does not know; give {group}=<choice> besides."
        )
    _, key, schema = min(fitting)
    if schema.name == "":  # its name follows from its keys
        section = {name: value for name, value in section.items() if name != "name"}
        return choice_of(group, key), section
    return (section["name"] if schema.names else choice_of(group, key)), section
