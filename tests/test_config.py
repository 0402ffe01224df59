"""Every YAML composes, every key is documented and checked."""

import ast
import inspect
import json
import os
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException

from normlab import data
from normlab.config import Config, ConfigError
from normlab.config.norm import GroupNormConfig
from normlab.config.schema import MODULES, default_of, describe_keys, identity, in_order, known_choices
from normlab.config.section import SCHEMAS
from normlab.models import build_model, on_meta
from normlab.norms import convert_norms
from normlab.optimizer import build_optimizer
from normlab.run import RESULTS_VERSION
from tests.runs import CONF, SEGMENTATION, choices, typed

OWN = {
    "norm=custom": ["norm.target=torch.nn:InstanceNorm2d"],
    "data=custom": ["data.target=my_data:load"],
    "data=custom_segmentation": ["data.target=my_data:load"],
    "model=custom": ["model.target=torchvision.models:resnet18"],
    "model=custom_segmentation": [
        "model.target=torchvision.models.segmentation:fcn_resnet50",
        "model.args={weights_backbone: null}",
    ],
}
"""What stands for a user's own."""


def composed(choice: str, *overrides: str):
    """With a model for the data's task, or the other way round."""
    overrides = (*OWN.get(choice, ()), *overrides)
    try:
        return typed(choice, *overrides)
    except ConfigError:
        return typed(*SEGMENTATION, choice, *overrides)


CHOICES = [f"{group}={name}" for group in SCHEMAS for name in choices(group)]
CHOICES += sorted(f"experiment={path.stem}" for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_its_section_carries_its_name(choice):
    group, name = choice.split("=")
    cfg = composed(choice)
    if group in SCHEMAS:
        section = getattr(cfg, group)
        assert type(section) in SCHEMAS[group].values()
        assert section.name == name or section.library


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_has_a_builder(choice):
    group = choice.partition("=")[0]
    cfg = composed(choice)
    if group == "data" and hasattr(cfg.data, "root"):
        nowhere = ["data.root=nowhere"] + ["data.download=false"] * hasattr(cfg.data, "download")
        cfg = composed(choice, *nowhere)
        with pytest.raises(ConfigError, match=r"data\.root"):  # there is nothing to read, said by its own source
            data.load(cfg.data)
        return
    if choice in OWN and group == "data":
        assert callable(cfg.data.made_by())
        return
    if group == "data":  # generated
        dataset = data.load(composed(choice, "data.num_train=20", "data.num_test=10").data)
        assert (len(dataset.train), len(dataset.val)) == (20, 10)
        return
    model = convert_norms(on_meta(lambda: build_model(cfg.model, 7, seed=0)), cfg.norm)
    logits = model(torch.zeros(8, 3, 32, 32, device="meta"))
    if cfg.data.task == "segmentation":
        assert logits["out"].shape == (8, 7, 32, 32)
    else:
        assert logits.shape == (8, 7)
    assert build_optimizer(model, cfg.optim).param_groups


def test_every_data_set_has_tests_of_its_own():
    sources = {schema.builder.partition(":")[0].rpartition(".")[2] for schema in SCHEMAS["data"].values()}
    tested = {path.stem.removeprefix("test_") for path in (Path(__file__).parent / "data").glob("test_*.py")}
    assert sources - tested == set(), "write tests/data/test_<its module>.py"


def test_every_field_has_a_docstring():
    for module, node in ((m, n) for m in MODULES for n in ast.parse(inspect.getsource(m)).body):
        if not isinstance(node, ast.ClassDef) or not hasattr(getattr(module, node.name), "__dataclass_fields__"):
            continue
        for statement, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(statement, ast.AnnAssign) or "ClassVar" in ast.unparse(statement.annotation):
                continue
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            inherited = any(
                statement.target.id in getattr(base, "__dataclass_fields__", {})
                for base in getattr(module, node.name).__mro__[1:]
            )
            assert documented or inherited, f"{node.name}.{statement.target.id}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.lr=nan"], ["optim.lr", "nan"]),
        (["optim.lr=-1"], ["optim.lr", "-1", "above 0"]),
        (["batch_size=0"], ["batch_size=0", "at least 1"]),
        (["label_smoothing=1"], ["label_smoothing", "below 1"]),
        (["optim.milestones=[0.5,1.5]"], ["optim.milestones", "1.5"]),
        (["norm=gn", "norm.num_groups=4", "norm.channels_per_group=4"], ["norm.num_groups=4", "exclude"]),
        (["norm=batch_renorm", "norm.r_max_batches=10"], ["norm.r_max_batches=10", "norm.bn_batches=500"]),
        (["model.depth=10"], ["model.depth=10", "8 or 14"]),
        (["optim.nesterov=true", "optim.momentum=0"], ["nesterov", "momentum"]),
        (["data.input_mean=[0.5,0.5,0.5]"], ["data.input_mean=[0.5, 0.5, 0.5]", "needs data.input_std"]),
        (["data.input_std=[0.2,0.2,0.2]"], ["data.input_std=[0.2, 0.2, 0.2]", "needs data.input_mean"]),
        (["data.input_mean=[0.5]", "data.input_std=[0.2]"], ["data.input_mean=[0.5]", "3 values"]),
        (["data.input_mean=[124,116,104]", "data.input_std=[58,57,57]"], ["data.input_mean=124", "at most 1"]),
        ([f"seed={2**64}"], [f"seed={2**64}", "at most 9223372036854775807"]),
        ([f"threads={2**31}"], [f"threads={2**31}", "at most 1024"]),
        ([f"eval_batch_size={2**63}"], [f"eval_batch_size={2**63}", "at most 2147483647"]),
        ([f"eval_batch_size={10**400}"], ["eval_batch_size=1000", "at most 2147483647"]),
        (["data.num_train=2000000000"], ["data.num_train=2000000000", "at most 1000000"]),
        (["data=image_folder", "data.image_size=100000"], ["data.image_size=100000", "at most 4096"]),
        (["model.width=100000"], ["model.width=100000", "at most 1024"]),
        ([*SEGMENTATION, "data.crop_size=20000"], ["data.crop_size=20000", "at most 4096"]),
        ([*SEGMENTATION, "data.scale_min=1e-12"], ["data.scale_min=1e-12"]),
        ([*SEGMENTATION, "deterministic=true"], ["deterministic=true", "set deterministic=false, or device=cpu"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_key_value_and_fix(overrides, words):
    with pytest.raises(ConfigError) as caught:
        typed(*overrides)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "study", ["../../x", "a/b", "a\nb", "lr=0.1", "", ".slurm", "..", "x" * 101, "a\x00b", "a\ud800"]
)
def test_a_study_is_the_name_of_one_folder(study):
    sections = {name: getattr(typed(), name) for name in ("norm", "model", "data", "optim")}
    with pytest.raises(ConfigError, match="study=") as caught:
        Config(**sections, study=study)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["output_dir", "model.init_from", "data.root"])
