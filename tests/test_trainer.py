"""The invariants that make the comparison trustworthy, on real gloo ranks."""

import math

import pytest
import torch
import torch.nn.functional as F

from normlab import checkpoint
from normlab.config.norm import NORMS
from tests.norms.configs import UNFROZEN
from tests.runs import EXACT, NARROW, TINY, assert_same_bits, build, run_training

SPLITS_OF_16 = {2: "batch_size=8", 4: "batch_size=4"}
OF_NO_RANK = [name for name in UNFROZEN if NORMS[name].needs_ranks or not NORMS[name].needs_batch]
"""Norms whose statistics do not depend on how a global batch is split into ranks."""
WIDE = {"none", "ln2d", "rms", "evonorm_s0", "gn norm.weight_standardization=true"}


def relative_difference(a, b):
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(norm, marks=[pytest.mark.full] * (norm in WIDE))
        for norm in [*OF_NO_RANK, "gn norm.weight_standardization=true"]
    ],
)
def test_invariant_2_one_global_batch_gives_one_loss_curve_on_any_ranks(norm, ranks, tmp_path):
    overrides = [
        *EXACT,
        NARROW,
        f"output_dir={tmp_path}",
        *f"norm={norm}".split(),
        "data.num_train=64",
        "epochs=5",
    ]
    overrides += ["eval_every_epochs=5", "diagnostics=false", *["norm.num_groups=2"] * norm.startswith("gn")]
    alone = ranks.run(run_training, [*overrides, "batch_size=16"], world_size=1)[0]
    assert len(alone["loss"]) == 20
    for world_size, batch_size in SPLITS_OF_16.items():
        split = ranks.run(run_training, [*overrides, batch_size], world_size=world_size)[0]
        assert relative_difference(split["loss"], alone["loss"]) < 1e-10, world_size


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_accumulation_is_a_global_batch_for_gn_and_not_for_bn(norm, ranks, tmp_path):
    overrides = [*EXACT, f"output_dir={tmp_path}", f"norm={norm}", "epochs=1"]
    whole = ranks.run(run_training, [*overrides, "batch_size=16"], world_size=1)[0]
    parts = ranks.run(run_training, [*overrides, "batch_size=4", "accumulate=2"], world_size=2)[0]
    difference = relative_difference(parts["loss"], whole["loss"])
    assert difference < 1e-10 if norm == "gn" else difference > 1e-4


def first_gradients(rank, overrides):
    trainer = build(rank, overrides)
    for images, labels in next(trainer.batches.epoch(0)):
        scale = trainer.ranks.world_size / trainer.global_batch_size
        (F.cross_entropy(trainer.model(images), labels, reduction="sum") * scale).backward()
    return [p.grad.clone() for p in trainer.module.parameters()]


@pytest.mark.parametrize("norm", ["gn", "syncbn"])
def test_invariant_2_first_gradients_of_resnet20_agree(norm, ranks, tmp_path):
    overrides = [*EXACT, f"output_dir={tmp_path}", f"norm={norm}", "model=resnet20"]
    alone = ranks.run(first_gradients, [*overrides, "batch_size=16"], world_size=1)[0]
    for world_size, batch_size in SPLITS_OF_16.items():
        split = ranks.run(first_gradients, [*overrides, batch_size], world_size=world_size)[0]
        largest = max(g.abs().max() for g in alone)
        for ours, theirs in zip(split, alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * float(largest))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(
    "options", ["norm=bn", "norm=syncbn", "norm=bn virtual_ranks=2 batch_size=2 norm.running_stats=pooled"]
)
def test_invariant_4_a_run_stopped_mid_epoch_and_resumed_is_bitwise_equal(options, world_size, ranks, tmp_path):
    overrides = [*TINY, "batch_size=4", *options.split(), "epochs=2", "log_every=3"]
    straight = ranks.run(run_training, [*overrides, f"output_dir={tmp_path}/straight"], world_size=world_size)
    cut = [*overrides, f"output_dir={tmp_path}/cut"]
    last_rank = world_size - 1
    stopped = ranks.run(run_training, cut, {last_rank: (5, 15)}, world_size=world_size)
    assert [(s["outcome"].status, s["outcome"].stop_signal) for s in stopped] == [("stopped", 15)] * world_size
    resumed = ranks.run(run_training, cut, world_size=world_size)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert_same_bits(ours["state"], theirs["state"])
    assert resumed[0]["outcome"].measured["resumed"] == 1
    # The points after the cut are those of the run that was not cut, unlogged sums before it included.
    curve = [(p["step"], p["train/loss"]) for p in straight[0]["points"] if "train/loss" in p and p["step"] > 5]
    assert [(p["step"], p["train/loss"]) for p in resumed[0]["points"] if "train/loss" in p] == curve
    a, b = (r[0]["run"].checkpoint_path for r in (resumed, straight))
    assert torch.equal(checkpoint.load(a)["rank_state"], checkpoint.load(b)["rank_state"])


