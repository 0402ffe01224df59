"""Data: sources, splits, the order of batches and their augmentation.

`load` is the entry point: it returns the configured source, divided into train, val and test.
"""

from normlab.config.data import DataConfig, ImageFolderConfig, SegmentationConfig
from normlab.data.augment import Augmentation, CropAndFlip
from normlab.data.augment_masks import ScaleAndCrop
from normlab.data.batches import Inputs
from normlab.data.dataset import Dataset, LabelledImages, Source, split_source
from normlab.data.listing import Tell
from normlab.data.streamed import ResizedCropAndFlip, StreamedImages
from normlab.distributed import Ranks
from normlab.numerics import Numerics


def load(cfg: DataConfig, tell: Tell | None = None) -> Dataset:
    """The configured data, with `data.train_samples` and `data.val_fraction` applied.

    tell(text), then tell(text, done, total), are called while something that takes long is first made.
    Raises: ConfigError.
    """
    source: Source = cfg.made_by()(cfg, tell or (lambda text, done=0, total=0: None))
    return split_source(source, cfg)


def inputs(cfg: DataConfig, dataset: Dataset, numerics: Numerics, ranks: Ranks) -> Inputs:
    """How the samples of a dataset become a model's input on this rank."""
    workers = 0
    if isinstance(cfg, ImageFolderConfig) and isinstance(dataset.train, StreamedImages):
        workers = cfg.workers or ranks.cores()
    mean_C, std_C = (values.to(numerics.device) for values in (dataset.mean_C, dataset.std_C))
    return Inputs(augmentation(cfg, dataset), mean_C, std_C, numerics, workers)


def augmentation(cfg: DataConfig, dataset: Dataset) -> Augmentation:
    """How the samples of a split become a training batch."""
    if isinstance(cfg, SegmentationConfig):
        return ScaleAndCrop(cfg, dataset.mean_C)
    if isinstance(dataset.train, StreamedImages):
        return ResizedCropAndFlip(dataset.train.size)
    assert isinstance(dataset.train, LabelledImages)
    _, height, width, channels = dataset.train.images_BHWC.shape
    return CropAndFlip((channels, height, width))
