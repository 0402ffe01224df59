"""Losses and metrics of both tasks, against the formula by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normlab import data
from normlab.config import ConfigError
from normlab.config.data import ClassWeighting, ShapesSegConfig
from normlab.data.dataset import IGNORED
from normlab.tasks import Classification, Segmentation, class_weights

CPU = torch.device("cpu")
K = 4


def test_classification_batches_of_unequal_size_weigh_by_their_samples():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(10, K)), rng.integers(0, K, size=10)
    task = Classification()
    sums = task.zero_sums(CPU)
    for part in (slice(0, 7), slice(7, 10)):
        task.add_evaluation(sums, torch.tensor(logits[part]), torch.tensor(labels[part]))
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert task.metrics(sums) == pytest.approx(
        {
            "loss": -log_probabilities[np.arange(10), labels].mean(),
            "accuracy": (logits.argmax(axis=1) == labels).mean(),
        },
        rel=1e-12,
    )


def a_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    out, aux = torch.randn(2, 3, K, 6, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, K, (3, 6, 5), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORED
    return {"out": out, "aux": aux}, labels


def pixel_losses(logits, labels):
    """-log softmax at the true class of each pixel that counts, and that class."""
    logits_PK, labels_P = logits.numpy().transpose(0, 2, 3, 1).reshape(-1, K), labels.numpy().ravel()
    log_probabilities = logits_PK - np.log(np.exp(logits_PK).sum(1, keepdims=True))
    counted = labels_P != IGNORED
    return -log_probabilities[counted, labels_P[counted]], labels_P[counted]


def test_the_segmentation_loss_is_weighted_over_pixels_that_count_with_the_auxiliary_head():
    output, labels = a_batch()
    weights = np.array([0.5, 2.0, 0.0, 1.0])
    task = Segmentation(list("abcd"), torch.tensor(weights), aux_weight=0.4)
    losses, classes = pixel_losses(output["out"], labels)
    aux_losses, _ = pixel_losses(output["aux"], labels)
    expected = (weights[classes] * (losses + 0.4 * aux_losses)).sum()
    assert task.loss_sum(output, labels).item() == pytest.approx(expected, rel=1e-12)
    assert task.weight(labels).item() == pytest.approx(weights[classes].sum(), rel=1e-12)


def test_evaluation_has_neither_class_weights_nor_the_auxiliary_head():
    output, labels = a_batch()
    task = Segmentation(list("abcd"), torch.tensor([0.5, 2.0, 0.0, 1.0]), label_smoothing=0.1, aux_weight=0.4)
    sums = task.zero_sums(CPU)
    task.add_evaluation(sums, output, labels)
    losses, classes = pixel_losses(output["out"], labels)
    metrics = task.metrics(sums)
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-12)
    found = output["out"].argmax(1)[labels != IGNORED].numpy()
    assert metrics["pixel_accuracy"] == pytest.approx((found == classes).mean(), rel=1e-12)


def test_where_every_pixel_is_ignored_loss_gradient_and_metrics_are_finite():
    output, labels = a_batch()
    labels = torch.full_like(labels, IGNORED)
    output["out"].requires_grad_()
    task = Segmentation(list("abcd"))
    loss = task.loss_sum(output, labels)
    loss.backward()
    assert loss.item() == 0
    assert not output["out"].grad.any()
    assert task.weight(labels).item() == 0
    sums = task.zero_sums(CPU)
    task.add_evaluation(sums, output, labels)
    assert task.metrics(sums) == {"loss": 0.0, "iou_classes": 0.0}


def test_label_smoothing_is_that_of_torch():
    output, labels = a_batch()
    task = Segmentation(list("abcd"), label_smoothing=0.1)
    mean = F.cross_entropy(output["out"], labels, ignore_index=IGNORED, label_smoothing=0.1)
    assert (task.loss_sum(output, labels) / task.weight(labels)).item() == pytest.approx(mean.item(), rel=1e-12)


def test_median_frequency_weights_are_those_of_the_formula():
    cfg = ShapesSegConfig(num_train=50, num_test=10, class_weighting=ClassWeighting.median_frequency)
    dataset = data.load(replace(cfg, train_samples=30))
    masks = [dataset.train.sample(index)[1].numpy() for index in range(30)]
    frequencies = []
    for label in range(len(dataset.classes)):
        shown = [mask for mask in masks if (mask == label).any()]
        frequencies.append(sum((m == label).sum() for m in shown) / sum((m != IGNORED).sum() for m in shown))
    expected = np.median(frequencies) / np.array(frequencies)
    assert class_weights(cfg, dataset).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [0.0] * 11])
def test_class_weights_that_do_not_fit_are_refused(weights):
    cfg = ShapesSegConfig(num_train=20, num_test=10, class_weights=weights)
    with pytest.raises(ConfigError, match=r"data\.class_weights=\[.*11 numbers"):
        class_weights(cfg, data.load(cfg))
