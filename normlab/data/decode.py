"""Decoding image files to uint8 pixels in a small pool of threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from normlab.config import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Files with these suffixes, in upper or lower case, are treated as images."""

BLOCK, BLOCK_BYTES = 256, 2**25
"""A thread decodes at most this many images and bytes at a time, but at least one image."""

LONGEST = 8
"""The longest aspect ratio that is resized as a whole; the ends of longer pictures are cut off first.

A picture of 65000 x 1 pixels would take 10 GB on its way to a square of 224.
"""


def decode_all(paths: list[str], size: int) -> Iterator[np.ndarray]:
    """The images in order, in blocks of uint8 (n, size, size, 3), only a few of which are in memory at once.

    Raises: ConfigError naming the first image that cannot be read.
    """
    count = max(1, min(BLOCK, BLOCK_BYTES // (size * size * 3)))
    blocks = [paths[start : start + count] for start in range(0, len(paths), count)]
    return in_threads(lambda block: _decode_block(block, size), blocks)


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, ahead: int | None = None
) -> Iterator[Result]:
    """work(item) for each item, in order, by a pool of threads, which ends with the iterator.

    At most `ahead` results (default: 2 per worker) are in memory besides the current one. The default of
    `workers` is small.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    ahead = ahead or 2 * workers
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class UnreadableError(ConfigError):
    """An image file that cannot be read. During training, only the rank that reads it knows."""


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An image file. Raises: UnreadableError naming it if it cannot be read, also within the block."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise UnreadableError(f"{path} cannot be read as an image ({reason}); replace or remove it.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB, whatever its mode; transparent pixels keep their stored colour.

    Raises: ValueError for grey values whose black and white the format does not define.
    """
    if image.mode.startswith(("I", "F")):
        image = _grey_of_8_bits(image)
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def _grey_of_8_bits(image: Image.Image) -> Image.Image:
    """Unsigned grey values of 12 or 16 bits, scaled from their full range to 0..255.

    Pillow's own conversion clips, so everything above 255 would be white. Floats, signed and 32-bit integers hold
    heights, counts or shares, and the file does not define which range to show.
    """
    # The range of "I" is known only for PGM, where Pillow scales the file's own maximum to 65535.
    if not image.mode.startswith("I;16") and (image.mode, image.format) != ("I", "PPM"):
        kind = "floats" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"{kind}, with no defined black and white; save it with 8 or 16 bits")
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImageFile):
        [bits] = image.tag_v2.get(BITSPERSAMPLE, (16,))
        white_is_zero = image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    shares = np.asarray(image).astype(np.float64) / (2**bits - 1)
    return Image.fromarray(np.rint(255 * (1 - shares if white_is_zero else shares)).astype(np.uint8))


def grey_values(image: Image.Image) -> np.ndarray:
    """The numbers in a grey or palette file: (H, W) int64.

    Undoes Pillow's scaling of 2 and 4 bits to 0..255, and of a PGM's 0..maximum to 0..255 or 0..65535.
    """
    assert isinstance(image, ImageFile)
    *_, codec = image.tile[0]
    stored, *more = codec if isinstance(codec, tuple) else (codec,)
    most = more[0] if more and image.format == "PPM" else {"L;2": 3, "L;4": 15}.get(str(stored))
    values_HW = np.asarray(image).astype(np.int64)
    if not most:
        return values_HW
    return np.rint(values_HW * (most / (65535 if image.mode == "I" else 255))).astype(np.int64)


def decode(path: str, size: int) -> np.ndarray:
    """One image after `as_rgb` and `as_square`: (size, size, 3) uint8. Raises: ConfigError naming the file."""
    with opened(path) as image:
        image.draft("RGB", (2 * size, 2 * size))  # decode no more of a large JPEG than is needed
        pixels = as_rgb(image)
    return as_square(pixels, size)


def as_square(pixels: Image.Image, size: int) -> np.ndarray:
    """The central square of an RGB image whose shorter side is resized to `size`: (size, size, 3) uint8."""
    pixels = _centre(pixels, *(min(side, LONGEST * min(pixels.size)) for side in pixels.size))
    width, height = pixels.size
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(_centre(pixels, size, size))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _decode_block(paths: list[str], size: int) -> np.ndarray:
    images_BHWC = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    for row, path in enumerate(paths):
        images_BHWC[row] = decode(path, size)
    return images_BHWC
