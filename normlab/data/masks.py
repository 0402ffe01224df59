"""Pictures and masks in files: what a mask's values mean, and the cache that both are decoded into once."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from normlab.config import ConfigError
from normlab.config.data import MaskFilesConfig
from normlab.data.cache import ArrayWriter, DamagedError, digest, map_array, write_text
from normlab.data.dataset import MaskedImages, PixelMoments, Source
from normlab.data.decode import as_rgb, grey_values, in_threads, opened
from normlab.data.listing import Tell, announce, cached, file_status, listed

CACHE_VERSION = 2
"""To be raised when the pixels or the files of the cache change."""

LARGEST = 2 * 2**30 // 12
"""Most pixels of a resized picture: what Pillow allows when it reads one."""

UINT8, INT64 = np.dtype(np.uint8), np.dtype(np.int64)

Pair = tuple[str, str]
"""Paths of a picture and of its mask."""


@dataclass(frozen=True)
class Labels:
    """What a mask's values mean."""

    classes: list[str]

    of_value: dict[int, int]
    """Value in a mask -> position in `classes`, or IGNORED. The value of a colour is 65536 r + 256 g + b."""

    meaning: str
    """Which values are allowed; part of the error about any other."""

    in_colours: bool = False

    def read(self, mask: Image.Image, path: str) -> np.ndarray:
        """The class of each pixel, or IGNORED: (H, W) uint8.

        Raises: ConfigError naming the file, where a value has no meaning.
        """
        values_HW = self._values(mask, path)
        found, places = np.unique(values_HW, return_inverse=True)
        unknown = [value for value in found.tolist() if value not in self.of_value]
        if unknown:
            what = "the colour {} {} {}".format(*rgb(unknown[0])) if self.in_colours else f"{unknown[0]}"
            raise ConfigError(f"{path} holds {what}, which is not a class: {self.meaning}.")
        labels = np.array([self.of_value[value] for value in found.tolist()], dtype=UINT8)
        return labels[places].reshape(values_HW.shape)

    def _values(self, mask: Image.Image, path: str) -> np.ndarray:
        if self.in_colours:
            channels_HWC = np.asarray(as_rgb(mask)).astype(np.int64)
            return channels_HWC @ np.array([65536, 256, 1])
        if mask.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise ConfigError(
                f"{path} is a picture in {mask.mode}, not one of class indices; say which colour is which class "
                "by data.colour_map."
            )
        return grey_values(mask)


def rgb(value: int) -> tuple[int, int, int]:
    """Red, green and blue of a colour's value."""
    return value >> 16, value >> 8 & 255, value & 255


def read_pairs(
    cfg: MaskFilesConfig,
    root: Path,
    find: Callable[[], dict[str, list[Pair]]],
    labels: Labels,
    palette_K3: torch.Tensor,
    tell: Tell,
) -> Source:
    """The pictures and masks of train, of test, and of val where there is one, out of the cache.

    `find` finds their files. Raises: ConfigError naming the file that cannot be used.
    """

    def look() -> dict[str, Any]:
        splits = find()
        files = [(path, file_status(path)) for pairs in splits.values() for pair in pairs for path in pair]
        stamps = [(str(Path(path).relative_to(root)), found.st_size, found.st_mtime_ns) for path, found in files]
        return {"splits": splits, "stamp": digest(*stamps)}

    found = listed(cfg, root, look)
    splits = {split: [(image, mask) for image, mask in pairs] for split, pairs in found["splits"].items()}
    sizes = {split: len(pairs) for split, pairs in splits.items()}
    meaning = (sorted(labels.of_value.items()), labels.classes)
    key = digest(CACHE_VERSION, meaning, sizes, found["stamp"])
    build = partial(_build, splits=splits, labels=labels, size=cfg.image_size, tell=tell, name=root.name)
    read = partial(_open, sizes=sizes)
    opened, fingerprint, mean_C, std_C = cached(cfg.cache_dir, root, cfg.image_size, key, read, build)
    return Source(
        train=opened["train"],
        test=opened["test"],
        classes=labels.classes,
        fingerprint=fingerprint,
        mean_C=mean_C,
        std_C=std_C,
        val=opened.get("val"),
        palette_K3=palette_K3,
    )


