"""Models that users name as module:name."""

from pathlib import Path

import pytest
import torch
from torch import nn

from normlab import data
from normlab.config import ConfigError
from normlab.models import build_model
from normlab.preflight import plan
from normlab.run import name_run
from tests.runs import TINY, typed

MODULE = """
from torch import nn

def build(num_classes, width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, num_classes),
    )

class Maps(nn.Module):
    def __init__(self, num_classes, key="out"):
        super().__init__()
        self.key, self.layers = key, nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, num_classes, 1))

    def forward(self, images):
        return {self.key: self.layers(images)}

class TooFew(Maps):
    def __init__(self, num_classes):
        super().__init__(num_classes - 1)

class Fails(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.layer(images, missing=1)

def nothing(num_classes):
    return nn.Flatten()

def raises(num_classes):
    return nn.Linear(missing, num_classes)

class Spare(nn.Module):
    def __init__(self, num_classes, used=False):
        super().__init__()
        self.used, self.model, self.spare = used, build(num_classes), nn.Linear(num_classes, num_classes)

    def forward(self, images):
        logits = self.model(images)
        return self.spare(logits) if self.used and self.training else logits

def number(num_classes):
    return 3

def maps(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

constant = 3
"""


@pytest.fixture
def here(own_module) -> str:
    return own_module(MODULE)


def planned(*overrides: str, model: str = "custom", ranks: int = 1):
    cfg = typed(*TINY, f"model={model}", *overrides)
    return plan(cfg, data.load(cfg.data), world_size=ranks, study="")


def test_the_target_gets_the_classes_and_the_arguments_and_keeps_the_seed(here):
    cfg = typed("model=custom", f"model.target={here}:build", "model.args={width: 6}").model
    model = build_model(cfg, 7, seed=1)
    assert isinstance(model[0], nn.Conv2d)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 7)
    assert model[0].out_channels == 6
    assert torch.equal(model[0].weight, build_model(cfg, 7, seed=1)[0].weight)
    assert cfg.name == f"{here}.build"


def test_what_it_was_called_with_and_its_source_belong_to_the_run(here):
    def hash_of(*overrides: str) -> str:
        return planned(f"model.target={here}:build", *overrides).hash

    first = hash_of()
    assert hash_of("model.args.width=5") != first
    assert hash_of() == first
    Path(f"{here}.py").write_text(MODULE + "# another\n")
    assert hash_of() != first


def test_a_segmentation_model_gives_a_dict_of_maps(here):
    segmentation = {"model": "custom_segmentation"}
    run = planned("data=shapes_seg", f"model.target={here}:Maps", **segmentation)
    assert run.config.model.name == f"{here}.Maps"
    with pytest.raises(
        ConfigError, match=r"gave a dict of other; let it give a dict whose out holds logits \(2, 11"
    ):
        planned("data=shapes_seg", f"model.target={here}:Maps", "model.args.key=other", **segmentation)
    with pytest.raises(ConfigError, match=r"let it give a dict whose aux holds"):
        planned("data=shapes_seg", f"model.target={here}:Maps", "model.aux_weight=0.4", **segmentation)
    with pytest.raises(
        ConfigError, match=r"the model gave a dict whose out is a tensor \(2, 10, 64, 64\) of float32"
    ):
        planned("data=shapes_seg", f"model.target={here}:TooFew", **segmentation)


def test_parameters_without_a_gradient_are_refused_on_several_ranks(here):
    """As DistributedDataParallel does, but in its second step."""
    target = f"model.target={here}:Spare"
    with pytest.raises(
        ConfigError, match=r"no gradient reaches spare.weight, spare.bias in a training step"
    ) as error:
        planned(target, ranks=2)
    assert str(error.value).startswith(f"{target}: ")
    planned(target)
    planned(target, "model.args.used=true", ranks=2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("raises", r"NameError at own_\d+\.py:34: name 'missing' is not defined"),
        ("Fails", r"TypeError at own_\d+\.py:28: .*unexpected keyword argument 'missing'"),
        ("nothing", r"the model gave a tensor \(2, 3072\) of float32; let it give logits \(2, 10\)"),
        ("number", r"gave something of type int; let it return an nn\.Module"),
        ("maps", r"the model gave a tensor \(2, 4, 30, 30\) of float32; let it give logits \(2, 10\)"),
        (
            "constant",
            r"has no constant that can be called; it has build, Maps, TooFew, Fails, nothing, raises, Spare",
        ),
    ],
)
def test_what_is_wrong_with_a_target_is_said_in_one_line_that_names_it(here, target, words):
    with pytest.raises(ConfigError, match=words) as error:
        planned(f"model.target={here}:{target}")
    assert f"model.target={here}:{target}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], r"model\.target= is no module:name; give one, such as"),
        (["model.target=nets"], r"model\.target=nets is no module:name"),
        (["model.target=no_such_nets:build"], r"there is no module no_such_nets in "),
        (["model.target=no.such_nets:build"], r"there is no module no\.such_nets in "),
        (["model.target=nets:build", "model.name=resnet8"], r"model\.name=resnet8 is no name of"),
    ],
)
def test_a_target_that_is_not_there_is_named(overrides, words):
    with pytest.raises(ConfigError, match=words):
        planned(*overrides)


def test_a_module_that_fails_as_it_is_imported_says_where(here):
    Path(f"{here}.py").write_text("import math\n\n1 / 0\n")
    with pytest.raises(ConfigError, match=rf"ZeroDivisionError at {here}\.py:3: division by zero"):
        planned(f"model.target={here}:build")


def test_the_name_of_a_run_needs_no_import(here, monkeypatch):
    monkeypatch.setattr("normlab.targets.import_module", None)
    cfg = typed("model=custom", f"model.target={here}:build")
    assert f"{here}.build" in name_run(cfg, world_size=1, study="", data_fingerprint="").directory.name
