"""Pictures of several of the ten shapes, 64x64 RGB, with the class of each pixel: nothing to download.

Drawn like `shapes`, with the same grounds, colours and noise. A pixel that an edge runs through belongs to
neither side: it is ignored, like borders in Pascal VOC.
"""

import numpy as np
import torch

from normlab.config.data import ShapesSegConfig
from normlab.data.dataset import IGNORED, MaskedImages, PixelMoments, Source
from normlab.data.listing import Tell
from normlab.data.masks import palette
from normlab.data.order import Stream, random_words
from normlab.data.shapes import SHAPES, Dice, coverage, differing, ground, local_frame, paint, to_uint8

VERSION = 1
"""Increment it when any pixel changes."""

SIDE = 64
CHUNK = 50
"""Pictures drawn at once, always in full, so that a larger set begins with the smaller one."""

OBJECTS = 4
"""Places for shapes in a picture: the last is always taken, the others each in two pictures out of three."""

CLASSES = ["background", *SHAPES]


def _draw_chunk(dice: Dice, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, SIDE, SIDE, 3) and masks (count, SIDE, SIDE), uint8; later shapes lie over earlier ones."""
    images_NCHW, colour_NC = ground(dice, count, SIDE)
    masks_NHW = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    for place in range(OBJECTS):
        there_N = dice.uniform(0.0, 3.0, count) < (3 if place == OBJECTS - 1 else 2)
        label_N = dice.uniform(0.0, len(SHAPES), count).astype(int)
        radius_N, turn_N = dice.uniform(7.0, 14.0, count), dice.uniform(-0.5, 0.5, count)
        x_N, y_N = dice.uniform(4.0, SIDE - 5.0, 2, count)
        shape_colour_NC = differing(dice, colour_NC, 0.35, 0.9)
        squeeze_N = dice.uniform(1.0, 1.25, count)
        for label, signed_distance in enumerate(SHAPES.values()):
            (own,) = np.nonzero(there_N & (label_N == label))
            u, v = local_frame(x_N[own], y_N[own], radius_N[own], turn_N[own], SIDE)
            share_NHW = coverage(signed_distance(u, v * squeeze_N[own, None, None]), radius_N[own])
            pictures = images_NCHW[own]
            paint(pictures, share_NHW, shape_colour_NC[own])
            images_NCHW[own] = pictures
            labels_NHW = np.where(share_NHW == 1, np.uint8(1 + label), np.uint8(IGNORED))
            masks_NHW[own] = np.where(share_NHW > 0, labels_NHW, masks_NHW[own])
    noise_N = dice.uniform(0.01, 0.06, count)
    images_NCHW += dice.bell(count, 3, SIDE, SIDE) * noise_N[:, None, None, None]
    return to_uint8(images_NCHW), masks_NHW


def draw(count: int, stream: Stream) -> MaskedImages:
    """The first `count` pictures of a stream."""
    words = 80 * CHUNK + CHUNK * 3 * SIDE * SIDE // 2
    images_BHWC = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    masks_BHW = np.empty((count, SIDE, SIDE), dtype=np.uint8)
    for chunk, start in enumerate(range(0, count, CHUNK)):
        dice = Dice(random_words(words, seed=0, epoch=chunk, stream=stream))
        here = slice(start, start + CHUNK)
        images_NHWC, masks_NHW = _draw_chunk(dice, CHUNK)
        images_BHWC[here], masks_BHW[here] = images_NHWC[: count - start], masks_NHW[: count - start]
    places_B3 = torch.tensor([[index * SIDE * SIDE, SIDE, SIDE] for index in range(count)])
    return MaskedImages(torch.from_numpy(images_BHWC.ravel()), torch.from_numpy(masks_BHW.ravel()), places_B3)


def read(cfg: ShapesSegConfig, tell: Tell) -> Source:
    """cfg.num_train and cfg.num_test pictures, the same in every process; larger sets begin with smaller ones."""
    train = draw(cfg.num_train, Stream.shapes_seg_train)
    moments = PixelMoments()
    moments.add(train.pixels.view(-1, 3).numpy())
    mean_C, std_C = moments.result()
    return Source(
        train=train,
        test=draw(cfg.num_test, Stream.shapes_seg_test),
        classes=CLASSES,
        fingerprint=f"shapes_seg-{VERSION}-{cfg.num_train}-{cfg.num_test}",
        mean_C=mean_C,
        std_C=std_C,
        palette_K3=palette(len(CLASSES), background=True),
    )
