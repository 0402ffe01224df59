"""What every source gives, and how it is cut into train, val and test."""

from dataclasses import dataclass

import numpy as np
import torch

from normlab.config import ConfigError, DataConfig
from normlab.data.order import fixed_permutation


@dataclass(frozen=True)
class Split:
    """Labelled images, or some of them by index: a subset of a memory-mapped array copies nothing."""

    images_BHWC: torch.Tensor
    """uint8, RGB; may be memory-mapped and read-only: never write to it."""

    labels_B: torch.Tensor
    """int64, one for each of images_BHWC."""

    indices: torch.Tensor | None = None
    """int64: the samples of this split among images_BHWC. None: all, in their order."""

    def __len__(self) -> int:
        return len(self.labels_B if self.indices is None else self.indices)

    def take(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the samples at `index_B` of this split: images (B, H, W, 3) uint8, labels (B,) int64."""
        rows_B = index_B if self.indices is None else self.indices.index_select(0, index_B)
        # index_select copies whole rows: 40 times as fast as images_BHWC[rows_B].
        return self.images_BHWC.index_select(0, rows_B), self.labels_B.index_select(0, rows_B)


@dataclass(frozen=True)
class Source:
    """Data as it was read, before `cut`."""

    train: Split
    test: Split
    classes: list[str]
    fingerprint: str
    mean_C: torch.Tensor
    std_C: torch.Tensor


@dataclass(frozen=True)
class Dataset:
    """Data as a run uses it."""

    train: Split

    val: Split
    """What the curves call val: held out of train, or the test folder where val_fraction is 0."""

    test: Split | None
    """Evaluated once, at the end. None where val is the test folder."""

    eval_split: str
    """What val is: 'val' (held out of train) or 'test' (the test folder)."""

    classes: list[str]
    """A class's label is its position here."""

    fingerprint: str
    """Of what the source holds, wherever it lies: part of a run's identity."""

    mean_C: torch.Tensor
    """float64, per channel, of the source's training pixels scaled to [0, 1]."""

    std_C: torch.Tensor
    """float64, their population standard deviation."""


def cut(source: Source, cfg: DataConfig) -> Dataset:
    """The source with cfg.val_fraction held out and cfg.train_samples kept.

    Both follow one fixed permutation: val is its beginning, train what comes next. So neither depends on
    the run's seed, val does not depend on train_samples, and a smaller subset lies within a larger one.
    Raises: ConfigError if train or val would be empty, or train_samples is more than there are.
    """
    total = len(source.train)
    num_val = round(total * cfg.val_fraction)
    left = total - num_val
    if cfg.val_fraction > 0 and num_val == 0:
        raise ConfigError(
            f"data.val_fraction={cfg.val_fraction} of {total} training samples holds out none; "
            f"choose at least {1 / total:.2g}, or 0."
        )
    if left == 0:
        raise ConfigError(
            f"data.val_fraction={cfg.val_fraction} of {total} training samples leaves none to train on; lower it."
        )
    if cfg.train_samples is not None and cfg.train_samples > left:
        held_out = f" after data.val_fraction={cfg.val_fraction} held out {num_val} of {total}"
        raise ConfigError(
            f"data.train_samples={cfg.train_samples} is more than the {left} training samples"
            f"{held_out if num_val else ''}; choose at most {left}, or null for all."
        )
    order = fixed_permutation(total)
    num_train = left if cfg.train_samples is None else cfg.train_samples
    whole = source.train
    train = whole
    if num_train < total:
        train = Split(whole.images_BHWC, whole.labels_B, order[num_val : num_val + num_train])
    val = Split(whole.images_BHWC, whole.labels_B, order[:num_val]) if num_val else source.test
    return Dataset(
        train=train,
        val=val,
        test=source.test if num_val else None,
        eval_split="val" if num_val else "test",
        classes=source.classes,
        fingerprint=source.fingerprint,
        mean_C=source.mean_C,
        std_C=source.std_C,
    )


class PixelMoments:
    """Per-channel mean and standard deviation of uint8 images, exact over any number of blocks."""

    def __init__(self) -> None:
        self._counts_CV = np.zeros((3, 256), dtype=np.int64)

    def add(self, images_BHWC: np.ndarray) -> None:
        for channel in range(3):
            self._counts_CV[channel] += np.bincount(images_BHWC[..., channel].ravel(), minlength=256)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """mean_C and std_C of pixels scaled to [0, 1]; a constant channel's deviation is set to 1/255."""
        share_CV = self._counts_CV / self._counts_CV.sum(1, keepdims=True)
        values_V = np.arange(256) / 255
        mean_C = share_CV @ values_V
        variance_C = (share_CV * (values_V - mean_C[:, None]) ** 2).sum(1)
        return torch.from_numpy(mean_C), torch.from_numpy(np.sqrt(variance_C).clip(1 / 255))
