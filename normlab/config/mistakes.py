"""A mistake in a command line, said in one line that names the key and the fix."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab.config.config import Config
from normlab.config.schema import SCHEMAS, choice_of, in_order
from normlab.config.section import ConfigError, Section

_NO_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']*)'")
_DROP_PLUS = re.compile(r"Multiple values for (\S+?)\. To override|An item is already at '([^']+)'")
_NO_PACKAGE = re.compile(
    r"In '(experiment/.+?)': (?:Could not override '.+@experiment\.|.+\nKey 'experiment' not in 'Config')"
)
_SEVERAL = re.compile(r"Ambiguous value for argument '(.+?)'\n")


def to_typed(composed: DictConfig) -> Config:
    """The composed configuration as dataclasses, every key, range and exclusion checked.

    Raises: ConfigError.
    """
    if OmegaConf.get_type(composed) is not Config:
        raise ConfigError(
            "--config-name gives a file that is not built on ours; begin it with `defaults: [config, _self_]`."
        )
    check_keys(composed)
    typed = OmegaConf.to_object(composed)
    assert isinstance(typed, Config)
    return typed


def check_keys(node: DictConfig, prefix: str = "") -> None:
    """Nothing stands in a composed section but what its schema has, and all of that.

    Hydra lets a key be added with + or ++ and be taken away with ~; the sections under it are open to any key, so
    that this is the one place that judges keys. Raises: ConfigError.
    """
    section = OmegaConf.get_type(node)
    assert section is not None
    known = [spec.name for spec in fields(section)]
    for key in unknown_keys(node):
        if "args" in known and not get_close_matches(key, known, 1, 0.75):
            raise ConfigError(
                f"{prefix}{key} is not a key of {_chosen(node)}; if it is an argument of the target, give it as "
                f"{prefix}args.{key}, and else leave it out."
            )
        raise ConfigError(no_such_key(f"{prefix}{key}", _chosen(node)))
    for key in known:
        if key not in node or OmegaConf.is_missing(node, key):
            raise ConfigError(f"{prefix}{key} was taken away, and every run has it; set it to a value instead.")
        child = node[key]
        if OmegaConf.is_dict(child) and is_dataclass(OmegaConf.get_type(child)):
            check_keys(child, f"{prefix}{key}.")


def check_hydra_keys(hydra: Any) -> None:
    """The same for what a user sets of Hydra: a + adds any key there, too. Raises: ConfigError."""
    for prefix, node in (
        ("hydra.", hydra),
        ("hydra.launcher.", hydra.launcher),
        ("hydra.sweeper.", hydra.sweeper),
    ):
        if is_dataclass(section := OmegaConf.get_type(node)):
            for key in set(unknown_keys(node)) - {"env"}:  # Hydra's own, and in no schema of its
                known = [spec.name for spec in fields(section) if not spec.name.startswith("_")]
                raise ConfigError(f"there is no key {prefix}{key}; choose one of {', '.join(known)}.")


def unknown_keys(node: DictConfig) -> list[str]:
    """The keys of a composed section that its schema does not have."""
    section = OmegaConf.get_type(node)
    assert section is not None
    known = {spec.name for spec in fields(section)}
    return [str(key) for key in node if key not in known]


def _chosen(node: DictConfig) -> str:
    """norm=bn, of the section that bn is."""
    for group, schemas in SCHEMAS.items():
        for key, schema in schemas.items():
            if OmegaConf.get_type(node) is schema:
                return f"{group}={node.get('name') or choice_of(group, key)}"
    return ""


def no_such_key(key: str, chosen: str = "") -> str:
    """A message that there is no such key, with the choices that have it, or the keys most like it."""
    group, _, leaf = key.rpartition(".")
    owners = [choice_of(group, name) for name in SCHEMAS.get(group, {}) if leaf in _leaves(SCHEMAS[group][name])]
    if owners:
        choose = "has it: choose that" if len(owners) == 1 else "have it: choose one of them"
        return (
            f"{key} is not a key of {chosen or 'this choice'}; {group}={', '.join(owners)} {choose}, "
            "or leave the key out."
        )
    known = list(_keys())
    initials = "".join(word[:1] for word in leaf.split("_"))  # learning_rate: lr
    near = [one for one in known if one.rpartition(".")[2] in (leaf, initials)] or get_close_matches(key, known, 2)
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "--help lists all keys."
    return f"there is no key {key or '(nothing)'}; {hint}"


def _leaves(schema: type[Section]) -> list[str]:
    return [spec.name for spec in fields(schema)]


def _keys() -> Iterator[str]:
    yield from _leaves(Config)
    for group, schemas in SCHEMAS.items():
        for schema in schemas.values():
            yield from (f"{group}.{leaf}" for leaf in _leaves(schema))


def check_overrides(overrides: Sequence[Override]) -> None:
    """What Hydra would take without a word, or end in a traceback. Raises: ConfigError."""
    for one in overrides:
        key, line = one.key_or_group, one.input_line
        if key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"):
            raise ConfigError(
                f"{line}: runs are kept under output_dir, in a folder for each study; set these two."
            )
        if key not in (*SCHEMAS, "experiment") or one.is_sweep_override():
            continue
        value = one.value()
        if one.is_force_add():
            raise ConfigError(f"{line}: drop the plus: {str(line).lstrip('+')}")
        if one.is_delete():
            if key in SCHEMAS or not isinstance(value, str | None):
                raise ConfigError(f"{line}: {key} was taken away, and every run has one; choose one by {key}=.")
        elif key in SCHEMAS and not isinstance(value, str | dict):
            raise ConfigError(f"{line}: {key} is one name; to sweep over several: -m {key}=a,b")
        elif key not in SCHEMAS and not isinstance(value, str | list):
            raise ConfigError(f"{line}: {key} is a name; leave it out for none.")


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """An exception of Hydra or OmegaConf that `overrides` led to, in one line."""
    text = str(error).strip()
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if match := _NO_KEY.match(text):
        return no_such_key(match[1])
    if match := _DROP_PLUS.search(text):
        key = match[1] or match[2]
        given = next((one for one in overrides if one.lstrip("+").split("=")[0] == key), f"+{key}=...")
        return f"{given}: {key} is there already; drop the plus: {given.lstrip('+')}"
    if match := _NO_PACKAGE.match(text):
        return f"{match[1]}.yaml does not say where its values belong; let its first line be: # @package _global_"
    if match := _SEVERAL.match(text):
        return f"{match[1]} gives several values; put -m first to sweep over them, or write [...] for a list."
    if isinstance(error, OverrideParseException):
        return f"{error.override}: {_line(error.message)}"
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        near = get_close_matches(choice, error.options, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        return f"there is no {group}={choice}{hint} There are {', '.join(in_order(group, error.options))}."
    if isinstance(cause, OmegaConfBaseException) and cause is not error:
        text = text.removeprefix("Error merging override ")
        return f"{_line(text) or cause.full_key}: {str(cause).strip().splitlines()[0]}"
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {text.splitlines()[0]}" if error.full_key else text.splitlines()[0]
    return _line(text)


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("^") and "hydra.cc" not in line)
