"""What is trained and evaluated on."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

from omegaconf import MISSING

from normlab.config.section import Choice, ConfigError, choice, name_of_target, setting


@dataclass(kw_only=True)
class DataConfig(Choice):
    """Settings of every data set."""

    group: ClassVar[str] = "data"

    task: ClassVar[str] = "classification"

    name: str = MISSING
    """Which data set: `data=<name>` chooses it."""

    train_samples: int | None = setting(None, minimum=1)
    """Samples to train on: a fixed subset, the same for every seed. null: all."""

    val_fraction: float = setting(0.0, minimum=0, below=1)
    """Share of the training data held out as val; test is then evaluated once, at the end."""

    augment: bool = True
    """Random crop after padding by 4 pixels, and random horizontal flip."""

    input_mean: list[float] | None = setting(None, minimum=0, maximum=1)
    """Subtracted from each channel of pixels in [0, 1], in training and evaluation. null: the training data's
    mean, or ImageNet's with decode=stream. Pretrained weights need the values they were trained with:
    [0.485, 0.456, 0.406] for ImageNet."""

    input_std: list[float] | None = setting(None, minimum=0.001)
    """Each channel is divided by this after the subtraction. null: the training data's standard deviation, or
    ImageNet's with decode=stream: [0.229, 0.224, 0.225]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, other in (("input_mean", "input_std"), ("input_std", "input_mean")):
            value = getattr(self, name)
            if value is not None and len(value) != 3:
                raise ConfigError(f"data.{name}={value}: give 3 values, one for each of red, green and blue.")
            if value is not None and getattr(self, other) is None:
                raise ConfigError(f"data.{name}={value} needs data.{other}; give both, or neither.")


@choice("shapes")
@dataclass(kw_only=True)
class ShapesConfig(DataConfig):
    """Pictures of ten shapes, 32x32 RGB, drawn in the process: nothing to download."""

    builder = "normlab.data.shapes:read"

    name: str = "shapes"

    num_train: int = setting(8000, minimum=10, maximum=1_000_000)
    """Training pictures to draw."""

    num_test: int = setting(2000, minimum=10, maximum=1_000_000)
    """Test pictures to draw."""


@choice("cifar")
@dataclass(kw_only=True)
class CifarConfig(DataConfig):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), through torchvision."""

    builder = "normlab.data.cifar:read"
    names: ClassVar[tuple[str, ...] | None] = ("cifar10", "cifar100")

    name: str = "cifar10"

    root: str = setting("data", identity=False)
    """Folder that holds the archive, or that it is downloaded to."""

    download: bool = setting(True, identity=False)
    """Download the archive if it is missing (its checksum is verified either way)."""


class Decode(Enum):
    """When image files are decoded."""

    cache = "cache"
    stream = "stream"


@choice("image_folder")
@dataclass(kw_only=True)
class ImageFolderConfig(DataConfig):
    """Class folders of images under train/ and test/ (or val/, or both)."""

    builder = "normlab.data.image_folder:read"

    name: str = "image_folder"

    root: str | None = setting(None, identity=False)
    """Folder that holds train/<class>/ and test/<class>/ (or val/<class>/, or both)."""

    decode: Decode = Decode.cache
    """cache: every file once, before the first run; stream: each picture whenever it is needed, for data that are
    too large to keep decoded."""

    image_size: int = setting(32, minimum=4, maximum=4096)
    """Side in pixels: the shorter side is resized to it (with decode=stream to image_size / 0.875, 256 for 224),
    then the centre is cut out."""

    augment: bool = True
    """Random crop after padding by 4 pixels, and random horizontal flip. With decode=stream, a random part of 8 to
    100 percent of the picture's area, resized to image_size, and the flip."""

    workers: int | None = setting(None, minimum=1, maximum=1024, identity=False)
    """For decode=stream: threads per rank that decode. null: the machine's cores divided among its ranks."""

    cache_dir: str | None = setting(None, identity=False)
    """Where decoded pixels are kept, and with check_files=false the list of files. null: $XDG_CACHE_HOME/normlab,
    or ~/.cache/normlab."""

    check_files: bool = setting(True, identity=False)
    """Look at each file's size and time whenever a run is planned or started. false: once, which saves time on a
    slow file system; files that change later are noticed only with true."""


