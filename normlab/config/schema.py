"""How the dataclasses become Hydra's schema, its help, and plain values."""

import ast
import inspect
import re
from collections.abc import Iterable
from dataclasses import Field, dataclass, fields, is_dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf

from normlab.config import config, data, model, norm, optim
from normlab.config.config import Config
from normlab.config.section import SCHEMAS, Choice, ConfigError, Section

_INSTALLED = Path(__file__).parents[1] / "conf"
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "conf"
"""The values that come with normlab; a wheel keeps them within the package."""

MODULES = (norm, model, data, optim, config)
"""Where the sections stand, in the order of `--help`."""


def register_schemas() -> None:
    """Make the schemas, and `--help`'s lists of choices and keys, known to Hydra; call before composing."""
    OmegaConf.register_new_resolver("normlab_choices", describe_choices, replace=True)
    OmegaConf.register_new_resolver("normlab_keys", describe_keys, replace=True)
    OmegaConf.register_new_resolver("lookup", lookup, replace=True)
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            # Open to any key, which `check_keys` judges: a sweep over norms may give an option that some have.
            node = OmegaConf.structured(schema, flags={"struct": False})
            store.store(group=f"schema/{group}", name=name, node=node)
            for own in () if schema.in_yaml else schema.own_names():
                node = OmegaConf.structured(schema, flags={"struct": False})
                node.name = own
                store.store(group=group, name=own, node=node)


def lookup(key: Any, table: DictConfig) -> Any:
    """`${lookup:${norm.name},{bn:0.1,gn:0.2}}`: the value that belongs to another setting's value, in one sweep.

    Raises: ConfigError for a value that the table does not have.
    """
    if key not in table:
        raise ConfigError(
            f"there is no {key} in {{{', '.join(str(one) for one in table)}}}; add it, or set the key."
        )
    return table[key]


@dataclass(frozen=True)
class Key:
    """A key, as `--help` and docs/keys.md show it."""

    name: str
    default: str | None
    """As a command line would give it; None where the key has none."""
    meaning: str
    field: "Field[Any]"


def documented_keys(module: ModuleType, group: str = "") -> dict[type, list[Key]]:
    """Each section that a module defines -> its own keys, with the docstrings under their fields.

    `group` is the prefix of keys whose section does not declare one.
    """
    found: dict[type, list[Key]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        schema = getattr(module, node.name) if isinstance(node, ast.ClassDef) else None
        if not (isinstance(schema, type) and is_dataclass(schema)):
            continue
        assert isinstance(node, ast.ClassDef)
        found[schema] = []
        prefix = getattr(schema, "group", group)
        specs = {spec.name: spec for spec in fields(schema)}
        for declared, text in pairwise(node.body):
            name = ast.unparse(declared.target) if isinstance(declared, ast.AnnAssign) else ""
            if name in specs and isinstance(text, ast.Expr):
                key = f"{prefix}.{name}" if prefix else name
                default = None if specs[name].default == MISSING else _default(specs[name])
                meaning = " ".join(ast.literal_eval(text.value).split())
                found[schema].append(Key(key, default, meaning, specs[name]))
    return found


def summary(schema: type) -> str:
    """What a section is: the first sentence of its docstring."""
    return " ".join((inspect.getdoc(schema) or "").split("\n\n")[0].split()).rstrip(".")


def describe_keys() -> str:
    """Every key with its default and meaning, for `--help`."""
    lines = []
    for schema, keys in (section for module in MODULES for section in documented_keys(module).items()):
        lines += ["", (inspect.getdoc(schema) or "").rstrip(".")]
        for key in keys:
            default = "" if key.default is None else f" = {key.default}"
            lines += [f"  {key.name}{default}", f"      {key.meaning}"]
    return "\n".join(lines).replace("$", "$$")  # Hydra reads $ as its own


def _default(spec: "Field[Any]") -> str:
    """A field's default as a command line would give it."""
    default = default_of(spec)
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(default)


def known_choices(group: str) -> dict[str, type[Choice]]:
    """Choice -> its schema, in the order in which schemas are declared; without files that lead to none."""
    schemas = SCHEMAS[group]
    found = {name: schema for schema in schemas.values() if not schema.in_yaml for name in schema.own_names()}
    for path in sorted((CONF / group).glob("*.yaml"), key=lambda path: (len(path.stem), path.stem)):
        schema = re.search(rf"/schema/{group}/(\w+)@_here_", path.read_text(errors="replace"))
        if schema and schema[1] in schemas:
            found[path.stem] = schemas[schema[1]]
    order = list(schemas.values())
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def in_order(group: str, choices: Iterable[str]) -> list[str]:
    """Choices of a group as they are listed everywhere: as declared, then a user's own by name."""
    known = list(known_choices(group)) if group in SCHEMAS else []
    return sorted(choices, key=lambda name: (known.index(name) if name in known else len(known), name))


def describe_choices() -> str:
    """Each group with its choices, for `--help`."""
    loader: Any = GlobalHydra.instance().config_loader()
    options = loader.repository.get_group_options  # the loader's own copies the repository, in every command
    return "\n".join(
        f"{group}: {', '.join(in_order(group, options(group)))}" for group in (*SCHEMAS, "experiment")
    )


def choice_of(group: str, schema: str) -> str:
    """A file under conf/<group> that leads to a schema."""
    section = SCHEMAS[group][schema]
    # What takes any name of a library's is chosen by that of the library.
    return schema if section.library else section().name


def plain(section: Any) -> Any:
    """A section as plain dicts, lists, strings and numbers."""
    if is_dataclass(section):
        return {spec.name: plain(getattr(section, spec.name)) for spec in fields(section)}
    if isinstance(section, Enum):
        return section.value
    return list(section) if isinstance(section, list) else section


def identity(section: Section) -> dict[str, Any]:
    """What changes a result, as plain values: the names of the choices, and each identity field off its default.

    A field at its default is left out, so that a key added later leaves the hashes of earlier runs as they are. In
    return, a default that changes has to raise `RESULTS_VERSION`.
    """
    library = getattr(section, "library", "")
    kept: dict[str, Any] = {"library": library} if library else {}
    for spec in fields(section):
        if not spec.metadata.get("identity", True):
            continue
        value = getattr(section, spec.name)
        if isinstance(value, Section):
            kept[spec.name] = identity(value)
        elif spec.name == "name" or plain(value) != default_of(spec):
            kept[spec.name] = plain(value)
    return kept


def default_of(spec: "Field[Any]") -> Any:
    """A field's default as a plain value."""
    return plain(spec.default_factory() if callable(spec.default_factory) else spec.default)
