"""The tasks, with their losses and metrics: a class for each image, or for each pixel."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from normlab.config import Config, ConfigError
from normlab.config.data import ClassWeighting, SegmentationConfig
from normlab.config.model import SegmentationModelConfig
from normlab.data.dataset import IGNORED, Dataset, MaskedImages
from normlab.metrics import confusion_matrix, iou_metrics

Output = Any
"""What a model returns: logits, or a dict of them by head."""


class Task(Protocol):
    """Losses and metrics as sums over samples. A step divides by the weight of all its samples, on all ranks."""

    def weight(self, labels: torch.Tensor) -> torch.Tensor | None:
        """The divisor of a batch's summed loss. None: the number of its samples."""

    def loss_sum(self, output: Output, labels: torch.Tensor) -> torch.Tensor:
        """The training loss, summed over the batch, differentiable."""

    def zero_sums(self, device: torch.device) -> torch.Tensor:
        """float64: the sums over no samples."""

    def add_training(
        self, sums: torch.Tensor, loss_sum: torch.Tensor, output: Output, labels: torch.Tensor
    ) -> None:
        """Add a training batch to `sums`, in place."""

    def add_evaluation(self, sums: torch.Tensor, output: Output, labels: torch.Tensor) -> None:
        """Add a batch to `sums`, in place, its loss without label smoothing, class weights and auxiliary heads."""

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """The loss and the task's metrics, from sums over all ranks."""

    def metric_names(self) -> list[str]:
        """All names that `metrics` may have."""


def build_task(cfg: Config, dataset: Dataset, device: torch.device) -> Task:
    """The task of the configured data. Raises: ConfigError for class weights that do not fit its classes."""
    if not isinstance(cfg.data, SegmentationConfig):
        return Classification(cfg.label_smoothing)
    assert isinstance(cfg.model, SegmentationModelConfig)
    weights_K = class_weights(cfg.data, dataset)
    weights_K = None if weights_K is None else weights_K.to(device)
    return Segmentation(dataset.classes, weights_K, cfg.label_smoothing, cfg.model.aux_weight)


def class_weights(cfg: SegmentationConfig, dataset: Dataset) -> torch.Tensor | None:
    """(K,) float32: the weight of a pixel of each class in the training loss. None: all are equal.

    median_frequency: w_c = median(f) / f_c, f_c = pixels of class c / pixels of the training pictures with c.
    A class without any pixel has weight 0, and is not part of the median.
    Raises: ConfigError if the given weights are not one per class, or are all 0.
    Source: Eigen & Fergus 2015, arXiv:1411.4734, section 6.3.2.
    """
    if cfg.class_weights is not None:
        if len(cfg.class_weights) != len(dataset.classes) or not any(cfg.class_weights):
            given = ",".join(f"{weight:g}" for weight in cfg.class_weights)
            raise ConfigError(
                f"data.class_weights=[{given}] must be {len(dataset.classes)} numbers, one per class "
                f"({', '.join(dataset.classes)}), not all of them 0."
            )
        return torch.tensor(cfg.class_weights, dtype=torch.float32)
    if cfg.class_weighting is ClassWeighting.none:
        return None
    assert isinstance(dataset.train, MaskedImages)
    of_class_K, of_pictures_K = dataset.train.pixel_counts(len(dataset.classes))
    frequency_K = of_class_K / of_pictures_K.clamp(min=1)
    there_K = of_class_K > 0
    median = frequency_K[there_K].double().quantile(0.5)
    return torch.where(there_K, median / frequency_K, 0.0).float()


