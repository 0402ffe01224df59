"""Images that are read from their files whenever they are needed, because they have too many pixels to keep."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F

from normlab.data.dataset import Split
from normlab.data.decode import LONGEST, as_rgb, opened
from normlab.data.order import Stream, random_words, unit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel, of pixels in [0, 1], as torchvision uses them. Computing a data set's own would take a pass."""

CENTRE = 0.875
"""In evaluation the shorter side is resized to size / CENTRE (256 for 224) before the centre is cut out."""

AREA, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Share of the picture and width / height of a random part, and how often they are drawn until one fits."""

NUM_DRAWS = 2 * TRIES + 3
"""Area and ratio of each try, row, column, flip."""

SMALLEST_PART = math.sqrt(AREA[0] * RATIO[0])
"""The shorter side of the smallest random part, as a share of the picture's shorter side."""


@dataclass(frozen=True)
class StreamedImages:
    """Image files with one class each."""

    paths: list[str]

    labels_B: torch.Tensor
    """int64, one for each of paths."""

    size: int
    """Side in pixels of the square cut out of each image."""

    @property
    def device(self) -> torch.device:
        return self.labels_B.device

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, index_B: torch.Tensor) -> Self:
        paths = [self.paths[index] for index in index_B.tolist()]
        return replace(self, paths=paths, labels_B=self.labels_B.index_select(0, index_B))

    def eval_groups(self, index_B: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        return list(index_B.split(batch_size))

    def take(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The centres of the images at `index_B`: (B, size, size, 3) uint8, and labels (B,) int64."""
        return self.cut(index_B, lambda pixels_HWC, index: centre(pixels_HWC, self.size))

    def cut(
        self, index_B: torch.Tensor, cut: Callable[[np.ndarray, int], np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cut(pixels_HWC, index) of the images at `index_B`, each (3, size, size), and their labels (B,) int64.

        The images are (B, size, size, 3) uint8, but in memory they are BCHW, as `resized` gives them and a model
        takes them. Raises: UnreadableError naming a file that cannot be read.
        """
        shortest = math.ceil(self.size / SMALLEST_PART)
        images_BCHW = np.empty((len(index_B), 3, self.size, self.size), dtype=np.uint8)
        for row, index in enumerate(index_B.tolist()):
            images_BCHW[row] = cut(read_pixels(self.paths[index], shortest), index)
        return torch.from_numpy(images_BCHW).permute(0, 2, 3, 1), self.labels_B.index_select(0, index_B)


@dataclass(frozen=True)
class ResizedCropAndFlip:
    """Resizes a random part of each streamed image to a square, and flips it at random.

    Source: Szegedy et al. 2014, arXiv:1409.4842, section 6, as torchvision's RandomResizedCrop draws it.
    """

    size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def draws(self, num_samples: int, *, seed: int, epoch: int) -> torch.Tensor:
        """(num_samples,) int64: a word per sample, which seeds its NUM_DRAWS numbers."""
        words = random_words(num_samples, seed=seed, epoch=epoch, stream=Stream.augment)
        return torch.from_numpy(words.view(np.int64))

    def batch(
        self, split: Split, index_B: torch.Tensor, draws: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computed on the CPU, in the calling thread only."""
        assert isinstance(split, StreamedImages)
        if draws is None:
            return split.take(index_B)

        def cut(pixels_HWC: np.ndarray, index: int) -> np.ndarray:
            words = random_words(NUM_DRAWS, seed=int(draws[index]), epoch=0, stream=Stream.resized_crop)
            *of_part, flip = unit(words).tolist()
            height, width, _ = pixels_HWC.shape
            rows, columns = random_part(height, width, of_part)
            part_CHW = resized(pixels_HWC[rows, columns], self.size, self.size)
            return part_CHW[:, :, ::-1] if flip >= 0.5 else part_CHW

        return split.cut(index_B, cut)


def read_pixels(path: str, shortest: int) -> np.ndarray:
    """An image file in 8-bit RGB: (H, W, 3) uint8. Raises: UnreadableError naming the file.

    A large JPEG is decoded at half its size or less, if that leaves `shortest` pixels along its shorter side.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        # The same values as Pillow's, faster, and without Python's lock.
        return simplejpeg.decode_jpeg(content, "RGB", min_height=shortest, min_width=shortest, min_factor=2)
    except (OSError, ValueError):  # another format, or a file that Pillow either reads or refuses by name
        with opened(path) as image:
            return np.array(as_rgb(image))


def random_part(height: int, width: int, drawn: Sequence[float]) -> tuple[slice, slice]:
    """The rows and columns of a random part of an image, from 2 TRIES + 2 numbers on [0, 1).

    Area is uniform on AREA, width / height log-uniform on RATIO, and the place uniform. If no try fits into the
    image, the result is the largest central part whose ratio is within RATIO.
    """
    low, high = (math.log(ratio) for ratio in RATIO)
    for area, log_ratio in zip(drawn[: 2 * TRIES : 2], drawn[1 : 2 * TRIES : 2], strict=True):
        pixels = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
        ratio = math.exp(low + (high - low) * log_ratio)
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(drawn[-2] * (height - h + 1)), int(drawn[-1] * (width - w + 1))
            return slice(top, top + h), slice(left, left + w)
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)


def centre(pixels_HWC: np.ndarray, size: int) -> np.ndarray:
    """The central square of an image whose shorter side is resized to size / CENTRE: (3, size, size) uint8."""
    height, width, _ = pixels_HWC.shape
    longest = LONGEST * min(height, width)
    pixels_HWC = pixels_HWC[_central(height, longest), _central(width, longest)]
    height, width, _ = pixels_HWC.shape
    height, width = (round(size / CENTRE) * side // min(height, width) for side in (height, width))
    return resized(pixels_HWC, height, width)[:, _central(height, size), _central(width, size)]


def _central(length: int, wanted: int) -> slice:
    first = max(0, round((length - wanted) / 2))
    return slice(first, first + wanted)


def resized(pixels_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, with antialiasing: uint8 (H, W, 3) to (3, height, width)."""
    # Torch would copy a part of an image with all its threads, and each of our threads would start as many.
    pixels_HWC = np.ascontiguousarray(pixels_HWC)
    pixels_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    return F.interpolate(pixels_1CHW, (height, width), mode="bilinear", antialias=True)[0].numpy()