STEPS_OF_AN_EPOCH = 8


@pytest.mark.parametrize("when", ["at the epoch's last step", "in val", "in the last diagnostics"])
def test_a_stop_during_an_evaluation_keeps_the_epoch_and_the_resumed_run_evaluates_it(when, ranks, tmp_path):
    overrides = [*TINY, "batch_size=4", "epochs=2", "norm.running_stats=precise"]
    straight = ranks.run(run_training, [*overrides, f"output_dir={tmp_path}/straight"], world_size=3)
    # 4 batches of val on 3 ranks: the one that gets the signal has fewer than the others.
    look, kept = {
        "at the epoch's last step": (STEPS_OF_AN_EPOCH, STEPS_OF_AN_EPOCH),
        "in val": (STEPS_OF_AN_EPOCH + 2, STEPS_OF_AN_EPOCH),
        "in the last diagnostics": (straight[0]["looks"] - 1, 2 * STEPS_OF_AN_EPOCH),
    }[when]
    cut = [*overrides, f"output_dir={tmp_path}/cut"]
    stopped = ranks.run(run_training, cut, {2: (look, 15)}, world_size=3)
    assert [(s["outcome"].status, s["outcome"].stop_signal) for s in stopped] == [("stopped", 15)] * 3
    assert {s["looks"] for s in stopped} == {look}
    assert stopped[0]["points"][-1].keys() >= {"train/loss"}  # no evaluation yet
    assert checkpoint.load(stopped[0]["run"].checkpoint_path)["step"] == kept
    resumed = ranks.run(run_training, cut, world_size=3)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert_same_bits(ours["state"], theirs["state"])
    assert resumed[0]["outcome"].metrics == straight[0]["outcome"].metrics
    timeless = [
        [{tag: value for tag, value in point.items() if tag != "images_per_second"} for point in run[0]["points"]]
        for run in (stopped, resumed, straight)
    ]
    assert timeless[0] + timeless[1] == timeless[2]


def test_a_resume_with_other_threads_warns(ranks, tmp_path):
    overrides = [*TINY, f"output_dir={tmp_path}", "epochs=1"]
    ranks.run(run_training, [*overrides, "threads=1"], {0: (1, 15)}, world_size=1)
    resumed = ranks.run(run_training, [*overrides, "threads=2"], world_size=1)[0]
    assert any("threads=1, resumed with 2" in note for note in resumed["notes"])


def test_a_resume_on_another_device_warns_and_the_result_names_both(ranks, tmp_path):
    overrides = [*TINY, f"output_dir={tmp_path}", "epochs=1"]
    stopped = ranks.run(run_training, overrides, {0: (1, 15)}, world_size=1)[0]
    path = stopped["run"].checkpoint_path
    state = checkpoint.load(path)
    assert state["devices"] == ["cpu"]
    checkpoint.save(path, state | {"devices": ["cuda"]})
    resumed = ranks.run(run_training, overrides, world_size=1)[0]
    assert any("trained on cuda so far and on cpu from here" in note for note in resumed["notes"])
    assert resumed["outcome"].measured["devices"] == ["cuda", "cpu"]
    assert checkpoint.load(path)["devices"] == ["cuda", "cpu"]