class Classification:
    """A class for each image: cross-entropy and accuracy. Sums: loss, correct, count."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def weight(self, labels: torch.Tensor) -> torch.Tensor | None:
        return None

    def loss_sum(self, output: Output, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, labels, reduction="sum", label_smoothing=self.label_smoothing)

    def zero_sums(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(3, dtype=torch.float64, device=device)

    def add_training(
        self, sums: torch.Tensor, loss_sum: torch.Tensor, output: Output, labels: torch.Tensor
    ) -> None:
        sums[0] += loss_sum
        sums[1] += (output.argmax(dim=1) == labels).sum()
        sums[2] += len(labels)

    def add_evaluation(self, sums: torch.Tensor, output: Output, labels: torch.Tensor) -> None:
        losses_B = F.cross_entropy(output.double(), labels, reduction="none")
        self.add_training(sums, losses_B.sum(), output, labels)

    def metric_names(self) -> list[str]:
        return ["loss", "accuracy"]

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """{"loss", "accuracy"}, both per sample; accuracy in [0, 1]."""
        loss, correct, count = sums.tolist()
        return {"loss": loss / count, "accuracy": correct / count}


class Segmentation:
    """A class for each pixel: cross-entropy, and IoU from one confusion matrix. Ignored pixels count nowhere.

        loss = sum_p w(y_p) (ce(out_p, y_p) + aux_weight ce(aux_p, y_p)) / sum_p w(y_p)

    Sums: loss, weight, and the (K, K) confusion matrix, row after row.
    """

    def __init__(
        self,
        classes: list[str],
        weights_K: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        aux_weight: float = 0.0,
    ) -> None:
        self.classes, self.weights_K = classes, weights_K
        self.label_smoothing, self.aux_weight = label_smoothing, aux_weight

    def weight(self, labels: torch.Tensor) -> torch.Tensor | None:
        valid = labels < len(self.classes)
        if self.weights_K is None:
            return valid.sum().double()
        return torch.where(valid, self.weights_K.double()[labels.where(valid, 0)], 0.0).sum()

    def loss_sum(self, output: Output, labels: torch.Tensor) -> torch.Tensor:
        loss = self._cross_entropy(output["out"], labels)
        if self.aux_weight:
            loss = loss + self.aux_weight * self._cross_entropy(output["aux"], labels)
        return loss

    def _cross_entropy(self, logits_BKHW: torch.Tensor, labels_BHW: torch.Tensor) -> torch.Tensor:
        weights_K = None if self.weights_K is None else self.weights_K.to(logits_BKHW.dtype)
        return F.cross_entropy(
            logits_BKHW,
            labels_BHW,
            weights_K,
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def zero_sums(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(2 + len(self.classes) ** 2, dtype=torch.float64, device=device)

    def add_training(
        self, sums: torch.Tensor, loss_sum: torch.Tensor, output: Output, labels: torch.Tensor
    ) -> None:
        weight = self.weight(labels)
        assert weight is not None
        self._add(sums, loss_sum, weight, output, labels)

    def add_evaluation(self, sums: torch.Tensor, output: Output, labels: torch.Tensor) -> None:
        # Only the sum is float64: losses and logits of every pixel would take too much memory.
        logits_BKHW = output["out"].to(torch.promote_types(output["out"].dtype, torch.float32))
        losses_BHW = F.cross_entropy(logits_BKHW, labels, ignore_index=IGNORED, reduction="none")
        self._add(sums, losses_BHW.double().sum(), (labels != IGNORED).sum(), output, labels)

    def _add(
        self,
        sums: torch.Tensor,
        loss_sum: torch.Tensor,
        weight: torch.Tensor,
        output: Output,
        labels: torch.Tensor,
    ) -> None:
        sums[0] += loss_sum
        sums[1] += weight
        sums[2:] += confusion_matrix(output["out"].argmax(1), labels, len(self.classes)).flatten()

    def metric_names(self) -> list[str]:
        return ["loss", "miou", "pixel_accuracy", "iou_classes", *(f"iou/{name}" for name in self.classes)]

    def confusion(self, sums: torch.Tensor) -> torch.Tensor:
        """(K, K): rows are true classes, columns predicted ones."""
        return sums[2:].view(len(self.classes), len(self.classes))

    def metrics(self, sums: torch.Tensor) -> dict[str, float]:
        """{"loss", "miou", "pixel_accuracy", "iou_classes", "iou/<class>"...}; see `iou_metrics`.

        A set in which every pixel is ignored has loss 0 and no IoU.
        """
        loss, weight = sums[:2].tolist()
        return {"loss": loss / weight if weight else 0.0, **iou_metrics(self.confusion(sums).cpu(), self.classes)}
