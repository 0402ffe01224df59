"""What is found before any rank trains."""

import pytest

from normlab import data
from normlab.config import Config, ConfigError
from normlab.config.data import ShapesConfig
from normlab.config.model import CifarResNetConfig
from normlab.config.norm import GroupNormConfig
from normlab.config.optim import SgdConfig
from normlab.preflight import plan
from tests.runs import typed


def test_a_batch_that_no_memory_holds_is_refused(monkeypatch):
    cfg = Config(
        norm=GroupNormConfig(), model=CifarResNetConfig(), data=ShapesConfig(num_train=20), optim=SgdConfig()
    )
    cfg.batch_size, cfg.virtual_ranks = 5, 2
    dataset = data.load(cfg.data)
    plan(cfg, dataset, world_size=1, study="")
    # 10 pictures of 32 x 32 x 3 as bytes and as float32: 153,600 bytes.
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 37}[name])
    with pytest.raises(
        ConfigError, match=r"batch_size=5 with virtual_ranks=2 and pictures of 32x32.*of memory here"
    ):
        plan(cfg, dataset, world_size=1, study="")


def test_a_sweep_builds_a_model_once_for_runs_that_differ_in_seed_and_rate(monkeypatch):
    dataset = data.load(typed().data)
    built, checked = [], set()
    monkeypatch.setattr("normlab.preflight._check_model", lambda *args: built.append(args))
    for overrides in (["seed=1"], ["seed=2", "optim.lr=0.3"], ["epochs=3"], ["norm=gn"], ["batch_size=4"], []):
        plan(typed(*overrides), dataset, world_size=1, study="", checked=checked)
    assert [cfg.norm.name + str(cfg.batch_size) for cfg, _, _ in built] == ["bn32", "gn32", "bn4"]


def test_a_model_that_does_not_fit_is_refused_each_time():
    cfg, checked = typed("norm=gn", "norm.num_groups=7"), set()
    dataset = data.load(cfg.data)
    for _ in range(2):
        with pytest.raises(ConfigError):
            plan(cfg, dataset, world_size=1, study="", checked=checked)
