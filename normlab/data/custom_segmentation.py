"""A user's own pictures with masks, named as module:name, read once into the same cache as folders of masks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.ImageFile import ImageFile

from normlab.config import ConfigError
from normlab.config.data import CustomSegmentationDataConfig
from normlab.data.custom import Given, call, picture_of, place
from normlab.data.dataset import IGNORED, Source
from normlab.data.decode import grey_values
from normlab.data.listing import Tell, cached
from normlab.data.masks import (
    CACHE_VERSION,
    OF_INDICES,
    Labels,
    Sample,
    index_labels,
    open_masks,
    palette,
    resized,
    scaled_size,
    write_masks,
)
from normlab.targets import named, said_in


def read(cfg: CustomSegmentationDataConfig, tell: Tell) -> Source:
    """What `data.target` returns for `data.args`, from a cache that is kept as `custom.read` keeps its own.

    Raises: ConfigError that names the target.
    """
    given = call(cfg)
    if given.classes is None:
        raise ConfigError(
            f"data.target={cfg.target} gave no classes; add `classes` to the dict, their names or their number."
        )
    if not 2 <= len(given.classes) <= IGNORED:
        raise ConfigError(
            f"data.target={cfg.target} gave {len(given.classes)} classes; 2 to {IGNORED} can be learned."
        )
    if repeated := sorted({name for name in given.classes if given.classes.count(name) > 1}):
        raise ConfigError(
            f"data.target={cfg.target} gave several classes the name {repeated[0]}; let each have its own, under "
            "which its IoU is kept."
        )
    labels = index_labels(given.classes, cfg.ignore_index, f"data.target={cfg.target}")
    build = partial(_build, cfg=cfg, given=given, labels=labels, tell=tell)
    colours = palette(len(given.classes))
    open_cache = partial(open_masks, counts=given.counts, classes=given.classes, palette_K3=colours)
    where = place(cfg, CACHE_VERSION, given.counts, given.classes, cfg.ignore_index)
    return cached(cfg.cache_dir, *where, open_cache, build)


def _build(folder: Path, *, cfg: CustomSegmentationDataConfig, given: Given, labels: Labels, tell: Tell) -> None:
    tell(f"reading {cfg.target} into {folder.parent}")
    total = sum(given.counts.values())
    samples = {split: _samples(cfg, given, labels, split) for split in given.splits}
    write_masks(folder, samples, labels.classes, lambda done: tell(f"reading {cfg.target}", done, total))


def _samples(cfg: CustomSegmentationDataConfig, given: Given, labels: Labels, split: str) -> Iterator[Sample]:
    for index in range(given.counts[split]):
        yield _sample(cfg, given, labels, split, index)


def _sample(cfg: CustomSegmentationDataConfig, given: Given, labels: Labels, split: str, index: int) -> Sample:
    """A picture and its mask at data.image_size. Raises: ConfigError that names them."""
    where, pixels, mask = picture_of(cfg, given, split, index)
    try:
        values_HW = _values(mask)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes a file only now
        raise ConfigError(f"{where} has a mask that cannot be read: {said_in(error)}.") from error
    if values_HW is None:
        raise ConfigError(
            f"{where} has for its mask {named(mask)}; let it be integers (H, W), in an array or a tensor, or a "
            "picture of PIL that holds the index of each pixel's class."
        )
    height, width = values_HW.shape
    if pixels.size != (width, height):
        raise ConfigError(
            f"{where}: the picture is {pixels.width}x{pixels.height} pixels, but its mask is {width}x{height}; "
            "they must be of one size."
        )
    return resized(pixels, labels.of(values_HW, where), scaled_size(pixels.size, cfg.image_size, where))


def _values(mask: Any) -> np.ndarray | None:
    """The integers (H, W) of a mask, or None if it has none."""
    if isinstance(mask, Image.Image) and mask.mode not in OF_INDICES:
        return None
    if isinstance(mask, ImageFile) and mask.tile:  # not decoded yet: the file's own values can still be read
        return grey_values(mask)
    if isinstance(mask, torch.Tensor):
        mask = None if mask.is_floating_point() else mask.cpu().numpy()  # NumPy has no bfloat16
    values = np.asarray(mask) if isinstance(mask, Image.Image | np.ndarray) else np.empty(0)
    return values.astype(np.int64) if values.ndim == 2 and values.dtype.kind in "biu" else None
