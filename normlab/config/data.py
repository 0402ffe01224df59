"""What is trained and evaluated on."""

from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from normlab.config.section import Section, setting


@dataclass(kw_only=True)
class DataConfig(Section):
    """What all data have."""

    group: ClassVar[str] = "data"

    name: str = MISSING
    """Which data: the name of a file under conf/data."""

    train_samples: int | None = setting(None, minimum=1)
    """Samples to train on: a fixed subset, the same for every seed. null: all."""

    val_fraction: float = setting(0.0, minimum=0, below=1)
    """Share of the training folder that is held out as val; test is then evaluated once, at the end."""

    augment: bool = True
    """Random crop after padding by 4 pixels, and random horizontal flip."""


@dataclass(kw_only=True)
class ShapesConfig(DataConfig):
    """Pictures of ten shapes, 32x32 RGB, drawn in the process: nothing to download."""

    name: str = "shapes"

    num_train: int = setting(8000, minimum=10)
    """Training pictures to draw."""

    num_test: int = setting(2000, minimum=10)
    """Test pictures to draw."""


@dataclass(kw_only=True)
class CifarConfig(DataConfig):
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), through torchvision."""

    name: str = "cifar10"

    root: str = setting("data", identity=False)
    """Folder that holds the archive, or gets it."""

    download: bool = setting(True, identity=False)
    """Fetch the archive where it is missing (its checksum is verified either way)."""


@dataclass(kw_only=True)
class ImageFolderConfig(DataConfig):
    """Class folders of images under train/ and test/ (or val/)."""

    name: str = "image_folder"

    root: str | None = setting(None, identity=False)
    """Folder that holds train/<class>/ and test/<class>/ (or val/<class>/)."""

    image_size: int = setting(32, minimum=4)
    """Side in pixels: the shorter side is resized to it, then the centre is cut out."""

    cache_dir: str | None = setting(None, identity=False)
    """Where decoded pixels are kept. null: $XDG_CACHE_HOME/normlab, or ~/.cache/normlab."""
