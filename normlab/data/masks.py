"""Pictures of any size with a class for each pixel: what a mask's values mean, and the cache of both."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from normlab.config import ConfigError
from normlab.data.cache import ArrayWriter, map_array
from normlab.data.dataset import IGNORED, MaskedImages, PixelMoments, Source
from normlab.data.images import INT64, UINT8, read_meta, write_meta

CACHE_VERSION = 2
"""Increment it when the pixels or the files of the cache change."""

OF_INDICES = ("1", "L", "P", "I", "I;16", "I;16B")
"""Pillow's modes of pictures that can hold an index for each pixel."""

LARGEST = 2 * 2**30 // 12
"""The most pixels of a resized picture: the limit at which Pillow refuses to read one."""

Sample = tuple[np.ndarray, np.ndarray]
"""A picture (H, W, 3) and its mask (H, W), uint8."""


@dataclass(frozen=True)
class Labels:
    """What a mask's values mean."""

    classes: list[str]

    of_value: dict[int, int]
    """Value in a mask -> position in `classes`, or IGNORED. The value of a colour is 65536 r + 256 g + b."""

    meaning: str
    """Which values are allowed; part of the error about any other."""

    in_colours: bool = False

    def of(self, values_HW: np.ndarray, where: str) -> np.ndarray:
        """The class of each pixel, or IGNORED: (H, W) uint8.

        Raises: ConfigError that begins with `where` if a value has no meaning.
        """
        found, places = np.unique(values_HW, return_inverse=True)
        unknown = [value for value in found.tolist() if value not in self.of_value]
        if unknown:
            what = "the colour {} {} {}".format(*rgb(unknown[0])) if self.in_colours else f"{unknown[0]}"
            raise ConfigError(f"{where} holds {what}, which is not a class: {self.meaning}.")
        labels = np.array([self.of_value[value] for value in found.tolist()], dtype=UINT8)
        return labels[places].reshape(values_HW.shape)


def index_labels(classes: list[str], ignore_index: int, given_by: str) -> Labels:
    """Masks that hold the index of each pixel's class, or `ignore_index`. Raises: ConfigError if they overlap."""
    last = len(classes) - 1
    if ignore_index <= last:
        raise ConfigError(
            f"data.ignore_index={ignore_index} is one of the classes 0 to {last} of {given_by}; "
            "it must be above them."
        )
    of_value = {index: index for index in range(len(classes))} | {ignore_index: IGNORED}
    meaning = f"{given_by} allows 0 to {last}, and data.ignore_index={ignore_index} what is ignored"
    return Labels(classes, of_value, meaning)


def rgb(value: int) -> tuple[int, int, int]:
    """Red, green and blue of a colour's value."""
    return value >> 16, value >> 8 & 255, value & 255


def scaled_size(width_height: tuple[int, int], size: int | None, where: str) -> tuple[int, int]:
    """Width and height once the shorter side is resized to `size`.

    Raises: ConfigError that begins with `where` if there are too many pixels.
    """
    scale = 1.0 if size is None else size / min(width_height)
    width, height = (max(1, round(side * scale)) for side in width_height)
    if width * height > LARGEST:
        raise ConfigError(
            f"{where} would be {width}x{height} pixels at data.image_size={size}; lower it, or cut the picture."
        )
    return width, height


def resized(pixels: Image.Image, labels_HW: np.ndarray, width_height: tuple[int, int]) -> Sample:
    """An RGB picture (bilinear) and the class of each pixel (nearest) at another size."""
    if pixels.size != width_height:
        pixels = pixels.resize(width_height, Image.Resampling.BILINEAR)
        labels_HW = np.asarray(Image.fromarray(labels_HW).resize(width_height, Image.Resampling.NEAREST))
    return np.asarray(pixels), labels_HW


def write_masks(
    folder: Path, splits: Mapping[str, Iterable[Sample]], classes: list[str], told: Callable[[int], None]
) -> None:
    """Write every sample into `folder`, with the content's fingerprint and the training pixels' moments.

    told(n) is called after the nth sample overall.
    """
    content = hashlib.blake2b(json.dumps(classes).encode(), digest_size=16)
    moments = PixelMoments()
    done = 0
    for split, samples in splits.items():
        sizes: list[tuple[int, ...]] = []
        with (
            ArrayWriter(folder / f"{split}_pixels.npy", (), UINT8) as pixels,
            ArrayWriter(folder / f"{split}_labels.npy", (), UINT8) as labels,
        ):
            for image_HWC, mask_HW in samples:
                pixels.write(image_HWC.reshape(-1))
                labels.write(mask_HW.reshape(-1))
                sizes.append(mask_HW.shape)
                if split == "train":
                    moments.add(image_HWC)
                done += 1
                told(done)
        places_B3 = _places(sizes)
        with ArrayWriter(folder / f"{split}_places.npy", (3,), INT64) as places:
            places.write(places_B3)
        content.update(json.dumps([split, len(sizes)]).encode() + places_B3.tobytes())
        written = _map_split(folder, split, len(sizes))
        for index in range(len(written)):
            for one in written.sample(index):
                content.update(one.numpy().data)
    write_meta(folder, CACHE_VERSION, classes, moments, content.hexdigest())


def _places(sizes: list[tuple[int, ...]]) -> np.ndarray:
    """(n, 3) int64: first pixel, height and width of pictures (H, W) that lie one after the other."""
    heights, widths = np.array(sizes, dtype=INT64).reshape(-1, 2).T
    ends = np.cumsum(widths * heights)
    return np.stack([ends - widths * heights, heights, widths], axis=1)


def open_masks(folder: Path, *, counts: dict[str, int], classes: list[str], palette_K3: torch.Tensor) -> Source:
    """What `write_masks` wrote, memory-mapped: `counts` samples of each split. Raises: DamagedError."""
    meta = read_meta(folder, CACHE_VERSION, classes)
    splits = {split: _map_split(folder, split, count) for split, count in counts.items()}
    return Source(
        train=splits["train"],
        test=splits["test"],
        classes=meta.classes,
        fingerprint=meta.fingerprint,
        mean_C=meta.mean_C,
        std_C=meta.std_C,
        val=splits.get("val"),
        palette_K3=palette_K3,
    )


def _map_split(folder: Path, split: str, count: int) -> MaskedImages:
    places_B3 = map_array(folder / f"{split}_places.npy", (count, 3), INT64).clone()
    pixels = int((places_B3[:, 1] * places_B3[:, 2]).sum())
    return MaskedImages(
        map_array(folder / f"{split}_pixels.npy", (3 * pixels,), UINT8),
        map_array(folder / f"{split}_labels.npy", (pixels,), UINT8),
        places_B3,
    )


def palette(count: int, *, background: bool = False) -> torch.Tensor:
    """(count, 3) uint8: colours that differ from their neighbours, for classes without colours of their own.

    `background`: the first class is the background, in dark grey.
    """
    hue_K = torch.arange(count) * 0.618034 % 1
    value_K = torch.tensor([0.95, 0.7, 0.45])[torch.arange(count) % 3]
    ramp_K3 = ((hue_K[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6 - 3).abs() - 1
    colours_K3 = (255 * value_K[:, None] * (0.25 + 0.75 * ramp_K3.clamp(0, 1))).to(torch.uint8)
    if background:
        colours_K3[0] = 50
    return colours_K3