def train_then_evaluate(rank, overrides):
    trainer = build(rank, overrides)
    trainer.started = trainer.saved_at = 0.0
    for step, micro_batches in enumerate(trainer.batches.epoch(0)):
        trainer._step(step, micro_batches)
    before = {name: b.clone() for name, b in trainer.module.named_buffers()}
    buffers = trainer.ranks.rank0_copy(dict(trainer.module.named_buffers()))
    metrics = trainer.task.metrics(trainer.evaluator.split(trainer.dataset.val, buffers))
    after = dict(trainer.module.named_buffers())
    state = {name: t.clone() for name, t in trainer.module.state_dict().items()}
    return {"metrics": metrics, "kept": all(torch.equal(before[n], after[n]) for n in after), "state": state}


def evaluate_state(rank, overrides, state):
    trainer = build(rank, overrides)
    trainer.module.load_state_dict(state)
    sums = trainer.evaluator.split(trainer.dataset.val, dict(trainer.module.named_buffers()))
    return trainer.task.metrics(sums)


def test_invariant_5_evaluation_is_rank_0s_model_on_each_sample_once_at_any_world_size(ranks, tmp_path):
    overrides = [*TINY, f"output_dir={tmp_path}", "batch_size=4"]
    trained = ranks.run(train_then_evaluate, overrides, world_size=4)
    assert all(r["kept"] for r in trained)
    running_means = [r["state"]["norm.running_mean"] for r in trained]
    assert not torch.equal(running_means[0], running_means[1])
    # 50 samples in batches of 16 on 1, 2, 3 or 4 ranks: some have more batches than others.
    expected = trained[0]["metrics"]
    for world_size in (1, 2, 3):
        evaluated = ranks.run(evaluate_state, overrides, trained[0]["state"], world_size=world_size)
        assert all(e == pytest.approx(expected, rel=1e-14) for e in evaluated)
        assert all(e["accuracy"] == expected["accuracy"] for e in evaluated)


def evaluated_by_hand(rank, overrides):
    trainer = build(rank, overrides)
    images_BHWC, labels_B = trainer.dataset.val.take(torch.arange(len(trainer.dataset.val)))
    pixels = (images_BHWC.permute(0, 3, 1, 2) / 255.0).double()
    x = (pixels - trainer.dataset.mean_C.view(3, 1, 1)) / trainer.dataset.std_C.view(3, 1, 1)
    with torch.no_grad():
        logits = trainer.module.eval()(x.to(trainer.numerics.dtype))
    by_hand = F.cross_entropy(logits, labels_B).item(), (logits.argmax(1) == labels_B).double().mean().item()
    sums = trainer.evaluator.split(trainer.dataset.val, dict(trainer.module.named_buffers()))
    ours = trainer.task.metrics(sums)
    return by_hand, (ours["loss"], ours["accuracy"])


def test_evaluation_is_the_mean_over_samples(ranks, tmp_path):
    by_hand, ours = ranks.run(evaluated_by_hand, [*EXACT, f"output_dir={tmp_path}"], world_size=1)[0]
    assert ours == pytest.approx(by_hand, rel=1e-6)


def test_the_learning_rate_that_is_logged_is_the_one_that_was_used(ranks, tmp_path):
    overrides = [*TINY, f"output_dir={tmp_path}", "epochs=1", "optim.schedule=constant"]
    result = ranks.run(run_training, [*overrides, "batch_size=32"], world_size=1)[0]
    assert result["points"][0]["lr"] == pytest.approx(0.1 * 32 / 128)
    assert {g["lr"] for g in result["optimizer"]["param_groups"]} == {result["points"][0]["lr"]}


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged_on_every_rank(ranks, tmp_path):
    overrides = [*TINY, f"output_dir={tmp_path}", "norm=bn", "optim.lr=1e30", "epochs=4"]
    results = ranks.run(run_training, overrides, world_size=2)
    assert [r["outcome"].status for r in results] == ["diverged", "diverged"]
    assert math.isnan(results[0]["points"][-1]["train/loss"])