@choice("custom")
@dataclass(kw_only=True)
class CustomDataConfig(DataConfig):
    """A data set of your own, with a class for each picture."""

    builder = "normlab.data.custom:read"
    names: ClassVar[tuple[str, ...] | None] = None
    library: ClassVar[str] = "custom"

    name: str = ""
    """Determined by the target: my_data.load."""

    target: str = setting("", identity=False)
    """`module:name` of what gives the data, in the folder of the command: called with args, it gives a dict of
    `train` and `test`, and if there are, `val` and `classes`. A split has a length, and gives (picture, label) at
    each index. Each picture is read once, into a cache, so what is drawn at random is drawn once."""

    args: dict[str, Any] = setting({}, identity=False)
    """Arguments of the target by their names, such as 'data.args={root: birds}'."""

    image_size: int = setting(32, minimum=4, maximum=4096)
    """Side in pixels: the shorter side is resized to it, then the centre is cut out."""

    cache_dir: str | None = setting(None, identity=False)
    """Where the pixels are kept. null: $XDG_CACHE_HOME/normlab, or ~/.cache/normlab."""

    def __post_init__(self) -> None:
        self.name = name_of_target(self, self.target, "my_data:load")
        super().__post_init__()


LARGEST_WINDOW = 16384
"""Pixels a side of the square that is cut out of a picture before it is scaled to crop_size."""


class ClassWeighting(Enum):
    """How much the pixels of each class count in the training loss."""

    none = "none"
    median_frequency = "median_frequency"


@dataclass(kw_only=True)
class SegmentationConfig(DataConfig):
    """Settings of every segmentation data set."""

    task: ClassVar[str] = "segmentation"

    augment: bool = True
    """Random scale, crop, horizontal flip and colours; without it, the centre is cut out."""

    crop_size: int = setting(256, minimum=8, maximum=4096)
    """Side in pixels of the square that is cut out of a training picture, padded if the picture is smaller."""

    scale_min: float = setting(0.5, above=0)
    """Smallest random scale of a training picture."""

    scale_max: float = setting(2.0, above=0)
    """Largest random scale of a training picture."""

    colour_jitter: float = setting(0.25, minimum=0, below=1)
    """Brightness, contrast and saturation are each multiplied by a random number between 1 - this and 1 + this."""

    class_weighting: ClassWeighting = ClassWeighting.none
    """median_frequency: a class weighs the median class frequency divided by its own, where a frequency is that of
    the class's pixels in the training pictures that show it."""

    class_weights: list[float] | None = setting(None, minimum=0)
    """Weight of each class in the training loss, in the order of the classes. Cannot be combined with
    class_weighting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_min > self.scale_max:
            raise ConfigError(
                f"data.scale_min={self.scale_min} is more than data.scale_max={self.scale_max}; swap them."
            )
        if self.crop_size > self.scale_min * LARGEST_WINDOW:
            raise ConfigError(
                f"data.scale_min={self.scale_min} with data.crop_size={self.crop_size} cuts squares of up to "
                f"{self.crop_size / self.scale_min:.3g} pixels a side out of a picture; raise it to at least "
                f"{self.crop_size / LARGEST_WINDOW:g}."
            )
        if self.class_weights is not None and self.class_weighting is not ClassWeighting.none:
            raise ConfigError(
                f"data.class_weights and data.class_weighting={self.class_weighting.value} exclude each other; "
                "give one of them."
            )


@choice("shapes_seg")
@dataclass(kw_only=True)
class ShapesSegConfig(SegmentationConfig):
    """Pictures of several of the ten shapes, 64x64 RGB, drawn in the process, with a class for each pixel."""

    builder = "normlab.data.shapes_seg:read"

    name: str = "shapes_seg"

    crop_size: int = setting(64, minimum=8, maximum=4096)
    """Side in pixels of the square that is cut out of a training picture, padded if the picture is smaller."""

    scale_min: float = setting(0.75, above=0)
    """Smallest random scale of a training picture."""

    scale_max: float = setting(1.33, above=0)
    """Largest random scale of a training picture."""

    num_train: int = setting(1000, minimum=1, maximum=100_000)
    """Training pictures to draw."""

    num_test: int = setting(200, minimum=1, maximum=100_000)
    """Test pictures to draw."""


@dataclass(kw_only=True)
class AnySizeConfig(SegmentationConfig):
    """Settings of every segmentation data set whose pictures may have any size."""

    image_size: int | None = setting(None, minimum=8, maximum=16384)
    """The shorter side of every picture and mask is resized to this many pixels. null: not resized."""


@dataclass(kw_only=True)
class MaskFilesConfig(AnySizeConfig):
    """Settings of every segmentation data set that is read from files."""

    cache_dir: str | None = setting(None, identity=False)
    """Where decoded pixels are kept, and with check_files=false the list of files. null: $XDG_CACHE_HOME/normlab,
    or ~/.cache/normlab."""

    check_files: bool = setting(True, identity=False)
    """Look at each file's size and time whenever a run is planned or started. false: once, which saves time on a
    slow file system; files that change later are noticed only with true."""


@choice("mask_folder")
@dataclass(kw_only=True)
class MaskFolderConfig(MaskFilesConfig):
    """Your own pictures and masks: images/ and masks/ under train/ and under val/, test/ or both.

    A mask has its picture's name (any suffix) and holds the class index, or the colour, of each pixel.
    """

    builder = "normlab.data.mask_folder:read"

    name: str = "mask_folder"

    root: str | None = setting(None, identity=False)
    """Folder that holds train/images/, train/masks/, and the same under val/, test/ or both."""

    num_classes: int | None = setting(None, minimum=2, maximum=255)
    """Number of classes, not counting ignore_index; required unless data.colour_map lists them."""

    class_names: list[str] | None = setting(None)
    """A name for each class, for curves and pictures. null: class_0, class_1, ..., or the colour map's."""

    ignore_index: int = setting(255, minimum=0, maximum=65535)
    """Mask value of pixels that count neither in the loss nor in the metrics."""

    colour_map: str | None = setting(None, identity=False)
    """For RGB masks: a text file with one line `red green blue name` per class; the class `void` is ignored."""


