"""The invariants hold for segmentation too, on real gloo ranks, with pixels that are ignored and class weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from normlab import checkpoint
from normlab.data.dataset import IGNORED
from normlab.tasks import Segmentation
from tests.runs import EXACT, SEGMENTATION, TINY, Recorder, assert_same_bits, build, run_training
from tests.test_trainer import evaluate_state, relative_difference, train_then_evaluate
from tests.test_virtual_ranks import assert_same_run, train_and_evaluate

SMALL = [*SEGMENTATION, "data.crop_size=32", "model.width=8"]
HARD = ["model.aux_weight=0.4", "data.class_weighting=median_frequency"]
"""What makes the weight of samples differ, and a second head."""


@pytest.mark.parametrize("norm", ["gn", "syncbn"])
def test_invariant_2_one_global_batch_gives_one_loss_curve_on_any_ranks(norm, ranks, tmp_path):
    overrides = [*EXACT, *SMALL, *HARD, f"output_dir={tmp_path}", f"norm={norm}", "epochs=5"]
    overrides += ["data.num_train=64", "data.num_test=8", "eval_every_epochs=5", "diagnostics=false"]
    alone = ranks.run(run_training, [*overrides, "batch_size=16"], world_size=1)[0]
    assert len(alone["loss"]) == 20
    for world_size, split in {2: ["batch_size=4", "accumulate=2"], 4: ["batch_size=4"]}.items():
        if norm == "syncbn" and "accumulate=2" in split:
            continue  # accumulation does not enlarge its batch
        parts = ranks.run(run_training, [*overrides, *split], world_size=world_size)[0]
        assert relative_difference(parts["loss"], alone["loss"]) < 1e-10, world_size


@pytest.mark.parametrize("norm", ["norm=bn", "norm=syncbn norm.sync_group_size=2", "norm=gn"])
def test_invariant_3_virtual_ranks_are_real_ranks(norm, ranks, tmp_path):
    overrides = [*EXACT, *SMALL, *HARD, f"output_dir={tmp_path}", *norm.split(), "batch_size=2", "epochs=9"]
    overrides += ["max_samples=160", "data.num_train=80", "data.num_test=20", "diagnostics=false"]
    overrides += ["norm.precise_samples=40"] * ("bn" in norm)
    real = ranks.run(train_and_evaluate, overrides, world_size=4)
    assert len(real[0]["loss"]) == 20
    for world_size, virtual_ranks in ((1, 4), (2, 2)):
        split = [*overrides, f"virtual_ranks={virtual_ranks}"]
        assert_same_run(ranks.run(train_and_evaluate, split, world_size=world_size), real)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_invariant_4_a_run_stopped_mid_epoch_and_resumed_is_bitwise_equal(world_size, ranks, tmp_path):
    overrides = [*TINY, *SMALL, *HARD, "norm=bn", "batch_size=4", "epochs=2", "log_every=3"]
    straight = ranks.run(run_training, [*overrides, f"output_dir={tmp_path}/straight"], world_size=world_size)
    cut = [*overrides, f"output_dir={tmp_path}/cut"]
    stopped = ranks.run(run_training, cut, {world_size - 1: (5, 15)}, world_size=world_size)
    assert {s["outcome"].status for s in stopped} == {"stopped"}
    resumed = ranks.run(run_training, cut, world_size=world_size)
    for ours, theirs in zip(resumed, straight, strict=True):
        assert_same_bits(ours["state"], theirs["state"])
    curves = [[p["train/loss"] for p in r[0]["points"] if "train/loss" in p] for r in (resumed, straight)]
    assert curves[0] == curves[1][-len(curves[0]) :]


def test_invariant_5_evaluation_is_of_each_picture_once_at_any_world_size(ranks, tmp_path):
    overrides = [*TINY, *SMALL, f"output_dir={tmp_path}", "norm=bn", "batch_size=4"]
    trained = ranks.run(train_then_evaluate, overrides, world_size=4)
    assert all(r["kept"] for r in trained)
    expected = trained[0]["metrics"]
    for world_size in (1, 2, 3):
        evaluated = ranks.run(evaluate_state, overrides, trained[0]["state"], world_size=world_size)
        assert all(e == pytest.approx(expected, rel=1e-12) for e in evaluated)
        assert all(e["miou"] == expected["miou"] for e in evaluated)


def evaluated_by_torchmetrics(rank, overrides):
    """mIoU and loss of our evaluation, and of one picture after the other through torchmetrics."""
    trainer = build(rank, overrides)
    buffers = dict(trainer.module.named_buffers())
    ours = trainer.task.metrics(trainer.evaluator.split(trainer.dataset.val, buffers))
    classes = len(trainer.dataset.classes)
    # Per class: what macro averaging does with absent ones differs over torchmetrics' versions.
    oracle = MulticlassJaccardIndex(classes, average=None, ignore_index=IGNORED, sync_on_compute=False)
    loss, pixels = 0.0, 0
    for index in range(len(trainer.dataset.val)):
        image_HWC, mask_HW = trainer.dataset.val.sample(index)
        x = image_HWC.permute(2, 0, 1).double() / 255
        x = (x - trainer.dataset.mean_C.view(3, 1, 1)) / trainer.dataset.std_C.view(3, 1, 1)
        with torch.no_grad():
            logits = trainer.module.eval()(x[None].to(trainer.numerics.dtype))["out"]
        oracle.update(logits.argmax(1), mask_HW[None].long())
        loss += F.cross_entropy(logits, mask_HW[None].long(), ignore_index=IGNORED, reduction="sum").item()
        pixels += int((mask_HW != IGNORED).sum())
    return ours, oracle.compute(), loss / pixels


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_agrees_with_torchmetrics_on_any_ranks(world_size, ranks, tmp_path):
    overrides = [*EXACT, *SMALL, f"output_dir={tmp_path}", "eval_batch_size=7"]
    for ours, ious_K, loss in ranks.run(evaluated_by_torchmetrics, overrides, world_size=world_size):
        assert ours["miou"] == pytest.approx(ious_K.mean().item(), rel=1e-6)
        assert [v for tag, v in ours.items() if tag.startswith("iou/")] == pytest.approx(ious_K.tolist(), rel=1e-6)
        assert ours["loss"] == pytest.approx(loss, rel=1e-10)


def step_on_ignored_pixels(rank, overrides):
    """A step of pixels whose class weighs nothing, one of ignored pixels, and one of ignored pixels on rank 0."""
    trainer = build(rank, overrides)
    trainer.started = trainer.saved_at = 0.0
    before = [p.detach().clone() for p in trainer.module.parameters()]
    images_BCHW, labels_BHW = next(trainer.batches.epoch(0))[0]
    everywhere, weightless = torch.full_like(labels_BHW, IGNORED), torch.zeros_like(labels_BHW)
    steps = [trainer._step(0, [(images_BCHW, labels)]) for labels in (weightless, everywhere)]
    unmoved = [torch.equal(a, b) for a, b in zip(before, trainer.module.parameters(), strict=True)]
    labels_BHW = everywhere if rank == 0 else labels_BHW
    steps.append(trainer._step(0, [(images_BCHW, labels_BHW)]))
    return all(step.finite for step in steps), all(unmoved), float(steps[-1].grad_norm)


def test_a_batch_in_which_every_pixel_is_ignored_gives_no_nan(ranks, tmp_path):
    overrides = [*EXACT, *SMALL, f"output_dir={tmp_path}", "batch_size=2", "optim.weight_decay=0"]
    overrides += [f"data.class_weights={[0, *[1] * 10]}"]
    for finite, unmoved, grad_norm in ranks.run(step_on_ignored_pixels, overrides, world_size=2):
        assert finite
        assert unmoved
        assert math.isfinite(grad_norm)
        assert grad_norm > 0


def test_the_gradient_is_over_the_pixels_of_all_ranks_and_not_a_mean_of_means(ranks, tmp_path):
    overrides = [*EXACT, *SMALL, f"output_dir={tmp_path}", "norm=gn", "max_samples=4", "optim.weight_decay=0"]
    trained = ranks.run(run_training, [*overrides, "batch_size=2"], world_size=2)[0]["state"]
    expected, of_means = ranks.run(stepped_by_hand, [*overrides, "batch_size=4"], world_size=1)[0]
    for name, parameter in expected.items():
        torch.testing.assert_close(trained[name], parameter, rtol=1e-12, atol=1e-14)
    assert any((of_means[name] - expected[name]).abs().max() > 1e-6 for name in expected)


def stepped_by_hand(rank, overrides):
    """p - lr grad of the mean over all pixels that count, and of the mean of the means of two halves."""
    trainer = build(rank, overrides)
    images_BCHW, labels_BHW = next(trainer.batches.epoch(0))[0]
    logits = trainer.module(images_BCHW)["out"]
    halves = [F.cross_entropy(logits[h], labels_BHW[h], ignore_index=IGNORED) for h in (slice(0, 2), slice(2, 4))]
    losses = F.cross_entropy(logits, labels_BHW, ignore_index=IGNORED), sum(halves) / 2
    names, parameters = zip(*trainer.module.named_parameters(), strict=True)
    stepped = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        new = [p.detach() - 0.02 * g for p, g in zip(parameters, gradients, strict=True)]
        stepped.append(dict(zip(names, new, strict=True)))
    return stepped


def trained_with_pictures(rank, overrides):
    trainer, recorder = build(rank, overrides), Recorder()
    assert isinstance(trainer.task, Segmentation)
    outcome = trainer.train(recorder, lambda: 0)
    return {name: draw() for name, draw in recorder.pictures.items()}, outcome.metrics, recorder.points


def test_pictures_and_the_iou_of_each_class_are_logged(ranks, tmp_path):
    overrides = [*TINY, *SMALL, f"output_dir={tmp_path}", "norm=gn", "epochs=1", "data.val_fraction=0.2"]
    pictures, metrics, points = ranks.run(trained_with_pictures, overrides, world_size=1)[0]
    assert {"val/predictions", "val/confusion"} == pictures.keys()
    for picture in pictures.values():
        assert picture.dtype.name == "uint8"
        assert picture.shape[2] == 3
        assert len(torch.from_numpy(picture).view(-1, 3).unique(dim=0)) > 20  # something is drawn
    assert {"val/miou", "val/pixel_accuracy", "val/iou/background", "test/miou", "train/miou"} <= metrics.keys()
    assert "train/batch_miou" in points[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=bf16", "norm=syncbn"],
        ["channels_last=true", "norm=gn", "label_smoothing=0.1"],
        ["optim.schedule=poly", "optim.head_lr_factor=10", "data.augment=false"],
        ["model=deeplabv3_resnet18", "batch_size=2", "max_samples=4", "data.num_test=4", "norm=syncbn"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_options_train_on_two_ranks(overrides, ranks, tmp_path):
    own = [o for o in SMALL if "deeplab" not in overrides[0] or not o.startswith("model")]
    command = [*TINY, *own, f"output_dir={tmp_path}", "epochs=1", "batch_size=8", *overrides]
    results = ranks.run(run_training, command, world_size=2)
    assert results[0]["outcome"].status == "finished"
    assert all(math.isfinite(loss) for loss in results[0]["loss"])
    parameters = [n for n in results[0]["state"] if "running" not in n and "num_batches" not in n]
    assert_same_bits(*({n: r["state"][n] for n in parameters} for r in results))


def test_a_classification_run_gives_its_trunk_to_a_segmentation_run(ranks, tmp_path):
    classify = [*TINY, f"output_dir={tmp_path}", "model=resnet8", "norm=gn", "epochs=1"]
    trained = ranks.run(run_training, classify, world_size=1)[0]["run"]
    segment = [*TINY, *SEGMENTATION, "data.crop_size=32", f"output_dir={tmp_path}", "norm=gn", "epochs=1"]
    fresh = ranks.run(run_training, segment, world_size=1)[0]["run"]
    started = ranks.run(first_state, [*segment, f"model.init_from={trained.directory}"], world_size=1)[0]
    weights = checkpoint.load(trained.checkpoint_path)["model"]
    trunk = {name: t for name, t in started["state"].items() if name.startswith("backbone.")}
    assert_same_bits(trunk, {f"backbone.{n}": t for n, t in weights.items() if not n.startswith("head.")})
    assert started["hash"] != fresh.hash  # what a run starts from is part of what it is


def first_state(rank, overrides):
    trainer = build(rank, overrides)
    return {"state": {n: t.clone() for n, t in trainer.module.state_dict().items()}, "hash": trainer.run.hash}