def _build(
    folder: Path,
    *,
    splits: dict[str, list[Pair]],
    labels: Labels,
    size: int | None,
    tell: Tell,
    name: str,
) -> None:
    """Decode every pair into `folder`, with the content's fingerprint and the training pixels' moments."""
    total, done = sum(map(len, splits.values())), 0
    content = hashlib.blake2b(json.dumps(labels.classes).encode(), digest_size=16)
    moments = PixelMoments()
    places = {split: _places([_size(pair, size) for pair in pairs]) for split, pairs in splits.items()}
    turned = [pair[0] for pairs in splits.values() for pair in pairs if _is_turned(pair[0])]
    if turned:
        print(
            f"warning: {len(turned)} pictures of {name} are to be shown turned or mirrored (EXIF), such as "
            f"{turned[0]}; pixels are used as they are stored, so see that the masks lie over those",
            file=sys.stderr,
        )
    area = sum(int((places_B3[:, 1] * places_B3[:, 2]).sum()) for places_B3 in places.values())
    announce(folder, f"{total} pictures and masks of {name}", 4 * area, tell)
    for split, pairs in splits.items():
        places_B3 = places[split]
        pixels = int((places_B3[:, 1] * places_B3[:, 2]).sum())
        content.update(json.dumps([split, len(pairs)]).encode() + places_B3.tobytes())
        with ArrayWriter(folder / f"{split}_places.npy", places_B3.shape, INT64) as writer:
            writer.write(places_B3)
        with (
            ArrayWriter(folder / f"{split}_pixels.npy", (3 * pixels,), UINT8) as images,
            ArrayWriter(folder / f"{split}_labels.npy", (pixels,), UINT8) as masks,
        ):
            for image_HWC, mask_HW in in_threads(partial(_decode, labels=labels, size=size), pairs):
                images.write(image_HWC)
                masks.write(mask_HW)
                content.update(image_HWC.tobytes() + mask_HW.tobytes())
                if split == "train":
                    moments.add(image_HWC)
                done += 1
                tell(f"decoding {name}", done, total)
    mean_C, std_C = moments.result()
    meta = {
        "version": CACHE_VERSION,
        "mean": mean_C.tolist(),
        "std": std_C.tolist(),
        "fingerprint": content.hexdigest(),
    }
    write_text(folder / "meta.json", json.dumps(meta, indent=1))


def _size(pair: Pair, size: int | None) -> tuple[int, int]:
    """Width and height of a picture in the cache. Raises: ConfigError where its mask has others."""
    with opened(pair[0]) as image, opened(pair[1]) as mask:
        if image.size != mask.size:
            sizes = ["x".join(map(str, one.size)) for one in (image, mask)]
            raise ConfigError(
                f"{pair[0]} is {sizes[0]} pixels, but its mask {pair[1]} is {sizes[1]}; they must be of one size."
            )
        scale = 1.0 if size is None else size / min(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
    if width * height > LARGEST:
        raise ConfigError(
            f"{pair[0]} would be {width}x{height} pixels at data.image_size={size}; lower it, or cut the picture."
        )
    return width, height


def _is_turned(path: str) -> bool:
    """Whether the file asks to be shown rotated or mirrored, as a phone's do. A mask may be drawn either way."""
    with opened(path) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _places(sizes: list[tuple[int, int]]) -> np.ndarray:
    """(n, 3) int64: first pixel, height and width of pictures that lie one after the other."""
    widths, heights = np.array(sizes, dtype=INT64).reshape(-1, 2).T
    ends = np.cumsum(widths * heights)
    return np.stack([ends - widths * heights, heights, widths], axis=1)


def _decode(pair: Pair, *, labels: Labels, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3) and its mask (H, W), uint8."""
    width_height = _size(pair, size)
    with opened(pair[0]) as image:
        pixels = as_rgb(image)
    with opened(pair[1]) as mask:
        labels_HW = labels.read(mask, pair[1])
    if pixels.size != width_height:
        pixels = pixels.resize(width_height, Image.Resampling.BILINEAR)
        labels_HW = np.asarray(Image.fromarray(labels_HW).resize(width_height, Image.Resampling.NEAREST))
    return np.asarray(pixels), labels_HW


def _open(
    folder: Path, *, sizes: dict[str, int]
) -> tuple[dict[str, MaskedImages], str, torch.Tensor, torch.Tensor]:
    """What _build made, memory-mapped. Raises: DamagedError."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        fingerprint = str(meta["fingerprint"])
        mean_C = torch.tensor(meta["mean"], dtype=torch.float64)
        std_C = torch.tensor(meta["std"], dtype=torch.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / 'meta.json'}: {error}") from error
    if meta.get("version") != CACHE_VERSION or mean_C.shape != (3,) or std_C.shape != (3,):
        raise DamagedError(f"{folder / 'meta.json'} does not describe these pictures")
    splits = {}
    for split, count in sizes.items():
        places_B3 = map_array(folder / f"{split}_places.npy", (count, 3), INT64).clone()
        pixels = int((places_B3[:, 1] * places_B3[:, 2]).sum())
        splits[split] = MaskedImages(
            map_array(folder / f"{split}_pixels.npy", (3 * pixels,), UINT8),
            map_array(folder / f"{split}_labels.npy", (pixels,), UINT8),
            places_B3,
        )
    return splits, fingerprint, mean_C, std_C


def palette(count: int, *, background: bool = False) -> torch.Tensor:
    """(count, 3) uint8: colours that differ from their neighbours, for classes that bring none of their own.

    `background`: the first class is one, in dark grey.
    """
    hue_K = torch.arange(count) * 0.618034 % 1
    value_K = torch.tensor([0.95, 0.7, 0.45])[torch.arange(count) % 3]
    ramp_K3 = ((hue_K[:, None] * 6 + torch.tensor([0.0, 4.0, 2.0])) % 6 - 3).abs() - 1
    colours_K3 = (255 * value_K[:, None] * (0.25 + 0.75 * ramp_K3.clamp(0, 1))).to(torch.uint8)
    if background:
        colours_K3[0] = 50
    return colours_K3
