"""The invariants hold for images that are streamed, on real gloo ranks."""

import threading

import pytest

from tests.data.jpeg_files import write_folder
from tests.runs import NARROW, Recorder, StopAt, assert_same_bits, build, run_training
from tests.test_virtual_ranks import assert_same_run, train_and_evaluate


@pytest.fixture
def streamed(tmp_path):
    """What chooses a folder of 26 training and 10 test pictures."""
    root = write_folder(tmp_path / "pictures", 13, 5)
    options = [f"data.root={root}", "data.decode=stream", "data.image_size=16", "data.workers=2", NARROW]
    return ["data=image_folder", *options, "eval_batch_size=3", "eval_train_samples=7", "log_every=1"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_invariant_4_a_run_stopped_mid_epoch_and_resumed_is_bitwise_equal(world_size, streamed, ranks, tmp_path):
    overrides = [*streamed, "batch_size=2", "epochs=2", "diagnostics_samples=4"]
    straight = ranks.run(run_training, [*overrides, f"output_dir={tmp_path}/straight"], world_size=world_size)
    cut = [*overrides, f"output_dir={tmp_path}/cut"]
    stopped = ranks.run(run_training, cut, {world_size - 1: (4, 15)}, world_size=world_size)
    assert [s["outcome"].status for s in stopped] == ["stopped"] * world_size
    resumed = ranks.run(run_training, cut, world_size=world_size)
    assert resumed[0]["outcome"].measured["resumed"] == 1
    for ours, theirs in zip(resumed, straight, strict=True):
        assert_same_bits(ours["state"], theirs["state"])
    assert resumed[0]["outcome"].metrics == straight[0]["outcome"].metrics


def test_invariant_3_virtual_ranks_are_real_ranks(streamed, ranks, tmp_path):
    overrides = [*streamed, f"output_dir={tmp_path}", "precision=fp64", "optim.lr=0.02", "optim.lr_scaling=none"]
    overrides += ["norm=bn", "norm.precise_samples=8", "batch_size=2", "epochs=2", "diagnostics=false"]
    real = ranks.run(train_and_evaluate, overrides, world_size=4)
    assert len(real[0]["loss"]) == 6
    for world_size, virtual_ranks in [(1, 4), (2, 2)]:
        virtual = [*overrides, f"virtual_ranks={virtual_ranks}"]
        assert_same_run(ranks.run(train_and_evaluate, virtual, world_size=world_size), real)


@pytest.mark.parametrize("end", ["finished", "diverged", "stopped"])
def test_no_thread_is_left_however_a_run_ends(end, streamed, tmp_path):
    options = {"finished": ["max_samples=8"], "diverged": ["optim.lr=1e30"], "stopped": []}[end]
    trainer = build(0, [*streamed, f"output_dir={tmp_path}", "batch_size=2", "epochs=1", *options])
    before = threading.active_count()
    outcome = trainer.train(Recorder(), StopAt(3 * (end == "stopped"), 15))
    assert outcome.status == end
    assert threading.active_count() == before
