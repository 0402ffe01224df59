"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read by torchvision, which verifies their checksums."""

import os
import warnings
from pathlib import Path

import torch
from filelock import FileLock
from torchvision import datasets

from normlab.config import ConfigError
from normlab.config.data import CifarConfig
from normlab.data.dataset import LabelledImages, Source
from normlab.data.listing import Tell

READERS: dict[str, type[datasets.CIFAR10]] = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
MOMENTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Per-channel mean and standard deviation of the training pixels, as commonly published."""


def read(cfg: CifarConfig, tell: Tell) -> Source:
    """CIFAR's train and test sets in memory, fetched into cfg.root if they are missing and cfg.download is set.

    Raises: ConfigError if they are missing or damaged and cannot be fetched.
    """
    if cfg.name not in READERS:
        raise ConfigError(f"data.name={cfg.name} is not a CIFAR data set; choose {' or '.join(READERS)}.")
    try:
        train = _reader(cfg)
    except (OSError, RuntimeError) as error:  # "Dataset not found or corrupted."; no permission to read
        if not cfg.download:
            raise ConfigError(
                f"data.root={cfg.root} holds no intact {cfg.name} ({_wanted(cfg)}) and data.download=false; "
                f"set data.download=true, or unpack {READERS[cfg.name].filename} there."
            ) from error
        _download(cfg)
        train = _reader(cfg)
    mean_C, std_C = (torch.tensor(values, dtype=torch.float64) for values in MOMENTS[cfg.name])
    return Source(
        train=_split(train),
        test=_split(_reader(cfg, train=False)),
        classes=list(train.classes),
        fingerprint=f"{cfg.name}-{train.tgz_md5}",
        mean_C=mean_C,
        std_C=std_C,
    )


def _wanted(cfg: CifarConfig) -> str:
    return f"{READERS[cfg.name].base_folder}/"


def _reader(cfg: CifarConfig, train: bool = True) -> datasets.CIFAR10:
    with warnings.catch_warnings():
        # NumPy 2.4 on these pickles, which hold dtype(..., align=0); users can do nothing about it.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        return READERS[cfg.name](cfg.root, train=train, download=False)


def _download(cfg: CifarConfig) -> None:
    """Fetch the archive once, however many ranks ask for it: the others find it when they get the lock."""
    try:
        root = Path(os.path.expanduser(cfg.root))  # as torchvision does
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{cfg.name}.lock"):
            READERS[cfg.name](cfg.root, download=True)
    except (OSError, RuntimeError) as error:  # no network; no permission to write; a wrong checksum
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"data.root={cfg.root} holds no intact {cfg.name} and it could not be fetched ({reason}); "
            f"unpack {READERS[cfg.name].filename} there, or choose another data.root."
        ) from error


def _split(reader: datasets.CIFAR10) -> LabelledImages:
    images_BHWC = torch.from_numpy(reader.data).contiguous()
    return LabelledImages(images_BHWC, torch.tensor(reader.targets, dtype=torch.int64))
