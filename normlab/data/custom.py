"""A user's own labelled pictures, named as module:name, read once into the same cache as image folders."""

import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from normlab.config import ConfigError
from normlab.config.data import CustomDataConfig, CustomSegmentationDataConfig
from normlab.data.cache import ArrayWriter, digest
from normlab.data.dataset import PixelMoments, Source
from normlab.data.decode import as_rgb, as_square
from normlab.data.images import INT64, UINT8, open_images, write_meta
from normlab.data.listing import Tell, announce, cached
from normlab.targets import call_target, named, said_in, source_file

CACHE_VERSION = 1
"""Increment it when the pixels or the files of the cache change."""

PROGRESS_EVERY = 256
"""Pictures between two lines of progress."""


Config = CustomDataConfig | CustomSegmentationDataConfig


@dataclass(frozen=True)
class Given:
    """What the target returned."""

    splits: dict[str, Any]
    """Name -> an object with a length, and with (picture, label or mask) at each index."""

    classes: list[str] | None

    @property
    def counts(self) -> dict[str, int]:
        return {split: len(samples) for split, samples in self.splits.items()}


def read(cfg: CustomDataConfig, tell: Tell) -> Source:
    """What `data.target` returns for `data.args`, from the cache, which is built first if it is missing.

    The cache is rebuilt when the target's file, its arguments or the length of a split change; it cannot know what
    else the data depend on.
    Raises: ConfigError that names the target.
    """
    given = call(cfg)
    build = partial(_build, cfg=cfg, given=given, tell=tell)
    read = partial(
        open_images, version=CACHE_VERSION, sizes=given.counts, size=cfg.image_size, classes=given.classes
    )
    return cached(cfg.cache_dir, *place(cfg, CACHE_VERSION, given.counts, given.classes), read, build)


def place(cfg: Config, *parts: object) -> tuple[Path, int | None, str]:
    """Where `cached` looks for the cache: a stand-in for the root, the size, and a key made from `parts`."""
    file = source_file("data.target", cfg.target)
    source_code = hashlib.sha256(file.read_bytes()).hexdigest()
    root = file.with_name(f"{cfg.name}-{digest(json.dumps(cfg.args, sort_keys=True))}")
    return root, cfg.image_size, digest(source_code, *parts)


def call(cfg: Config) -> Given:
    """What `data.target` returns for `data.args`. Raises: ConfigError that names the target."""
    made = call_target("data.target", cfg.target, cfg.args)
    names = {"train", "test", "val", "classes"}
    if not isinstance(made, Mapping) or not {"train", "test"} <= made.keys() <= names:
        raise ConfigError(
            f"data.target={cfg.target} gave {named(made)}; let it give a dict of train and test, and if there "
            "are, val and classes."
        )
    splits = {split: made[split] for split in ("train", "test", "val") if split in made}
    for split, samples in splits.items():
        if not hasattr(samples, "__len__") or not hasattr(samples, "__getitem__") or not len(samples):
            what = "nothing" if hasattr(samples, "__len__") and not len(samples) else named(samples)
            raise ConfigError(
                f"data.target={cfg.target} gave {what} for {split}; let it be a list, or a data set with a "
                f"length, of (picture, {_second(cfg)})."
            )
    classes = made.get("classes", getattr(splits["train"], "classes", None))
    if isinstance(classes, str):
        raise ConfigError(
            f"data.target={cfg.target} gave classes={classes!r}, which is one text; let it be a list of names."
        )
    if isinstance(classes, int):
        classes = range(classes)
    return Given(splits, None if classes is None else list(map(str, classes)))


def _second(cfg: Config) -> str:
    return "label" if isinstance(cfg, CustomDataConfig) else "mask"


