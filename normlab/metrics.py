"""Metrics as sums: added over batches, reduced over ranks once, divided last."""

import torch


def confusion_matrix(predicted: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(K, K) int64: how many of class i (row) were taken for class j; labels above K-1 are left out."""
    # bincount and boolean masks would wait for the device, to learn the size of their result.
    cells = torch.where(labels < num_classes, labels * num_classes + predicted, num_classes**2).flatten()
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=cells.device)
    return counts.scatter_add_(0, cells, torch.ones_like(cells))[:-1].view(num_classes, num_classes)


def iou_metrics(confusion_KK: torch.Tensor, classes: list[str]) -> dict[str, float]:
    """Metrics of a confusion matrix over a whole set.

        iou_c = true positives / (true positives + false positives + false negatives)

    A class that is neither present nor predicted has no IoU and is left out: `miou` is the mean over the
    `iou_classes` that have one. `pixel_accuracy` is the share of pixels that were predicted correctly. A set
    without valid pixels has nothing but iou_classes=0.
    Source: Everingham et al. 2015, The PASCAL Visual Object Classes challenge: a retrospective, section 4.
    """
    hits_K = confusion_KK.diagonal()
    unions_K = confusion_KK.sum(0) + confusion_KK.sum(1) - hits_K
    ious = {
        name: hits / union
        for name, hits, union in zip(classes, hits_K.tolist(), unions_K.tolist(), strict=True)
        if union
    }
    metrics = {"iou_classes": float(len(ious))}
    if ious:
        metrics["miou"] = sum(ious.values()) / len(ious)
        metrics["pixel_accuracy"] = float(hits_K.sum() / confusion_KK.sum())
    return metrics | {f"iou/{name}": iou for name, iou in ious.items()}
