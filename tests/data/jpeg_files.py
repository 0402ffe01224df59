"""Folders of small JPEGs of several sizes."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(60, 40), (40, 60), (90, 31), (35, 32), (29, 17)]
"""Width and height."""


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """Smooth colours, as JPEG is meant for; another picture for each number."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [np.sin(3 * (x + number) + c) + np.cos(4 * y * (1 + number % 5) - c) for c in range(3)]
    return Image.fromarray((np.stack(waves, axis=-1) * 60 + 127).astype(np.uint8))


def write_folder(root: Path, train: int, test: int) -> Path:
    """`root` with so many pictures of cats, and of dogs, under train/ and under test/."""
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                number = 2 * i + label
                picture(number, SIZES[number % len(SIZES)]).save(root / split / name / f"{i}.jpg", quality=95)
    return root