def test_the_speed_of_a_run_that_diverged_is_of_the_steps_whose_time_was_taken(tmp_path):
    trainer = build(0, [*TINY, f"output_dir={tmp_path}"])
    trainer.started, trainer.logged_step, trainer.train_s = 0.0, 4, 2.0
    measured = trainer._measured(7)
    assert measured["samples_seen"] == 7 * trainer.global_batch_size
    assert measured["images_per_second"] == 4 * trainer.global_batch_size / 2


@pytest.mark.parametrize("lr", ["1e6", "1e38"])
def test_a_last_update_that_spoils_the_weights_makes_the_run_diverged_on_every_rank(lr, ranks, tmp_path):
    one_step = ["batch_size=16", "max_samples=32", "optim.lr_scaling=none", f"optim.lr={lr}"]
    results = ranks.run(run_training, [*TINY, f"output_dir={tmp_path}", *one_step], world_size=2)
    assert [(r["outcome"].status, r["outcome"].metrics) for r in results] == [("diverged", {})] * 2
    assert math.isfinite(results[0]["loss"][0])
    assert results[0]["outcome"].measured["samples_seen"] == 32


def test_max_samples_ends_a_run_before_its_epochs_and_the_last_step_is_evaluated(ranks, tmp_path):
    overrides = [*TINY, f"output_dir={tmp_path}", "batch_size=16", "epochs=4", "max_samples=150"]
    result = ranks.run(run_training, overrides, world_size=1)[0]
    assert result["outcome"].measured["samples_seen"] == 144  # 9 whole batches
    evaluated = [p["samples_seen"] for p in result["points"] if "val/accuracy" in p]
    assert evaluated == [96, 144]
    assert result["outcome"].metrics.keys() == {"val/loss", "val/accuracy", "train/accuracy"}


def test_with_a_validation_split_the_test_folder_is_evaluated_once_at_the_end(ranks, tmp_path):
    overrides = [*TINY, f"output_dir={tmp_path}", "data.val_fraction=0.25", "batch_size=8", "epochs=2"]
    result = ranks.run(run_training, overrides, world_size=1)[0]
    assert len([p for p in result["points"] if "val/accuracy" in p]) == 2
    assert len([p for p in result["points"] if "test/accuracy" in p]) == 1
    assert {"test/accuracy", "test/loss", "val/accuracy"} <= result["outcome"].metrics.keys()


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=bf16", "norm=syncbn"],
        ["channels_last=true", "norm=gn"],
        ["optim=adamw", "label_smoothing=0.1", "optim.clip_grad_norm=1"],
        ["optim.schedule=step", "optim.warmup_epochs=0.5", "optim.norm_weight_decay=0", "optim.nesterov=true"],
        ["model=torchvision", "batch_size=8", "max_samples=16"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_options_train_on_two_ranks(overrides, ranks, tmp_path):
    results = ranks.run(run_training, [*TINY, f"output_dir={tmp_path}", "epochs=1", *overrides], world_size=2)
    assert results[0]["outcome"].status == "finished"
    assert all(math.isfinite(loss) for loss in results[0]["loss"])
    parameters = [n for n in results[0]["state"] if "running" not in n and "num_batches" not in n]
    assert_same_bits(*({n: r["state"][n] for n in parameters} for r in results))


def compiled_against_eager(rank, overrides):
    return [run_training(rank, [*overrides, f"compile={compiled}"])["loss"] for compiled in ("false", "true")]


@pytest.mark.full
@pytest.mark.parametrize(("norm", "world_size"), [("gn", 1), ("syncbn", 2)])
def test_compiled_training_gives_the_eager_curve(norm, world_size, ranks, tmp_path):
    overrides = [*EXACT, f"output_dir={tmp_path}", f"norm={norm}", "batch_size=8", "max_samples=32"]
    eager, compiled = ranks.run(compiled_against_eager, overrides, world_size=world_size)[0]
    assert relative_difference(compiled, eager) < 1e-9
