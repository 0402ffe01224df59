"""What every source provides, and how it is divided into train, val and test."""

from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch

from normlab.config import ConfigError
from normlab.config.data import DataConfig
from normlab.data.order import fixed_permutation


class Split(Protocol):
    """Labelled pictures, or a selection of them by index."""

    @property
    def device(self) -> torch.device:
        """Where its pictures are, and where the indices given to `take` must be."""

    def __len__(self) -> int: ...

    def subset(self, index_B: torch.Tensor) -> Self:
        """The samples at `index_B` of this split, as a split that shares its memory."""

    def eval_groups(self, index_B: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        """`index_B` cut into batches of at most `batch_size` samples that `take` can stack."""

    def take(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the samples at `index_B` at full size: images (B, H, W, 3) uint8, and their labels."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size with one class each. A subset of a memory-mapped array copies nothing."""

    images_BHWC: torch.Tensor
    """uint8, RGB. Never write to it: it may be memory-mapped and read-only."""

    labels_B: torch.Tensor
    """int64, one for each of images_BHWC."""

    indices: torch.Tensor | None = None
    """int64: the samples of images_BHWC that are in this split. None: all, in order."""

    @property
    def device(self) -> torch.device:
        return self.images_BHWC.device

    def __len__(self) -> int:
        return len(self.labels_B if self.indices is None else self.indices)

    def subset(self, index_B: torch.Tensor) -> Self:
        return replace(self, indices=_rows(self.indices, index_B))

    def eval_groups(self, index_B: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        return list(index_B.split(batch_size))

    def take(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the samples at `index_B` of this split: images (B, H, W, 3) uint8, labels (B,) int64."""
        rows_B = _rows(self.indices, index_B)
        # index_select copies whole rows: 40 times as fast as images_BHWC[rows_B].
        return self.images_BHWC.index_select(0, rows_B), self.labels_B.index_select(0, rows_B)


@dataclass(frozen=True)
class MaskedImages:
    """Pictures of any size with a class for each pixel, one after the other in two flat arrays."""

    pixels: torch.Tensor
    """uint8: every picture's rows of RGB. Never write to it: it may be memory-mapped and read-only."""

    labels: torch.Tensor
    """uint8: every mask's rows, with the class of each pixel or IGNORED."""

    places_B3: torch.Tensor
    """int64 (first pixel, height, width) of each picture."""

    indices: torch.Tensor | None = None
    """int64: the samples of places_B3 that are in this split. None: all, in order."""

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def __len__(self) -> int:
        return len(self.places_B3 if self.indices is None else self.indices)

    def subset(self, index_B: torch.Tensor) -> Self:
        return replace(self, indices=_rows(self.indices, index_B))

    def sample(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of one picture (H, W, 3) and its mask (H, W), both uint8: never write to them."""
        row = index if self.indices is None else int(self.indices[index])
        first, height, width = self.places_B3[row].tolist()
        end = first + height * width
        return self.pixels[3 * first : 3 * end].view(height, width, 3), self.labels[first:end].view(height, width)

    def eval_groups(self, index_B: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        sizes_B2 = self.places_B3[_rows(self.indices, index_B), 1:]
        groups = []
        for size_2 in sizes_B2.unique(dim=0):  # sorted, so the same at any world size
            groups += index_B[(sizes_B2 == size_2).all(1)].split(batch_size)
        return groups

    def take(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of samples that have the same size: images (B, H, W, 3) uint8, labels (B, H, W) int64."""
        images, masks = zip(*map(self.sample, index_B.tolist()), strict=True)
        return torch.stack(images), torch.stack(masks).long()

    def all_ignored(self) -> bool:
        """Whether every pixel is ignored. Stops at the first mask with one that is not, usually the very first."""
        return all(bool((self.sample(index)[1] == IGNORED).all()) for index in range(len(self)))

    def only_class(self) -> int | None:
        """The class of all pixels that count, or None if they have several. Stops at the second class."""
        seen = {IGNORED}
        for index in range(len(self)):
            seen.update(self.sample(index)[1].unique().tolist())
            if len(seen) > 2:
                return None
        return min(seen)

    def pixel_counts(self, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(K,) int64 each: the pixels of each class, and all valid pixels of the pictures that show it."""
        of_class_K, of_pictures_K = torch.zeros(2, num_classes, dtype=torch.int64)
        for index in range(len(self)):
            counts = torch.bincount(self.sample(index)[1].flatten().int(), minlength=256)[:num_classes]
            of_class_K += counts
            of_pictures_K += (counts > 0) * counts.sum()
        return of_class_K, of_pictures_K


IGNORED = 255
"""The label of a pixel that counts neither in the loss nor in metrics, whatever its value in a file."""


def _rows(indices: torch.Tensor | None, index_B: torch.Tensor) -> torch.Tensor:
    return index_B if indices is None else indices.index_select(0, index_B)


@dataclass(frozen=True)
class Source:
    """Data as read, before `split_source`."""

    train: Split
    test: Split
    classes: list[str]
    fingerprint: str
    mean_C: torch.Tensor
    std_C: torch.Tensor
    val: Split | None = None
    """Only for data that have a val folder beside the test folder."""
    notes: tuple[str, ...] = ()
    """Lines that the user should see before a run."""
    palette_K3: torch.Tensor | None = None
    """uint8: for segmentation, the colour of each class in pictures."""


@dataclass(frozen=True)
class Dataset:
    """Data as a run uses it."""

    train: Split

    val: Split
    """What the curves call val: held out of train, or the test folder if val_fraction is 0."""

    test: Split | None
    """Evaluated once, at the end. None if val is the test folder."""

    eval_split: str
    """What val is: 'val' (held out of train) or 'test' (the test folder)."""

    classes: list[str]
    """Their names; a label is a position here."""

    fingerprint: str
    """A hash of the source's content, not of its path; part of a run's identity."""

    mean_C: torch.Tensor
    """float64, per channel, of the source's training pixels scaled to [0, 1]; or data.input_mean."""

    std_C: torch.Tensor
    """float64, their population standard deviation; or data.input_std."""

    palette_K3: torch.Tensor | None = None
    """uint8: for segmentation, the colour of each class in pictures."""

    notes: tuple[str, ...] = ()
    """Lines that the user should see before a run."""


GPU_SHARE = 1 / 16
"""The share of a GPU's memory that labelled images may take to be kept there."""


def near(dataset: Dataset, device: torch.device) -> Dataset:
    """The data as a run on `device` keeps them: labelled images that fit easily move into a GPU's memory.

    Batches are then assembled, augmented and normalised there; only the order of an epoch comes from the host.
    """
    if device.type != "cuda":
        return dataset
    room = GPU_SHARE * torch.cuda.get_device_properties(device).total_memory
    return moved(dataset, device) if sum(one.nbytes for one in _arrays(dataset).values()) <= room else dataset


def moved(dataset: Dataset, device: torch.device) -> Dataset:
    """`dataset` with its labelled images on `device`; splits that share an array share it there."""
    there = {key: images_BHWC.to(device) for key, images_BHWC in _arrays(dataset).items()}

    def move(split: Split) -> Split:
        if not isinstance(split, LabelledImages):
            return split
        indices = None if split.indices is None else split.indices.to(device)
        return LabelledImages(there[id(split.images_BHWC)], split.labels_B.to(device), indices)

    test = None if dataset.test is None else move(dataset.test)
    return replace(dataset, train=move(dataset.train), val=move(dataset.val), test=test)


def _arrays(dataset: Dataset) -> dict[int, torch.Tensor]:
    splits = (dataset.train, dataset.val, dataset.test)
    return {id(one.images_BHWC): one.images_BHWC for one in splits if isinstance(one, LabelledImages)}


def split_source(source: Source, cfg: DataConfig) -> Dataset:
    """The source with cfg.val_fraction held out and cfg.train_samples kept.

    Both follow one fixed permutation: val is its beginning, train comes next. So neither depends on the run's
    seed, val does not depend on train_samples, and a smaller subset is part of a larger one.
    Raises: ConfigError if train or val would be empty, if train_samples is more than there are, if every pixel of
    a split is ignored, or if the training masks hold only one class.
    """
    total = len(source.train)
    num_val = round(total * cfg.val_fraction)
    left = total - num_val
    if cfg.val_fraction > 0 and num_val == 0:
        raise ConfigError(
            f"data.val_fraction={cfg.val_fraction} of {total} training samples holds none out; "
            f"choose at least {1 / total:.2g}, or 0."
        )
    if left == 0:
        raise ConfigError(
            f"data.val_fraction={cfg.val_fraction} of {total} training samples leaves none to train on; lower it."
        )
    if num_val and source.val is not None:
        raise ConfigError(
            f"data.val_fraction={cfg.val_fraction}: the data have a val folder of their own; set it to 0."
        )
    if cfg.train_samples is not None and cfg.train_samples > left:
        held_out = f" after data.val_fraction={cfg.val_fraction} held out {num_val} of {total}"
        raise ConfigError(
            f"data.train_samples={cfg.train_samples} is more than the {left} training samples"
            f"{held_out if num_val else ''}; choose at most {left}, or null for all."
        )
    order = fixed_permutation(total)
    num_train = left if cfg.train_samples is None else cfg.train_samples
    train = source.train
    if num_train < total:
        train = train.subset(order[num_val : num_val + num_train])
    val = source.train.subset(order[:num_val]) if num_val else source.val
    for name, split in {"train": train, "val": val, "test": source.test}.items():
        if isinstance(split, MaskedImages) and split.all_ignored():
            raise ConfigError(
                f"data={cfg.name}: every pixel of the {len(split)} masks of {name} is ignored, so nothing can be "
                "trained or measured; check the masks, and data.ignore_index or data.colour_map."
            )
    if isinstance(train, MaskedImages) and (only := train.only_class()) is not None:
        raise ConfigError(
            f"data={cfg.name}: the {len(train)} masks of train hold the class {source.classes[only]} alone, "
            "besides what is ignored, so there is nothing to learn; check the masks (where 0 and 255 are two "
            "classes, write 1 for 255), and data.ignore_index."
        )
    return Dataset(
        train=train,
        val=source.test if val is None else val,
        test=None if val is None else source.test,
        eval_split="test" if val is None else "val",
        classes=source.classes,
        fingerprint=source.fingerprint,
        mean_C=source.mean_C if cfg.input_mean is None else torch.tensor(cfg.input_mean, dtype=torch.float64),
        std_C=source.std_C if cfg.input_std is None else torch.tensor(cfg.input_std, dtype=torch.float64),
        palette_K3=source.palette_K3,
        notes=source.notes,
    )


class PixelMoments:
    """Per-channel mean and standard deviation of uint8 images, exact over any number of blocks."""

    ROWS = 2**14
    """Images counted at a time, since bincount takes 8 bytes per pixel."""

    def __init__(self) -> None:
        self._counts_CV = np.zeros((3, 256), dtype=np.int64)

    def add(self, images_BHWC: np.ndarray) -> None:
        for start in range(0, len(images_BHWC), self.ROWS):
            rows = images_BHWC[start : start + self.ROWS]
            for channel in range(3):
                self._counts_CV[channel] += np.bincount(rows[..., channel].ravel(), minlength=256)

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """mean_C and std_C of pixels scaled to [0, 1]; a constant channel's deviation is set to 1/255."""
        share_CV = self._counts_CV / self._counts_CV.sum(1, keepdims=True)
        values_V = np.arange(256) / 255
        mean_C = share_CV @ values_V
        variance_C = (share_CV * (values_V - mean_C[:, None]) ** 2).sum(1)
        return torch.from_numpy(mean_C), torch.from_numpy(np.sqrt(variance_C).clip(1 / 255))
