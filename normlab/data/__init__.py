"""Data: sources, splits, the order of batches and their augmentation.

`load` is the one entry: the configured source, cut into train, val and test.
"""

from collections.abc import Callable

from normlab.config import CifarConfig, DataConfig, ImageFolderConfig, ShapesConfig
from normlab.data import cifar, image_folder, shapes
from normlab.data.dataset import Dataset, Source, cut


def load(cfg: DataConfig, on_progress: Callable[[str, int, int], None] | None = None) -> Dataset:
    """The configured data, with `data.train_samples` and `data.val_fraction` applied.

    on_progress(text, done, total) is called while something long is made for the first time.
    Raises: ConfigError.
    """
    return cut(_read(cfg, on_progress or (lambda text, done, total: None)), cfg)


def _read(cfg: DataConfig, on_progress: Callable[[str, int, int], None]) -> Source:
    match cfg:
        case ShapesConfig():
            return shapes.read(cfg)
        case CifarConfig():
            return cifar.read(cfg)
        case ImageFolderConfig():
            return image_folder.read(cfg, on_progress)
    raise AssertionError(f"no source reads a {type(cfg).__name__}")
