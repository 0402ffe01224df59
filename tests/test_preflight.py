"""What is found before any rank trains."""

import pytest

from normlab import data
from normlab.config import CifarResNetConfig, Config, ConfigError, GroupNormConfig, SgdConfig, ShapesConfig
from normlab.preflight import plan


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