def test_a_path_holds_no_character_that_cannot_be_printed(key):
    with pytest.raises(ConfigError, match=f"{key}="):
        typed("data=image_folder", f"{key}='a\nb'")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["norm.name=gn"], ["norm.name=gn", "norm=gn alone"]),
        (["data.name=cifar10"], ["data.name=cifar10", "data=cifar10 alone"]),
        (["data=cifar10", "data.name=shapes"], ["data.name=shapes", "cifar10 or cifar100"]),
        (["optim.name=adamw"], ["optim.name=adamw", "optim=adamw"]),
        (["model.name=resnet20"], ["model.name=resnet20", "resnet8", "model=resnet20"]),
        (["model.name=mobilenet_v3_small"], ["model=torchvision model.name=mobilenet_v3_small"]),
        ([*SEGMENTATION, "model.name=fcn_resnet20"], ["model.name=fcn_resnet20", "model=fcn_resnet20"]),
        (["model=torchvision", "model.name='x/../../../victim'"], ["model.name=x/../../../victim"]),
        (["model=timm", "model.name='a=b'"], ["model.name=a=b"]),
    ],
)
def test_a_name_that_the_choice_does_not_own_is_refused_with_the_group_to_choose(overrides, words):
    with pytest.raises(ConfigError) as caught:
        typed(*overrides)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_section_made_in_python_has_no_name_but_its_own():
    with pytest.raises(ConfigError, match=r"norm\.name=bn"):
        GroupNormConfig(name="bn")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["model=resnet8", "model.depth=14"], "resnet14"),
        (["model=resnet20", "model.width=32"], "resnet20x32"),
        ([*SEGMENTATION, "model.depth=20", "model.width=8"], "fcn_resnet20x8"),
        (["model=torchvision", "model.name=mobilenet_v3_small"], "mobilenet_v3_small"),
    ],
)
def test_a_models_name_follows_from_the_keys_that_make_it(overrides, name):
    assert typed(*overrides).model.name == name


