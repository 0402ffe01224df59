"""A job's configuration is what Hydra composes for it."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from launch.composing import Composer
from launch.plugins import register_launchers
from normlab.config.schema import register_schemas
from tests.runs import CONF

JOBS = [
    [],
    ["seed=1"],
    ["norm=gn", "seed=1"],
    ["norm=gn", "norm.num_groups=4", "seed=2"],
    ["norm=bn", "norm.num_groups=4"],
    ["seed=1", "norm=gn", "seed=2"],
    ["optim=adamw", "optim.lr=1e-3", "optim.milestones=[0.2, 0.4]"],
    ["experiment=quickstart", "epochs=2"],
    ["experiment=quickstart", "norm=ln", "data.num_train=64"],
    ["model=torchvision", "model.name=resnet18", "study='a b'"],
    ["norm={name: bn}"],
    ["+norm.unknown=3"],
    ["++seed=5", "hydra.launcher.retry_failed=false"],
    ["world_size=null", "threads=2", "compile=true"],
]


@pytest.fixture
def loader():
    register_schemas()
    register_launchers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


TABLE = '"${lookup:${norm.name},{bn:0.1,gn:${lookup:${batch_size},{2:0.2,4:0.3}}}}"'


def test_a_value_may_follow_from_others_in_each_job(loader):
    composer = Composer(loader.load_configuration("config", [f"optim.lr={TABLE}"], RunMode.MULTIRUN), loader)
    jobs = [("bn", 2), ("gn", 2), ("gn", 4)]
    rates = [
        composer.compose([f"optim.lr={TABLE}", f"norm={norm}", f"batch_size={size}"])[0].optim.lr
        for norm, size in jobs
    ]
    assert rates == [0.1, 0.2, 0.3]


def test_sharing_compositions_changes_no_job(loader):
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    composer = Composer(master, loader)
    for job in JOBS * 2:
        expected = loader.load_sweep_config(master, job)
        task, choices = composer.compose(job)
        assert choices == expected.hydra.runtime.choices
        with open_dict(expected):
            del expected["hydra"]
        assert task == expected
        assert OmegaConf.get_type(task.norm) is OmegaConf.get_type(expected.norm)


def test_jobs_that_differ_in_values_alone_read_no_file_again(loader, monkeypatch):
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    composer = Composer(master, loader)
    composer.compose(["norm=gn", "seed=0"])
    monkeypatch.setattr(loader, "load_sweep_config", None)
    assert composer.compose(["seed=7", "norm=gn", "optim.lr=0.5"])[0].seed == 7


@pytest.mark.parametrize("wrong", ["seed=many", "sed=1", "optim.lr=[1]", "norm=bnn"])
def test_what_does_not_compose_is_said_as_hydra_says_it(loader, wrong):
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    said = []
    for compose in (Composer(master, loader).compose, lambda job: loader.load_sweep_config(master, job)):
        with pytest.raises(HydraException) as raised:
            compose(["norm=gn", wrong])
        said.append(str(raised.value))
    assert said[0] == said[1]
