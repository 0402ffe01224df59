"""Pictures and masks in files, decoded once into the cache of pictures of any size."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from normlab.config import ConfigError
from normlab.config.data import MaskFilesConfig
from normlab.data.cache import digest
from normlab.data.dataset import Source
from normlab.data.decode import as_rgb, grey_values, in_threads, opened
from normlab.data.listing import Tell, announce, cached, file_status, listed
from normlab.data.masks import (
    CACHE_VERSION,
    OF_INDICES,
    Labels,
    Sample,
    open_masks,
    resized,
    scaled_size,
    write_masks,
)

Pair = tuple[str, str]
"""Paths of a picture and of its mask."""


def read_pairs(
    cfg: MaskFilesConfig,
    root: Path,
    find: Callable[[], dict[str, list[Pair]]],
    labels: Labels,
    palette_K3: torch.Tensor,
    tell: Tell,
) -> Source:
    """The pictures and masks of train, test and, if there is one, val, from the cache.

    `find` finds their files. Raises: ConfigError naming the file that cannot be used.
    """

    def look() -> dict[str, Any]:
        splits = find()
        files = [(path, file_status(path)) for pairs in splits.values() for pair in pairs for path in pair]
        stamps = [(str(Path(path).relative_to(root)), found.st_size, found.st_mtime_ns) for path, found in files]
        return {"splits": splits, "stamp": digest(*stamps)}

    found = listed(cfg, root, look)
    splits = {split: [(image, mask) for image, mask in pairs] for split, pairs in found["splits"].items()}
    counts = {split: len(pairs) for split, pairs in splits.items()}
    key = digest(CACHE_VERSION, sorted(labels.of_value.items()), labels.classes, counts, found["stamp"])
    read = partial(open_masks, counts=counts, classes=labels.classes, palette_K3=palette_K3)
    build = partial(_build, splits=splits, labels=labels, size=cfg.image_size, tell=tell, name=root.name)
    return cached(cfg.cache_dir, root, cfg.image_size, key, read, build)


def _build(
    folder: Path, *, splits: dict[str, list[Pair]], labels: Labels, size: int | None, tell: Tell, name: str
) -> None:
    """Decode every pair into `folder`."""
    pairs = [pair for of_split in splits.values() for pair in of_split]
    sizes = [_size(pair, size) for pair in pairs]
    turned = [picture for picture, _ in pairs if _is_turned(picture)]
    if turned:
        print(
            f"warning: {len(turned)} pictures of {name} are to be shown turned or mirrored (EXIF), such as "
            f"{turned[0]}; pixels are used as they are stored, so see that the masks lie over those",
            file=sys.stderr,
        )
    total = len(pairs)
    announce(folder, f"{total} pictures and masks of {name}", 4 * sum(w * h for w, h in sizes), tell)
    decode = partial(_decode, labels=labels, size=size)
    decoded = {split: in_threads(decode, of_split) for split, of_split in splits.items()}
    write_masks(folder, decoded, labels.classes, lambda done: tell(f"decoding {name}", done, total))


def _size(pair: Pair, size: int | None) -> tuple[int, int]:
    """Width and height of a picture in the cache. Raises: ConfigError if the mask's differ."""
    with opened(pair[0]) as image, opened(pair[1]) as mask:
        if image.size != mask.size:
            sizes = ["x".join(map(str, one.size)) for one in (image, mask)]
            raise ConfigError(
                f"{pair[0]} is {sizes[0]} pixels, but its mask {pair[1]} is {sizes[1]}; they must be of one size."
            )
        return scaled_size(image.size, size, pair[0])


def _is_turned(path: str) -> bool:
    """Whether the file's EXIF asks for rotation or mirroring, as from phones. A mask may be drawn either way."""
    with opened(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _decode(pair: Pair, *, labels: Labels, size: int | None) -> Sample:
    width_height = _size(pair, size)
    with opened(pair[0]) as image:
        pixels = as_rgb(image)
    with opened(pair[1]) as mask:
        labels_HW = labels.of(_values(mask, pair[1], in_colours=labels.in_colours), pair[1])
    return resized(pixels, labels_HW, width_height)


def _values(mask: Image.Image, path: str, *, in_colours: bool) -> np.ndarray:
    """(H, W) int64: the values that stand for classes. Raises: ConfigError for colours without a map."""
    if in_colours:
        channels_HWC = np.asarray(as_rgb(mask)).astype(np.int64)
        return channels_HWC @ np.array([65536, 256, 1])
    if mask.mode not in OF_INDICES:
        raise ConfigError(
            f"{path} is a picture in {mask.mode}, not one of class indices; say which colour is which class "
            "by data.colour_map."
        )
    return grey_values(mask)
