"""Pascal VOC 2012, Cityscapes (fine) and Oxford-IIIT Pet: torchvision finds and fetches the files."""

import os
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from torchvision import datasets

from normlab.config import ConfigError
from normlab.config.data import TorchvisionMasksConfig
from normlab.data.dataset import IGNORED, Source
from normlab.data.listing import Tell
from normlab.data.mask_files import Pair, read_pairs
from normlab.data.masks import Labels, palette

VOC_CLASSES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
"""Everingham et al., The PASCAL Visual Object Classes challenge 2012; the border of value 255 is ignored."""

PET_CLASSES = ["pet", "background", "border"]
"""The meaning of the values 1, 2 and 3 in the trimaps (Parkhi et al. 2012)."""

SPLITS = {"voc": ("train", "val"), "cityscapes": ("train", "val"), "oxford_pets": ("trainval", "test")}
"""(the set to train on, the set to evaluate)."""


def read(cfg: TorchvisionMasksConfig, tell: Tell) -> Source:
    """The configured data, fetched into cfg.root if they are missing and torchvision can fetch them.

    Raises: ConfigError if they are missing or damaged.
    """
    if cfg.name not in SPLITS:
        raise ConfigError(f"data.name={cfg.name} is none of {', '.join(SPLITS)}; choose one of them.")
    root = Path(os.path.expanduser(cfg.root)).resolve()
    return read_pairs(cfg, root, partial(_find, cfg, root), *_labels(cfg.name), tell)


def _find(cfg: TorchvisionMasksConfig, root: Path) -> dict[str, list[Pair]]:
    train, test = SPLITS[cfg.name]
    try:
        return {"train": _pairs(cfg.name, root, train), "test": _pairs(cfg.name, root, test)}
    except (OSError, RuntimeError) as error:
        if not cfg.download or cfg.name == "cityscapes":
            raise ConfigError(_missing(cfg, error)) from error
    _download(cfg, root)
    return {"train": _pairs(cfg.name, root, train), "test": _pairs(cfg.name, root, test)}


def _pairs(name: str, root: Path, split: str, *, download: bool = False) -> list[Pair]:
    match name:
        case "voc":
            voc = datasets.VOCSegmentation(root, "2012", split, download=download)
            return list(zip(voc.images, voc.masks, strict=True))
        case "cityscapes":
            cities = datasets.Cityscapes(root, split, target_type="semantic")
            return sorted(zip(cities.images, (masks[0] for masks in cities.targets), strict=True))
    pets = datasets.OxfordIIITPet(root, split, "segmentation", download=download)
    return [(str(image), str(mask)) for image, mask in zip(pets._images, pets._segs, strict=True)]


def _download(cfg: TorchvisionMasksConfig, root: Path) -> None:
    """Fetch the data once, however many ranks ask for it: the others find it when they get the lock."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{cfg.name}.lock"):
            _pairs(cfg.name, root, SPLITS[cfg.name][0], download=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(_missing(cfg, error)) from error


def _missing(cfg: TorchvisionMasksConfig, error: Exception) -> str:
    reason = " ".join(str(error).split())
    fix = "unpack them there" + ("" if cfg.download else ", or set data.download=true")
    if cfg.name == "cityscapes":
        fix = "fetch leftImg8bit and gtFine from cityscapes-dataset.com, which asks for an account"
    return f"data.root={cfg.root} holds no intact {cfg.name} ({reason}); {fix}."


def _labels(name: str) -> tuple[Labels, torch.Tensor]:
    match name:
        case "voc":
            of_value = {index: index for index in range(len(VOC_CLASSES))} | {255: IGNORED}
            return Labels(VOC_CLASSES, of_value, "VOC has 0 to 20, and 255"), palette(
                len(VOC_CLASSES), background=True
            )
        case "cityscapes":
            known = datasets.Cityscapes.classes
            judged = sorted((c for c in known if not c.ignore_in_eval), key=lambda c: c.train_id)
            of_value = {c.id: IGNORED if c.ignore_in_eval else c.train_id for c in known}
            colours = torch.tensor([c.color for c in judged], dtype=torch.uint8)
            return Labels([c.name for c in judged], of_value, "Cityscapes has the ids 0 to 33"), colours
    of_value = {index + 1: index for index in range(len(PET_CLASSES))}
    return Labels(PET_CLASSES, of_value, "trimaps have 1 to 3"), palette(len(PET_CLASSES))