@pytest.mark.parametrize(
    "override", ["norm=foo", "norm.num_groups=2", "norm=none norm.eps=1", "epoch=3", "precision=bf17", "epochs=x"]
)
def test_unknown_keys_and_choices_fail_while_composing(override):
    with pytest.raises((HydraException, ConfigError)):
        typed(*override.split())


def test_an_experiment_yields_to_the_command_line():
    cfg = typed("experiment=quickstart", "norm=gn", "world_size=4")
    assert (cfg.norm.name, cfg.world_size) == ("gn", 4)


def test_group_norm_has_8_groups_unless_told():
    assert typed("norm=gn").norm.num_groups == 8
    assert typed("norm=gn", "norm.channels_per_group=4").norm.num_groups is None


def test_normalization_batch_size_counts_the_samples_that_share_statistics():
    """By hand; tests/norms/test_declarations.py has every norm, against its layer."""
    expected = {"bn": 4, "syncbn": 32, "syncbn norm.sync_group_size=2": 8, "ghost_bn": 8, "gn": 1}
    assert {
        n: typed(*f"norm={n}".split()).norm.normalization_batch_size(batch_size=4, ranks=8) for n in expected
    } == expected


def test_identity_leaves_out_paths_threads_device_and_logging():
    hidden = [
        "threads=1",
        "device=cpu",
        "output_dir=x",
        "study=y",
        "log_every=1",
        "checkpoint_every_s=1",
        "progress=false",
    ]
    assert identity(typed(*hidden)) == identity(typed())
    assert "root" not in identity(typed("data=cifar10", "data.root=x"))["data"]


def test_identity_holds_the_choices_and_what_is_off_its_default():
    held = identity(
        typed("norm=gn", "norm.num_groups=4", "seed=0", "batch_size=4", "optim.milestones=[0.5, 0.75]")
    )
    assert held == {
        "norm": {"name": "gn", "num_groups": 4},
        "model": {"name": "resnet8"},
        "data": {"name": "shapes"},
        "optim": {"name": "sgd"},
        "batch_size": 4,
    }


def test_a_model_keeps_its_part_of_earlier_hashes():
    assert identity(typed("model=resnet20").model) == {"name": "resnet20", "depth": 20}
    assert identity(typed("model.depth=14").model) == identity(typed("model=resnet14").model)


def test_models_of_one_name_in_two_libraries_are_two():
    torchvision, timm = (
        typed(f"model={library}", "model.name=resnet18").model for library in ("torchvision", "timm")
    )
    assert identity(torchvision) != identity(timm)


def test_a_default_that_changes_raises_the_results_version():
    """Defaults are no part of a run's hash, so those of the current results version are kept in a file."""
    sections = {"": Config} | {
        f"{g}/{n}": section for g, schemas in SCHEMAS.items() for n, section in schemas.items()
    }
    now = {
        f"{name}.{spec.name}": default_of(spec)
        for name, section in sections.items()
        for spec in fields(section)
        if spec.metadata.get("identity", True)
    }
    held = {"results_version": RESULTS_VERSION, "defaults": now}
    path = Path(__file__).with_name("defaults.json")
    if os.environ.get("KEEP_DEFAULTS"):
        path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    kept = json.loads(path.read_text())
    assert held == kept, (
        "a key is new, or RESULTS_VERSION is raised for a default that changed? Run: "
        "KEEP_DEFAULTS=1 pytest tests/test_config.py, and commit tests/defaults.json"
    )


def test_choices_are_listed_as_declared_and_a_users_own_after_them_by_name():
    norms = list(SCHEMAS["norm"])
    assert in_order("norm", ["zz", *reversed(norms), "aa"]) == [*norms, "aa", "zz"]
    for group in SCHEMAS:
        known = known_choices(group)
        assert sorted(known) == choices(group)
        assert list(dict.fromkeys(known.values())) == list(SCHEMAS[group].values())


def test_help_gives_every_key_its_default_and_its_meaning():
    lines = describe_keys().splitlines()
    for key in ("norm.momentum = null", "optim.milestones = [0.5, 0.75]", "world_size = null", "compile = false"):
        assert len(lines[lines.index(f"  {key}") + 1].strip()) > 10
    assert "  norm" in lines
