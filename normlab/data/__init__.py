"""Data: sources, splits, the order of batches and their augmentation.

`load` is the one entry: the configured source, cut into train, val and test.
"""

from collections.abc import Callable

from normlab.config import (
    CifarConfig,
    DataConfig,
    ImageFolderConfig,
    MaskFolderConfig,
    SegmentationConfig,
    ShapesConfig,
    ShapesSegConfig,
    TorchvisionMasksConfig,
)
from normlab.data import cifar, image_folder, mask_folder, shapes, shapes_seg, torchvision_masks
from normlab.data.augment import Augmentation, CropAndFlip
from normlab.data.augment_masks import ScaleAndCrop
from normlab.data.dataset import Dataset, LabelledImages, Source, cut


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
        case ShapesSegConfig():
            return shapes_seg.read(cfg)
        case MaskFolderConfig():
            return mask_folder.read(cfg, on_progress)
        case TorchvisionMasksConfig():
            return torchvision_masks.read(cfg, on_progress)
    raise AssertionError(f"no source reads a {type(cfg).__name__}")


def augmentation(cfg: DataConfig, dataset: Dataset) -> Augmentation:
    """How the samples of a split become a training batch."""
    if isinstance(cfg, SegmentationConfig):
        return ScaleAndCrop(cfg, dataset.mean_C)
    assert isinstance(dataset.train, LabelledImages)
    _, height, width, channels = dataset.train.images_BHWC.shape
    return CropAndFlip((channels, height, width))
