"""Folders of images, one folder per class: decoded once into a memory-mapped cache of uint8 pixels, or streamed.

The cache of <root> lies at <cache_dir>/<root's name>-<hash of its path and image_size>/<hash of its files>:
adding, removing or changing a file makes a new cache, and the old one is deleted.
"""

import hashlib
import json
import os
import stat
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normlab.config import ConfigError
from normlab.config.data import Decode, ImageFolderConfig
from normlab.data.cache import ArrayWriter, DamagedError, digest
from normlab.data.dataset import LabelledImages, PixelMoments, Source
from normlab.data.decode import SUFFIXES, decode_all, in_threads
from normlab.data.images import INT64, UINT8, open_images, write_meta
from normlab.data.listing import (
    Tell,
    announce,
    cached,
    data_root,
    entries,
    files_under,
    held_out_folders,
    listed,
    read_bytes,
)
from normlab.data.order import fixed_permutation
from normlab.data.streamed import IMAGENET_MEAN, IMAGENET_STD, StreamedImages

CACHE_VERSION = 2
"""Increment it when the pixels or the files of the cache change."""

OF_PICTURES = {"images", "image", "imgs", "img", "pictures", "jpegimages", "leftimg8bit"}
OF_MASKS = {"masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass", "gtfine", "gt"}
"""Common names of the two halves of segmentation data, in lower case."""

SHOWN = 20
"""How many classes are listed with their counts."""

PROBED = 256
"""Files whose content enters the fingerprint of streamed images, beside the names and sizes of all."""


@dataclass(frozen=True)
class Listing:
    """The images under one folder of classes, sorted by class, then by name."""

    paths: list[str]
    labels: list[int]
    classes: list[str]
    stamp: str
    """Hash of every file's relative path, size in bytes and time of change in ns."""
    names: str
    """Hash of every file's relative path and size, the same for a copy of the folder."""


def read(cfg: ImageFolderConfig, tell: Tell) -> Source:
    """Train, test and val of cfg.root: from the cache, which is built first if it is missing, or streamed.

    If only one of test and val exists, it is used as test.
    Raises: ConfigError naming the folder or file that cannot be used.
    """
    root = data_root(cfg.root, "train/<class>/ and test/<class>/ (or val/<class>/, or both)")
    found = listed(cfg, root, partial(_look, root))
    listings = {split: Listing(**listing) for split, listing in found.items()}
    notes = _describe(root, listings)
    if cfg.decode is Decode.stream:
        return replace(_streamed(listings, cfg.image_size), notes=notes)
    key = digest(CACHE_VERSION, *(listing.stamp for listing in listings.values()))
    build = partial(_build, listings=listings, size=cfg.image_size, tell=tell, name=root.name)
    read = partial(_open, listings=listings, size=cfg.image_size)
    source = cached(cfg.cache_dir, root, cfg.image_size, key, read, build)
    return replace(source, notes=notes)


def _look(root: Path) -> dict[str, dict[str, Any]]:
    """The listings of train, test and, if there is one beside test, val."""
    held_out = held_out_folders(root)
    if not held_out:
        raise ConfigError(f"data.root={root} has neither test/ nor val/; put the test images under one of them.")
    train = _list(root, "train")
    listings = {"train": train}
    for split, name in zip(("test", "val"), held_out, strict=False):
        listing = _list(root, name)
        unknown = sorted(set(listing.classes) - set(train.classes))
        if unknown:
            raise ConfigError(
                f"data.root={root}: class {unknown[0]} is in {name}/ but not in train/; add it or remove it."
            )
        listings[split] = _with_labels_of(train.classes, listing)
    return {split: vars(listing) for split, listing in listings.items()}


def _list(root: Path, split: str) -> Listing:
    folder = str(root / split)
    classes = [os.path.basename(path) for path, entry in entries(folder) if stat.S_ISDIR(entry.st_mode)]
    if not classes:
        raise ConfigError(f"data.root={root}: {split}/ holds no class folders; expected {split}/<class>/<image>.")
    paths: list[str] = []
    labels: list[int] = []
    names: list[str] = []
    times: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(files_under(os.path.join(folder, name)))
        if not files:
            raise ConfigError(
                f"data.root={root}: class folder {split}/{name} holds no image ({', '.join(SUFFIXES)}); "
                "add some or remove it."
            )
        for path, size, changed_ns in files:
            paths.append(path)
            labels.append(label)
            names.append(f"{path[len(str(root)) :]}\0{size}")
            times.append(changed_ns)
    stamps = (f"{name}\0{changed_ns}" for name, changed_ns in zip(names, times, strict=True))
    return Listing(paths, labels, classes, digest(*stamps), digest(*names))


