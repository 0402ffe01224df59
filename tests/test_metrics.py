"""IoU from one confusion matrix over a whole set, with torchmetrics and plain counting as oracles."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from normlab.metrics import confusion_matrix, iou_metrics

K, IGNORED = 5, 255
NAMES = [f"class_{index}" for index in range(K)]


def predicted_and_true(classes=K, seed=0):
    rng = np.random.default_rng(seed)
    predicted, labels = rng.integers(0, classes, (2, 6, 20, 30))
    labels = np.where(rng.random(labels.shape) < 0.4, predicted, labels)
    labels[rng.random(labels.shape) < 0.2] = IGNORED
    return torch.from_numpy(predicted), torch.from_numpy(labels)


def test_the_confusion_matrix_counts_true_classes_by_row_and_leaves_ignored_pixels_out():
    predicted, labels = predicted_and_true()
    by_hand = np.zeros((K, K), dtype=int)
    for guess, truth in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if truth != IGNORED:
            by_hand[truth, guess] += 1
    found = confusion_matrix(predicted, labels, K)
    assert found.tolist() == by_hand.tolist()
    oracle = MulticlassConfusionMatrix(K, ignore_index=IGNORED)
    assert torch.equal(found, oracle(predicted, labels))


def test_metrics_are_those_of_torchmetrics():
    predicted, labels = predicted_and_true()
    found = iou_metrics(confusion_matrix(predicted, labels, K), NAMES)
    each = MulticlassJaccardIndex(K, average=None, ignore_index=IGNORED)(predicted, labels).tolist()
    assert [found[f"iou/{name}"] for name in NAMES] == pytest.approx(each, rel=1e-6)
    mean = MulticlassJaccardIndex(K, average="macro", ignore_index=IGNORED)(predicted, labels).item()
    assert found["miou"] == pytest.approx(mean, rel=1e-6)
    accuracy = MulticlassAccuracy(K, average="micro", ignore_index=IGNORED)(predicted, labels).item()
    assert found["pixel_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    assert found["iou_classes"] == K


def test_a_class_neither_there_nor_predicted_is_left_out_of_the_mean():
    predicted, labels = predicted_and_true(classes=3)
    found = iou_metrics(confusion_matrix(predicted, labels, K), NAMES)
    assert found["iou_classes"] == 3
    assert "iou/class_3" not in found
    assert found["miou"] == pytest.approx(np.mean([found[f"iou/{name}"] for name in NAMES[:3]]))


def test_a_class_that_is_only_predicted_counts_as_zero():
    found = iou_metrics(torch.tensor([[3, 1], [0, 0]]), ["a", "b"])
    assert found == {"iou_classes": 2, "miou": 0.375, "pixel_accuracy": 0.75, "iou/a": 0.75, "iou/b": 0.0}


def test_without_a_pixel_that_counts_there_is_no_iou():
    assert iou_metrics(torch.zeros(2, 2, dtype=torch.int64), ["a", "b"]) == {"iou_classes": 0}