def _build(folder: Path, *, cfg: CustomDataConfig, given: Given, tell: Tell) -> None:
    """Read every picture into `folder`, with the content's fingerprint and the training pixels' moments."""
    size, done = cfg.image_size, 0
    total = sum(map(len, given.splits.values()))
    announce(folder, f"{total} pictures of {cfg.target}", total * size * size * 3, tell)
    content, moments = hashlib.blake2b(digest_size=16), PixelMoments()
    labels: dict[str, np.ndarray] = {}
    for split, samples in given.splits.items():
        labels[split] = np.empty(len(samples), dtype=INT64)
        with ArrayWriter(folder / f"{split}_images.npy", (size, size, 3), UINT8) as writer:
            for index in range(len(samples)):
                image_HWC, labels[split][index] = _sample(cfg, given, split, index)
                writer.write(image_HWC[None])
                content.update(image_HWC.tobytes())
                if split == "train":
                    moments.add(image_HWC[None])
                done += 1
                if done % PROGRESS_EVERY == 0 or done == total:
                    tell(f"reading {cfg.target}", done, total)
        with ArrayWriter(folder / f"{split}_labels.npy", (), INT64) as writer:
            writer.write(labels[split])
    classes = given.classes or [str(label) for label in range(1 + max(int(of.max()) for of in labels.values()))]
    if len(classes) < 2:
        raise ConfigError(
            f"data.target={cfg.target}: every label is 0, so there is nothing to learn; give at least 2 classes."
        )
    content.update(json.dumps([classes, {split: of.tolist() for split, of in labels.items()}, size]).encode())
    write_meta(folder, CACHE_VERSION, classes, moments, content.hexdigest())


def _sample(cfg: CustomDataConfig, given: Given, split: str, index: int) -> tuple[np.ndarray, int]:
    """A picture (size, size, 3) uint8, and its label. Raises: ConfigError that names them."""
    where, pixels, label = picture_of(cfg, given, split, index)
    try:
        label = operator.index(label)  # also for NumPy's and torch's integers
    except TypeError:
        raise ConfigError(f"{where} has the label {label}; let it be the number of the class, from 0.") from None
    if label < 0 or (given.classes is not None and label >= len(given.classes)):
        known = f"0 to {len(given.classes) - 1}, which classes names" if given.classes else "at least 0"
        raise ConfigError(f"{where} has the label {label}; let it be {known}.")
    if given.classes is None and label >= (total := sum(given.counts.values())):
        raise ConfigError(
            f"{where} has the label {label}, but there are {total} pictures; number the classes from 0, or give "
            "classes."
        )
    return as_square(pixels, cfg.image_size), label


def picture_of(cfg: Config, given: Given, split: str, index: int) -> tuple[str, Image.Image, Any]:
    """(the sample's name in errors, its picture in RGB, its label or mask as given). Raises: ConfigError."""
    where, second = f"data.target={cfg.target}: {split}[{index}]", _second(cfg)
    try:
        sample = given.splits[split][index]
    except Exception as error:
        raise ConfigError(f"{where}: {said_in(error)}.") from error
    if isinstance(sample, Mapping) and {"image", second} <= sample.keys():
        sample = sample["image"], sample[second]
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise ConfigError(
            f"{where} is {named(sample)}; let it be (picture, {second}), or a dict of image and {second}."
        )
    picture, other = sample
    try:
        pixels = _rgb(picture)
    except ValueError as error:  # grey values of unknown scale
        raise ConfigError(f"{where} is a picture of {error}.") from error
    except (OSError, SyntaxError) as error:  # Pillow decodes a file only now
        raise ConfigError(f"{where} has a picture that cannot be read: {said_in(error)}.") from error
    if pixels is None:
        raise ConfigError(
            f"{where} has for its picture {named(picture)}; let it be one of PIL, or uint8 values: an array "
            "(H, W, 3) or a tensor (3, H, W). Pictures are normalised and augmented here."
        )
    return where, pixels, other


def _rgb(picture: Any) -> Image.Image | None:
    if isinstance(picture, Image.Image):
        return as_rgb(picture)
    if isinstance(picture, torch.Tensor) and picture.ndim == 3 and picture.dtype == torch.uint8:
        picture = picture.permute(1, 2, 0).cpu().numpy()
    if not isinstance(picture, np.ndarray) or picture.dtype != UINT8:
        return None
    return Image.fromarray(picture) if picture.ndim == 3 and picture.shape[2] == 3 else None
