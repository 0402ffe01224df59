"""Drawn command lines, in and out of range: each plans a run, or is refused in one line that names its key."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from launch.jobs import study_name
from launch.plugins import register_launchers
from normlab import data
from normlab.config import Config, ConfigError
from normlab.config.data import DataConfig
from normlab.config.mistakes import check_overrides, explain, to_typed
from normlab.config.schema import register_schemas
from normlab.config.section import SCHEMAS, imported
from normlab.preflight import plan
from tests.runs import CONF, choices

GROUPS: dict[str, list[str]] = {group: choices(group) for group in SCHEMAS}
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    8,
    14,
    16,
    20,
    40,
    255,
    1000,
    10**6,
    2**31 - 1,
    2**31,
    2**63,
    2**64,
    10**30,
    -1,
    -(2**63),
]
REALS = [0.0, 1e-320, 1e-12, 0.1, 0.5, 0.9999999, 1.0, 1.5, 20.0, 1e38, 1e308, -0.1, math.inf, math.nan]
TEXTS = [
    "",
    "x",
    "../x",
    "a/b",
    "a=b",
    "'a\\nb'",
    "'a b'",
    ".hidden",
    "x" * 300,
    "nowhere",
    "/dev/null",
    "~nobody/x",
    "'é'",
    "val/loss",
]
OTHERS = [
    "null",
    "true",
    "false",
    "[]",
    "[1,2]",
    "{a:1}",
    "'${seed}'",
    "'${nowhere}'",
    "???",
    "1,2",
    "choice(1,2)",
]


def keys() -> Iterator[tuple[str, Any]]:
    """Every key of the schema, with its type; hydra's and unknown ones besides."""
    for prefix, schema in [("", Config), *((f"{g}.", s) for g, each in SCHEMAS.items() for s in each.values())]:
        hints = get_type_hints(schema)
        for spec in fields(schema):
            if spec.name not in SCHEMAS:
                yield f"{prefix}{spec.name}", hints[spec.name]
    yield from [("nowhere", int), ("optim.learning_rate", float), ("norm.numgroups", int), ("seed.x", int)]


KEYS = dict(keys())


def values_of(kind: Any) -> st.SearchStrategy[str]:
    """Values of a type, likely and not, as a command line gives them."""
    kinds = (
        [kind, *get_args(kind)] if get_origin(kind) in (UnionType, list) or isinstance(kind, UnionType) else [kind]
    )
    fitting: list[str] = []
    for one in kinds:
        if isinstance(one, type) and issubclass(one, Enum):
            fitting += [member.value for member in one]
    if bool in kinds:
        fitting += ["true", "false"]
    if int in kinds:
        fitting += [str(number) for number in NUMBERS]
    if float in kinds:
        fitting += [str(number) for number in [*REALS, 1, 3]]
    if str in kinds:
        fitting += TEXTS + [choice for choices in GROUPS.values() for choice in choices]
    if list in [get_origin(one) for one in kinds]:
        fitting += ["[0.5]", "[1,2,3,4,5,6,7,8,9,10,11]", "[0,0]", "[a,b]", "[nan]"]
    strange = [str(one) for one in (*NUMBERS, *REALS, *TEXTS, *OTHERS)]
    return st.one_of(*[st.sampled_from(fitting or strange)] * 4, st.sampled_from(strange), st.integers().map(str))


KEY = st.sampled_from(sorted(KEYS)).flatmap(lambda key: values_of(KEYS[key]).map(lambda value: f"{key}={value}"))
CHOICE = st.sampled_from(sorted(GROUPS)).flatmap(
    lambda group: st.sampled_from([*GROUPS[group], *GROUPS[group], "nowhere", "null", "[bn,gn]", ""]).map(
        lambda choice: f"{group}={choice}"
    )
)
PRESET = st.sampled_from(["experiment=quickstart", "experiment=camvid", "experiment=null", "hydra.run.dir=x"])
SPELT = st.tuples(st.sampled_from([""] * 12 + ["+", "++", "~"]), KEY | KEY | CHOICE | PRESET).map("".join)
LINES = st.lists(SPELT, min_size=2, max_size=6)


class Planner:
    """Composes and plans as train.py does, in this process.

    Choices are composed once and copied, and Hydra's own parser and its way of applying overrides do the rest.
    Pictures are drawn once, few of them, and nothing is fetched.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        register_schemas()
        self.parser = OverridesParser.create()
        self.loader = GlobalHydra.instance().config_loader()
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.sources: dict[str, Any] = {}
        self.planned = self.refused = 0
        monkeypatch.setattr(DataConfig, "made_by", lambda cfg: self.read_source)

    def read_source(self, cfg: DataConfig, on_progress: Any) -> Any:
        if hasattr(cfg, "download"):
            cfg = replace(cfg, download=False)
        if hasattr(cfg, "num_train"):
            cfg = replace(cfg, num_train=min(cfg.num_train, 80), num_test=min(cfg.num_test, 20))
        key = repr(replace(cfg, train_samples=None, val_fraction=0.0))
        if key not in self.sources:
            self.sources[key] = imported(cfg.builder)(cfg, on_progress)
        return self.sources[key]

    def compose(self, words: list[str]) -> tuple[DictConfig, str]:
        overrides = self.parser.parse_overrides(words)
        check_overrides(overrides)
        self.loader.validate_sweep_overrides_legal(overrides, RunMode.RUN, from_shell=True)
        groups = [one for one in overrides if one.key_or_group in (*SCHEMAS, "experiment")]
        choices = tuple(one.input_line for one in groups)
        if choices not in self.composed:
            self.composed[choices] = self.loader.load_configuration("config", list(choices), RunMode.RUN)
        config = self.composed[choices].copy()
        experiment = config.hydra.runtime.choices.get("experiment")
        with flag_override(config, "struct", False):
            del config["hydra"]
        ConfigLoaderImpl._apply_overrides_to_config([one for one in overrides if one not in groups], config)
        return config, experiment

    def check(self, words: list[str]) -> None:
        """The line plans, or ends in one line that names a key that it gives."""
        try:
            config, experiment = self.compose(words)
            cfg = to_typed(config)
            dataset = data.load(cfg.data)
            study = study_name(cfg, {"experiment": experiment})
            run = plan(cfg, dataset, world_size=cfg.world_size or 1, study=study)
            assert run.directory.parent.parent == Path(cfg.output_dir)
        except ConfigError as error:
            said = str(error)
        except (HydraException, OmegaConfBaseException) as error:
            said = explain(error, words)
        else:
            self.planned += 1
            return
        self.refused += 1
        keys = {word.lstrip("+~").partition("=")[0] for word in words}
        keys |= set(SCHEMAS) if "experiment" in keys else set()  # whose choices it makes
        assert "\n" not in said, f"{words}: {said!r}"
        assert any(key in said for key in keys), f"{words}: {said}"


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Planner]:
    monkeypatch.chdir(tmp_path)
    register_launchers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield Planner(monkeypatch)


def drawn(count: int) -> settings:
    fixture = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=fixture
    )


@drawn(100)
@given(words=LINES)
def test_a_drawn_command_line_plans_or_is_one_line_that_names_its_key(words: list[str], planner: Planner) -> None:
    planner.check(words)


@pytest.mark.full
@drawn(4000)
@given(words=LINES)
def test_thousands_of_drawn_command_lines_plan_or_are_one_line(words: list[str], planner: Planner) -> None:
    planner.check(words)
