"""The cache of labelled images of one size, and the metadata beside the pixels of any cache."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from normlab.data.cache import DamagedError, map_array, write_text
from normlab.data.dataset import LabelledImages, PixelMoments, Source

UINT8, INT64 = np.dtype(np.uint8), np.dtype(np.int64)


def write_meta(folder: Path, version: int, classes: list[str], moments: PixelMoments, fingerprint: str) -> None:
    """Write what `read_meta` reads: class names, a hash of the content, and the training pixels' moments."""
    mean_C, std_C = moments.result()
    meta = {
        "version": version,
        "classes": classes,
        "mean": mean_C.tolist(),
        "std": std_C.tolist(),
        "fingerprint": fingerprint,
    }
    write_text(folder / "meta.json", json.dumps(meta, indent=1))


@dataclass(frozen=True)
class Meta:
    """What `write_meta` wrote."""

    classes: list[str]
    fingerprint: str
    mean_C: torch.Tensor
    std_C: torch.Tensor


def read_meta(folder: Path, version: int, classes: list[str] | None) -> Meta:
    """The metadata beside the pixels. Unless given, classes come from the file. Raises: DamagedError."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        fingerprint = str(meta["fingerprint"])
        mean_C = torch.tensor(meta["mean"], dtype=torch.float64)
        std_C = torch.tensor(meta["std"], dtype=torch.float64)
        classes = meta["classes"] if classes is None else classes
        known = meta["version"] == version and meta["classes"] == classes
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / 'meta.json'}: {error}") from error
    if not known or mean_C.shape != (3,) or std_C.shape != (3,):
        raise DamagedError(f"{folder / 'meta.json'} does not describe these pictures")
    return Meta(list(classes), fingerprint, mean_C, std_C)


def open_images(
    folder: Path, version: int, sizes: dict[str, int], size: int, classes: list[str] | None = None
) -> Source:
    """The splits of `sizes` images each, memory-mapped. Unless given, classes come from the file.

    Raises: DamagedError.
    """
    meta = read_meta(folder, version, classes)
    splits = {}
    for split, count in sizes.items():
        images_BHWC = map_array(folder / f"{split}_images.npy", (count, size, size, 3), UINT8)
        labels_B = map_array(folder / f"{split}_labels.npy", (count,), INT64)
        splits[split] = LabelledImages(images_BHWC, labels_B.clone())
    return Source(
        splits["train"],
        splits["test"],
        meta.classes,
        meta.fingerprint,
        meta.mean_C,
        meta.std_C,
        val=splits.get("val"),
    )
