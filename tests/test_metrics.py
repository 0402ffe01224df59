import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normlab.metrics import add_batch, mean_metrics, zero_sums


def test_batches_of_unequal_size_weigh_by_their_samples():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(10, 4)), rng.integers(0, 4, size=10)
    sums = zero_sums()
    for part in (slice(0, 7), slice(7, 10)):
        logits_BK, labels_B = torch.tensor(logits[part]), torch.tensor(labels[part])
        add_batch(sums, F.cross_entropy(logits_BK, labels_B, reduction="sum"), logits_BK, labels_B)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert mean_metrics(sums) == pytest.approx(
        {
            "loss": -log_probabilities[np.arange(10), labels].mean(),
            "accuracy": (logits.argmax(axis=1) == labels).mean(),
        },
        rel=1e-12,
    )
