"""Every norm through the real trainer: resnet8 on shapes, on two gloo ranks."""

import math

import pytest
import torch

from normlab import data
from normlab.config import ConfigError
from normlab.norms import NORMS
from normlab.preflight import plan
from tests.norms.configs import ACTIVATING, UNFROZEN, overrides_of
from tests.norms.definitions import OWN_PARAMETERS
from tests.runs import EXACT, TINY, assert_same_bits, run_training, typed

WIDE = {"bn", "syncbn", "gn", "ln", "in", "none", "ln2d", "rms", "frn", "switchable"}
"""Norms whose state is that of a norm that is tested: here, or bn's and syncbn's in test_trainer.py."""


def options(norm, frozen_from, folder):
    init = [f"model.init_from={frozen_from}"] * (norm == "frozen_bn")
    return [*overrides_of(norm), *init, f"output_dir={folder}", "batch_size=4", "epochs=1"]


@pytest.fixture(scope="module")
def bn_run(ranks, tmp_path_factory):
    """A run of bn: where frozen_bn has its statistics from."""
    overrides = [*TINY, *options("bn", "", tmp_path_factory.mktemp("bn"))]
    return ranks.run(run_training, overrides, world_size=2)[0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("how", [[], ["precision=bf16", "channels_last=true", "max_samples=16"]], ids=["", "bf16"])
def test_every_norm_trains_resnet8_on_shapes(norm, how, ranks, bn_run, tmp_path):
    overrides = [*TINY, *options(norm, bn_run["run"].directory, tmp_path), *how]
    results = ranks.run(run_training, overrides, world_size=2)
    assert results[0]["outcome"].status == "finished"
    assert all(math.isfinite(loss) for loss in results[0]["loss"])
    assert len(set(results[0]["loss"])) == len(results[0]["loss"]) > 1
    trained = [name for name in results[0]["state"] if "running" not in name and "num_batches" not in name]
    assert_same_bits(*({name: r["state"][name] for name in trained} for r in results))
    assert 0 <= results[0]["outcome"].metrics["val/accuracy"] <= 1


def test_frozen_bn_trains_convolutions_on_what_the_file_had(ranks, bn_run, tmp_path):
    overrides = [*TINY, *options("frozen_bn", bn_run["run"].directory, tmp_path)]
    state, given = (r["state"] for r in (ranks.run(run_training, overrides, world_size=2)[0], bn_run))
    for name in (name for name in state if "norm" in name):
        assert torch.equal(state[name], given[name]), name
    assert not torch.equal(state["conv.weight"], given["conv.weight"])
    assert (given["norm.running_var"] != 1).all()


def refused(*overrides):
    cfg = typed(*TINY, *overrides)
    with pytest.raises(ConfigError) as caught:
        plan(cfg, data.load(cfg.data), world_size=1, study="test")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_frozen_bn_needs_a_file_with_running_statistics(ranks, tmp_path):
    assert "norm=frozen_bn freezes" in (message := refused("norm=frozen_bn"))
    assert "give model.init_from" in message
    overrides = [*TINY, *options("gn", "", tmp_path), "max_samples=8"]
    gn_run = ranks.run(run_training, overrides, world_size=1)[0]["run"]
    message = refused("norm=frozen_bn", f"model.init_from={gn_run.directory}")
    assert f"model.init_from={gn_run.directory} has no running statistics for layer norm" in message


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(norm, marks=[pytest.mark.full] * (norm in WIDE))
        for norm in [*UNFROZEN, "gn norm.weight_standardization=true"]
    ],
)
def test_invariant_4_a_run_stopped_and_resumed_is_bitwise_equal(norm, ranks, tmp_path):
    name, *more = norm.split()
    overrides = [*TINY, *options(name, "", tmp_path), *more, "epochs=2", "optim.lr=1"]
    straight = ranks.run(run_training, [*overrides, f"output_dir={tmp_path}/straight"], world_size=2)
    cut = [*overrides, f"output_dir={tmp_path}/cut"]
    stopped = ranks.run(run_training, cut, {1: (5, 15)}, world_size=2)
    assert stopped[0]["outcome"].status == "stopped"
    for ours, theirs in zip(ranks.run(run_training, cut, world_size=2), straight, strict=True):
        assert ours["outcome"].measured["resumed"] == 1
        assert_same_bits(ours["state"], theirs["state"])


@pytest.mark.parametrize("norm", ["ghost_bn", "rms"])
def test_accumulation_is_more_samples_and_the_same_statistics(norm, ranks, tmp_path):
    """Ghost batches of two: one batch of eight holds those of two batches of four, dealt otherwise."""
    overrides = [*EXACT, *options(norm, "", tmp_path), "max_samples=16"]
    whole = ranks.run(run_training, [*overrides, "batch_size=8"], world_size=1)[0]["loss"]
    parts = ranks.run(run_training, [*overrides, "batch_size=4", "accumulate=2"], world_size=1)[0]["loss"]
    assert (parts == pytest.approx(whole, rel=1e-10)) == (norm == "rms")
    assert parts == pytest.approx(whole, rel=0.5)


@pytest.mark.parametrize("norm", ACTIVATING)
def test_a_segmentation_model_trains_with_norms_that_are_activations(norm, ranks, tmp_path):
    overrides = [*TINY, *options(norm, "", tmp_path), "data=shapes_seg", "model=fcn_resnet8", "max_samples=8"]
    result = ranks.run(run_training, overrides, world_size=1)[0]
    assert result["outcome"].status == "finished"
    for extra in OWN_PARAMETERS.get(norm, ()):
        assert "backbone.norm." + extra in result["state"]
        assert "classifier.1." + extra in result["state"]
        assert "backbone.blocks.0.norm2." + extra not in result["state"]