@choice("torchvision_masks")
@dataclass(kw_only=True)
class TorchvisionMasksConfig(MaskFilesConfig):
    """Pascal VOC 2012, Cityscapes (fine) or Oxford-IIIT Pet, through torchvision."""

    builder = "normlab.data.torchvision_masks:read"
    in_yaml: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...] | None] = ("voc", "cityscapes", "oxford_pets")

    name: str = "voc"

    root: str = setting("data", identity=False)
    """Folder that holds the data, or that they are downloaded to."""

    download: bool = setting(True, identity=False)
    """Download missing data where torchvision can: not Cityscapes, whose archives require an account."""


@choice("custom_segmentation")
@dataclass(kw_only=True)
class CustomSegmentationDataConfig(AnySizeConfig):
    """A data set of your own, with a class for each pixel."""

    builder = "normlab.data.custom_segmentation:read"
    names: ClassVar[tuple[str, ...] | None] = None
    library: ClassVar[str] = "custom"

    name: str = ""
    """Determined by the target: my_data.load."""

    target: str = setting("", identity=False)
    """`module:name` of what gives the data, in the folder of the command: called with args, it gives a dict of
    `train`, `test` and `classes` (their names or their number), and if there is, `val`. A split has a length, and
    gives (picture, mask) at each index. Each is read once, into a cache: what is drawn at random is drawn once."""

    args: dict[str, Any] = setting({}, identity=False)
    """Arguments of the target by their names, such as 'data.args={root: streets}'."""

    ignore_index: int = setting(255, minimum=0, maximum=65535)
    """Mask value of pixels that count neither in the loss nor in the metrics."""

    cache_dir: str | None = setting(None, identity=False)
    """Where the pixels are kept. null: $XDG_CACHE_HOME/normlab, or ~/.cache/normlab."""

    def __post_init__(self) -> None:
        self.name = name_of_target(self, self.target, "my_data:load")
        super().__post_init__()
