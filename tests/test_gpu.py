"""Training on a GPU is training on the CPU: `make gpu` runs these on a machine that has one.

NORMLAB_TEST_DEVICE=cpu compares the CPU with itself, to try the tests without a GPU.
"""

import os

import pytest
import torch

from normlab import data
from normlab.distributed import Ranks
from normlab.norms import NORMS
from normlab.preflight import plan
from normlab.trainer import Trainer
from tests.runs import SEGMENTATION, TINY, Recorder, StopAt, typed

DEVICE = torch.device(os.environ.get("NORMLAB_TEST_DEVICE", "cuda"), 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device; see `make gpu`"
    ),
]
CPU = torch.device("cpu")
TEN_STEPS = [*TINY, "optim.lr=0.02", "optim.lr_scaling=none", "batch_size=8", "max_samples=80", "threads=1"]
TRAINED = [norm for norm in NORMS if norm != "frozen_bn"]  # which needs the weights of another run
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-2, "bf16": 0.2}
"""Of ten losses, relative: what orders of sums make of fp64, and the rounding of ten steps of the other two."""


@pytest.fixture
def train_on(tmp_path):
    def train(device, *overrides, stop=lambda: 0, folder="runs"):
        cfg = typed(*overrides, f"output_dir={tmp_path / folder}")
        dataset = data.load(cfg.data)
        run = plan(cfg, dataset, world_size=1, study="gpu")
        run.create()
        recorder, trainer = Recorder(), Trainer(run, dataset, Ranks(0, 1, 1, device))
        outcome = trainer.train(recorder, stop)
        return torch.tensor(recorder.curve("train/loss"), dtype=torch.float64), outcome

    return train


def assert_the_device_trains_as_the_cpu(train_on, tolerance, *overrides):
    ours, ended = train_on(DEVICE, *overrides)
    theirs, _ = train_on(CPU, *overrides, folder="reference")
    assert ended.status == "finished"
    assert ended.measured["devices"] == [DEVICE.type]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("norm", TRAINED)
def test_ten_steps_of_each_norm_and_precision_give_the_losses_of_the_cpu(norm, precision, train_on):
    for layout in ("channels_last=false", "channels_last=true"):
        overrides = [*TEN_STEPS, f"norm={norm}", f"precision={precision}", layout]
        assert_the_device_trains_as_the_cpu(train_on, TOLERANCE[precision], *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["norm=bn", "virtual_ranks=2", "batch_size=4", "norm.running_stats=pooled"],
        ["norm=bn", "norm.running_stats=precise", "optim=adamw", "optim.clip_grad_norm=1"],
        ["norm=gn", "norm.weight_standardization=true", "accumulate=2", "batch_size=4"],
        ["norm=bn", *SEGMENTATION, "data.crop_size=32", "data.class_weighting=median_frequency"],
    ],
    ids=["virtual ranks", "precise statistics", "accumulation", "segmentation"],
)
def test_what_else_a_run_may_do_gives_the_losses_of_the_cpu(overrides, train_on):
    assert_the_device_trains_as_the_cpu(train_on, 1e-9, *TEN_STEPS, "precision=fp64", *overrides)


def test_a_run_that_is_stopped_and_resumed_gives_the_losses_of_one_that_is_not_to_the_last_bit(train_on):
    overrides = [*TEN_STEPS, "norm=bn", "deterministic=true"]
    straight, _ = train_on(DEVICE, *overrides)
    before, stopped = train_on(DEVICE, *overrides, stop=StopAt(5, 15), folder="cut")
    after, resumed = train_on(DEVICE, *overrides, folder="cut")
    assert (stopped.status, resumed.status, resumed.measured["resumed"]) == ("stopped", "finished", 1)
    assert torch.equal(torch.cat([before, after]), straight)
