"""The pages of docs/ that are made from the code: keys.md, norms.md and its drawings.

`python -m normlab.docs` writes them.
"""

import sys
import types
from collections.abc import Iterable
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from launch import race_config, slurm_config
from launch.plugins import register_launchers
from normlab.atomic import atomic_write
from normlab.config import Config
from normlab.config.schema import CONF, MODULES, Key, documented_keys, known_choices, summary
from normlab.config.section import LARGEST_INT, in_words
from normlab.markdown import markdown_table
from normlab.norms import docs as norm_pages

ROOT = Path(__file__).parents[1]

_INTRODUCTION = """\
# Every key

Made from the code by `python -m normlab.docs`. `python train.py --help` prints the same keys and meanings.

Keys are given as `key=value`, and choices as `group=choice`: `norm=gn norm.num_groups=4 batch_size=8`. In a sweep
(`-m`), commas separate values. `null` stands for "not given".

- **new run**: whether another value makes another run. These keys are part of the hash in the name of a run's
  directory. Data and initial weights count by their content, not by their path.
- A choice has the keys of every table that names it. Where two tables list the same key, the later one has its
  default. Values that a choice sets replace defaults.
"""
_NOTES = {
    "norm": "[Norms](norms.md) has what each norm computes, what it needs, and when to use it.",
    "model": "More on models: [training](training.md#models), [segmentation](segmentation.md#models).",
    "data": "More on data: [training](training.md#data), [segmentation](segmentation.md#data).",
    "optim": "The rate used is `optim.lr`, scaled from `optim.lr_reference_batch` to the global batch.",
}
_LAUNCHERS = """
## hydra/launcher

A sweep starts its runs through a launcher: `local`, the default, on [this machine](sweeps.md); `slurm`, on [a
cluster](slurm.md); or `basic`, Hydra's own, one after the other in one process.
"""
_SWEEPERS = """
## hydra/sweeper

`grid`, the default, trains every combination; `optuna` [searches](sweeps.md#searching-with-optuna); `race` finds
out [which norm is best](race.md).
"""


def pages() -> dict[Path, str]:
    """Path under the repository -> text of each file that is made."""
    return {Path("docs/keys.md"): _keys_page(), **norm_pages.pages()}


def _keys_page() -> str:
    sections = {schema: keys for module in MODULES for schema, keys in documented_keys(module).items()}
    parts = [_INTRODUCTION, "\n## The run\n\n", _key_table(Config, sections.pop(Config))]
    for group, note in _NOTES.items():
        parts += [f"\n## {group}\n\n{note}\n\n", _choices(group)]
        for schema, keys in sections.items():
            # A name without a default is that of the chosen file, or follows from other keys.
            own = [key for key in keys if key.default or not key.name.endswith(".name")]
            if own and schema.group == group:  # type: ignore[attr-defined]
                parts += [f"\n**{_users(group, schema)}**\n\n", _key_table(schema, own)]
    parts += ["\n## experiment\n\n", _experiments(), _LAUNCHERS]
    register_launchers()
    for name, module in (("local", sys.modules["hydra_plugins.normlab_local"]), ("slurm", slurm_config)):
        for schema, keys in documented_keys(module, "hydra.launcher").items():
            parts += [f"\n**`hydra/launcher={name}`**\n\n", _key_table(schema, keys, new_run=False)]
    parts += [_SWEEPERS, "\n**`hydra/sweeper=race`**\n\n"]
    parts += [_key_table(schema, keys, new_run=False) for schema, keys in documented_keys(race_config).items()]
    return "".join(parts)


# --- choices --------------------------------------------------------------------------------------------


def _choices(group: str) -> str:
    """A table of a group's choices: what each is, and the values that its file under conf/<group> sets."""
    rows = [["choice", "what it is", "sets"]]
    for choice, schema in known_choices(group).items():
        path = CONF / group / f"{choice}.yaml"
        values = yaml.safe_load(path.read_text()) if path.exists() else {}
        for key in ("defaults", "name"):
            values.pop(key, None)
        sets = ", ".join(f"`{group}.{key}={value}`" for key, value in values.items())
        rows.append([f"`{choice}`", summary(schema), sets])
    return _table(rows)


def _users(group: str, section: type) -> str:
    """The choices that have the keys of a section."""
    known = known_choices(group)
    users = [f"`{choice}`" for choice, schema in known.items() if issubclass(schema, section)]
    return f"Every `{group}=`" if len(users) == len(known) else f"`{group}=` {', '.join(users)}"


def _experiments() -> str:
    """A table of the presets under conf/experiment: the first comment of each."""
    rows = [["preset", "what it is"]]
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        comments = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
        rows.append([f"`experiment={path.stem}`", next(line for line in comments if not line.startswith("@"))])
    return _table(rows)


# --- keys -----------------------------------------------------------------------------------------------


def _key_table(schema: type, keys: Iterable[Key], *, new_run: bool = True) -> str:
    hints = get_type_hints(schema)
    rows = [["key", "default", "values", *(["new run"] if new_run else []), "meaning"]]
    for key in keys:
        default = f"`{key.default}`" if key.default else ""
        identity = ["yes" if key.field.metadata.get("identity", True) else "no"] if new_run else []
        rows.append([f"`{key.name}`", default, _values(hints[key.field.name], key), *identity, key.meaning])
    return _table(rows)


_KINDS = {
    int: "integer",
    float: "number",
    str: "text",
    list[float]: "list of numbers",
    list[str]: "list of texts",
    dict[str, Any]: "keys with values",
    dict[str, str]: "keys with values",
}


def _values(hint: Any, key: Key) -> str:
    """What a key takes: a type with its range, or the names to choose from."""
    if types.NoneType in get_args(hint):
        [hint] = [member for member in get_args(hint) if member is not types.NoneType]
    if hint is bool:
        return "`true`, `false`"
    if is_dataclass(hint):
        return "a choice"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return ", ".join(f"`{member.value}`" for member in hint)
    limits = {name: at for name, at in key.field.metadata.get("limits", {}).items() if at <= LARGEST_INT}
    return f"{_KINDS[hint]}, {in_words(limits)}" if limits else _KINDS[hint]


def _table(rows: list[list[str]]) -> str:
    columns, *lines = ([cell.replace("<", "&lt;") for cell in row] for row in rows)
    return markdown_table(columns, lines)


if __name__ == "__main__":
    for path, text in pages().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(ROOT / path) as file:
            file.write(text)
    print(f"wrote {len(pages())} files under {ROOT / 'docs'}")
