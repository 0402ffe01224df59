"""Data: sources, splits, the order of batches and their augmentation.

`load` is the one entry: the configured source, cut into train, val and test.
"""

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
from normlab.data.listing import Tell


def load(cfg: DataConfig, tell: Tell | None = None) -> Dataset:
    """The configured data, with `data.train_samples` and `data.val_fraction` applied.

    tell(text), then tell(text, done, total), are called while something long is made for the first time.
    Raises: ConfigError.
    """
    return cut(_read(cfg, tell or (lambda text, done=0, total=0: None)), cfg)


def _read(cfg: DataConfig, tell: Tell) -> Source:
    match cfg:
        case ShapesConfig():
            return shapes.read(cfg)
        case CifarConfig():
            return cifar.read(cfg)
        case ImageFolderConfig():
            return image_folder.read(cfg, tell)
        case ShapesSegConfig():
            return shapes_seg.read(cfg)
        case MaskFolderConfig():
            return mask_folder.read(cfg, tell)
        case TorchvisionMasksConfig():
            return torchvision_masks.read(cfg, tell)
    raise AssertionError(f"no source reads a {type(cfg).__name__}")


def augmentation(cfg: DataConfig, dataset: Dataset) -> Augmentation:
    """How the samples of a split become a training batch."""
    if isinstance(cfg, SegmentationConfig):
        return ScaleAndCrop(cfg, dataset.mean_C)
    assert isinstance(dataset.train, LabelledImages)
    _, height, width, channels = dataset.train.images_BHWC.shape
    return CropAndFlip((channels, height, width))
