"""Image files to uint8 pixels, by a small pool of threads."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from PIL import Image

from normlab.config import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""What is taken for an image, in any case of letters."""

BLOCK = 256
"""Images a thread decodes before it hands them over."""


def decode_all(paths: list[str], size: int) -> Iterator[np.ndarray]:
    """The images in order, in blocks of uint8 (n, size, size, 3); few blocks are in memory at once.

    Raises: ConfigError naming the first image that cannot be read.
    """
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    return in_threads(lambda block: _decode_block(block, size), blocks)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """work(item) of each item, in order, by a small pool of threads; few results are in memory at once."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """An image file. Raises: ConfigError naming it, where it cannot be read (in the block too)."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as an image ({reason}); replace or remove it.") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """In RGB, whatever its mode; what is transparent keeps the colour that lies there."""
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")


def decode(path: str, size: int) -> np.ndarray:
    """One image as RGB, its shorter side resized to `size`, its centre cut out: (size, size, 3) uint8.

    Raises: ConfigError naming the file.
    """
    with opened(path) as image:
        image.draft("RGB", (2 * size, 2 * size))  # a large JPEG: decode no more than is needed
        pixels = as_rgb(image)
    width, height = pixels.size
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(pixels.crop((left, top, left + size, top + size)))


def _decode_block(paths: list[str], size: int) -> np.ndarray:
    images_BHWC = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    for row, path in enumerate(paths):
        images_BHWC[row] = decode(path, size)
    return images_BHWC