def _with_labels_of(classes: list[str], listing: Listing) -> Listing:
    """A listing whose labels are positions in `classes`, some of which it may lack."""
    labels = [classes.index(name) for name in listing.classes]
    return replace(listing, labels=[labels[label] for label in listing.labels], classes=classes)


def _describe(root: Path, listings: dict[str, Listing]) -> tuple[str, ...]:
    """What was found, so that users notice a folder that is not a class before training."""
    classes = listings["train"].classes
    counts = [np.bincount(listing.labels, minlength=len(classes)) for listing in listings.values()]
    shown = [f"{name} {' + '.join(str(of[i]) for of in counts)}" for i, name in enumerate(classes[:SHOWN])]
    more = ["..."] if len(classes) > SHOWN else []
    *first, last = (f"{of.sum()} {split}" for of, split in zip(counts, ("training", "test", "val"), strict=False))
    found = f"{root}: {len(classes)} classes, {', '.join(first)} and {last} images: {', '.join(shown + more)}"
    names = {name.lower(): name for name in classes}
    pictures, masks = (sorted(names.keys() & known) for known in (OF_PICTURES, OF_MASKS))
    if not (pictures and masks):
        return (found,)
    return (
        found,
        f"warning: {root} looks like pictures with masks, but {names[pictures[0]]} and {names[masks[0]]} become "
        "two classes of images; to learn a class for each pixel choose data=mask_folder",
    )


def _streamed(listings: dict[str, Listing], size: int) -> Source:
    """The images as they are in their files; nothing is decoded here."""
    splits = {
        split: StreamedImages(listing.paths, torch.tensor(listing.labels), size)
        for split, listing in listings.items()
    }
    return Source(
        splits["train"],
        splits["test"],
        listings["train"].classes,
        _fingerprint(listings),
        torch.tensor(IMAGENET_MEAN, dtype=torch.float64),
        torch.tensor(IMAGENET_STD, dtype=torch.float64),
        val=splits.get("val"),
    )


def _fingerprint(listings: dict[str, Listing]) -> str:
    """A hash of every file's name and size, and of the content of PROBED files per split, always the same ones.

    A million files cannot be read at every start, so changes that keep a file's size may go unnoticed. If 1 file
    in 50 has changed, that happens in fewer than 1 of 100 cases.
    """
    content = hashlib.blake2b(digest_size=16)
    for listing in listings.values():
        content.update(listing.names.encode())
        probed = [listing.paths[index] for index in fixed_permutation(len(listing.paths))[:PROBED].tolist()]
        for found in in_threads(read_bytes, probed):
            content.update(hashlib.blake2b(found).digest())
    return content.hexdigest()


def _build(folder: Path, *, listings: dict[str, Listing], size: int, tell: Tell, name: str) -> None:
    """Decode every image into `folder`, with the content's fingerprint and the training pixels' moments."""
    total = sum(len(listing.paths) for listing in listings.values())
    announce(folder, f"{total} images of {name}", total * size * size * 3, tell)
    classes = listings["train"].classes
    content = hashlib.blake2b(json.dumps(classes).encode(), digest_size=16)
    moments = PixelMoments()
    done = 0
    for split, listing in listings.items():
        labels = np.array(listing.labels, dtype=INT64)
        content.update(json.dumps([split, len(labels), size]).encode() + labels.tobytes())
        with ArrayWriter(folder / f"{split}_labels.npy", (), INT64) as writer:
            writer.write(labels)
        with ArrayWriter(folder / f"{split}_images.npy", (size, size, 3), UINT8) as writer:
            for block_BHWC in decode_all(listing.paths, size):
                writer.write(block_BHWC)
                content.update(block_BHWC.data)
                if split == "train":
                    moments.add(block_BHWC)
                done += len(block_BHWC)
                tell(f"decoding {name}", done, total)
    write_meta(folder, CACHE_VERSION, classes, moments, content.hexdigest())


def _open(folder: Path, *, listings: dict[str, Listing], size: int) -> Source:
    """What _build made, memory-mapped. Raises: DamagedError."""
    sizes = {split: len(listing.paths) for split, listing in listings.items()}
    source = open_images(folder, CACHE_VERSION, sizes, size, listings["train"].classes)
    for split, listing in listings.items():
        found = getattr(source, split)
        assert isinstance(found, LabelledImages)
        if found.labels_B.tolist() != listing.labels:
            raise DamagedError(f"{folder} has other labels")
    return source
