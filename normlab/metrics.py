"""Metrics as sums: added over batches, reduced over ranks once, divided last."""

import torch

SUMS = ("loss", "correct", "count")


def zero_sums(device: torch.device | None = None) -> torch.Tensor:
    """(3,) float64: summed loss, correct predictions, samples."""
    return torch.zeros(len(SUMS), dtype=torch.float64, device=device)


def add_batch(sums: torch.Tensor, loss_sum: torch.Tensor, logits_BK: torch.Tensor, labels_B: torch.Tensor) -> None:
    """Add a batch of B samples, whose losses sum to `loss_sum`, to `sums` in place."""
    sums[0] += loss_sum
    sums[1] += (logits_BK.argmax(dim=1) == labels_B).sum()
    sums[2] += len(labels_B)


def mean_metrics(sums: torch.Tensor) -> dict[str, float]:
    """Sums over all ranks -> {"loss", "accuracy"}, both per sample; accuracy in [0, 1]."""
    loss, correct, count = sums.tolist()
    return {"loss": loss / count, "accuracy": correct / count}
