"""Pictures of ten shapes, 32x32 RGB, drawn in the process: a realistic enough task with nothing to download.

Each picture shows one shape at a random place, size, angle and colour, on a lit and textured ground, between
distractors and under noise. Edges are anti-aliased by the signed distance to them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from normlab.config.data import ShapesConfig
from normlab.data.dataset import LabelledImages, PixelMoments, Source
from normlab.data.listing import Tell
from normlab.data.order import Stream, random_words

VERSION = 1
"""Increment it when any pixel changes."""

SIDE = 32
CHUNK = 100
"""Pictures drawn at once, always in full, so that a larger set begins with the smaller one."""


# --- shapes: signed distance (negative inside) in the shape's own frame, where it fills the unit disc ----


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.sqrt(u * u + v * v) - np.float32(0.9)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(u * u + v * v) - np.float32(0.72)) - np.float32(0.22)


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(u) - np.float32(half_width), np.abs(v) - np.float32(half_height))


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 0.75, 0.75)


def _bar(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 1.0, 0.36)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(_box(u, v, 0.95, 0.3), _box(u, v, 0.3, 0.95))


def _two_furthest_sides(u: np.ndarray, v: np.ndarray, sides: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest and second largest projection of a point on the `sides` normals of a regular polygon."""
    first = np.full_like(u, -np.inf)
    second = first.copy()
    for angle in np.arange(sides) * (2 * np.pi / sides):
        along = np.float32(np.cos(angle)) * u + np.float32(np.sin(angle)) * v
        second = np.maximum(second, np.minimum(first, along))
        first = np.maximum(first, along)
    return first, second


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _two_furthest_sides(u, v, 3)[0] - np.float32(0.52)


def _corner(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(_box(u, v, 0.8, 0.8), np.minimum(u, v) + np.float32(0.2))


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # The pentagram is the set of points outside at most one side of its inner pentagon.
    return _two_furthest_sides(u, v, 5)[1] - np.float32(0.33)


def _half_disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v + np.float32(0.42)
    return np.maximum(np.sqrt(u * u + v * v) - np.float32(1.0), -v)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u = u - np.float32(0.15)
    bite = u + np.float32(-0.5)
    return np.maximum(np.sqrt(u * u + v * v) - np.float32(1.0), np.float32(0.8) - np.sqrt(bite * bite + v * v))


SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "bar": _bar,
    "cross": _cross,
    "triangle": _triangle,
    "corner": _corner,
    "star": _star,
    "half_disc": _half_disc,
    "crescent": _crescent,
}
"""Class name -> signed distance at (u, v), all float32 of one shape. The order is that of the labels."""


# --- drawing: n pictures at once, planar float32 (n, 3, SIDE, SIDE) in [0, 1] ----------------------------


@dataclass
class Dice:
    """Random numbers from raw words, used up in order."""

    words: np.ndarray

    def _next(self, count: int) -> np.ndarray:
        taken, self.words = self.words[:count], self.words[count:]
        assert len(taken) == count
        return taken

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """float32 on [low, high)."""
        unit = (self._next(int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return (np.float32(low) + np.float32(high - low) * unit).reshape(shape)

    def bell(self, *shape: int) -> np.ndarray:
        """float32, mean 0, deviation 1: the centred sum of four uniform 8-bit numbers, two to a word."""
        bytes_ = self._next(int(np.prod(shape)) // 2).view(np.uint8)
        quads = bytes_.reshape(-1, 4)
        total = quads.astype(np.uint16) @ np.ones(4, np.uint16)
        return ((total.astype(np.float32) - np.float32(510)) * np.float32(1 / 147.8)).reshape(shape)


def local_frame(
    x_N: np.ndarray, y_N: np.ndarray, radius_N: np.ndarray, turn_N: np.ndarray, side: int = SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (u, v), each (n, side, side), of every pixel in the frames of shapes at (x, y), in radii."""
    axis = np.arange(side, dtype=np.float32)
    cos, sin = (np.float32(1) / radius_N) * np.cos(turn_N), (np.float32(1) / radius_N) * np.sin(turn_N)
    across, down = axis - x_N[:, None], axis - y_N[:, None]
    u = (cos[:, None] * across)[:, None, :] + (sin[:, None] * down)[:, :, None]
    v = (cos[:, None] * down)[:, :, None] - (sin[:, None] * across)[:, None, :]
    return u, v


def coverage(distance_NHW: np.ndarray, radius_N: np.ndarray) -> np.ndarray:
    """The share of each pixel inside a shape, in [0, 1], from the distance in radii to its edge."""
    return np.clip(np.float32(0.5) - distance_NHW * radius_N[:, None, None], 0, 1)


def paint(images_NCHW: np.ndarray, share_NHW: np.ndarray, colour_NC: np.ndarray) -> None:
    """Blend a colour into each picture, in place, by a share per pixel."""
    for channel in range(3):
        plane = images_NCHW[:, channel]
        plane += share_NHW * (colour_NC[:, channel, None, None] - plane)


def ground(dice: Dice, count: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of lit, textured ground, and the colour of each before light and texture."""
    colour_NC = dice.uniform(0.25, 0.75, count, 3)
    light_N = dice.uniform(0.0, 0.25, count)
    wave_N = dice.uniform(0.0, 0.06, count)
    parameters = dice.uniform(0.0, 1.0, 6, count)
    centre = np.full(count, side / 2, dtype=np.float32)
    turn_N, wave_turn_N, length_N, phase_N = (
        parameters[0] * np.float32(2 * np.pi),
        parameters[1] * np.float32(np.pi),
        parameters[2] * np.float32(1.6) + np.float32(0.5),
        parameters[3] * np.float32(2 * np.pi),
    )
    slope, _ = local_frame(centre, centre, centre, turn_N, side)
    ripple, _ = local_frame(centre, centre, length_N, wave_turn_N, side)
    shade = slope * light_N[:, None, None] + np.sin(ripple + phase_N[:, None, None]) * wave_N[:, None, None]
    return colour_NC[:, :, None, None] + shade[:, None], colour_NC


def differing(dice: Dice, colour_NC: np.ndarray, low: float, high: float) -> np.ndarray:
    """A colour for each given one, `low` to `high` away from it in a random direction of RGB space."""
    direction_NC = dice.uniform(-1.0, 1.0, *colour_NC.shape)
    length_N1 = np.sqrt((direction_NC**2).sum(1, keepdims=True)) + np.float32(1e-6)
    return colour_NC + direction_NC / length_N1 * dice.uniform(low, high, len(colour_NC), 1)


def _distract(dice: Dice, images_NCHW: np.ndarray, colour_NC: np.ndarray) -> None:
    """A strip and a spot over each picture: strokes that look like parts of a shape."""
    count = len(images_NCHW)
    for shape, low, high, stretch in (("bar", 1.5, 3.5, 0.5), ("disc", 1.2, 2.5, 1.0)):
        x_N, y_N = dice.uniform(0.0, SIDE - 1.0, 2, count)
        radius_N, turn_N = dice.uniform(low, high, count), dice.uniform(0.0, 2 * np.pi, count)
        u, v = local_frame(x_N, y_N, radius_N, turn_N)
        share = coverage(SHAPES[shape](u * np.float32(stretch), v), radius_N)
        paint(images_NCHW, share, differing(dice, colour_NC, 0.1, 0.35))


def _draw_chunk(dice: Dice, count: int) -> np.ndarray:
    """Pictures 0, 1, ... of classes 0, 1, ..., 9, 0, ...: uint8 (count, SIDE, SIDE, 3)."""
    images_NCHW, colour_NC = ground(dice, count)
    radius_N, turn_N = dice.uniform(9.0, 14.0, count), dice.uniform(-0.5, 0.5, count)
    reach_N = np.float32(SIDE / 2 - 0.5) - radius_N * np.float32(0.75)
    x_N, y_N = np.float32(SIDE / 2 - 0.5) + dice.uniform(-1.0, 1.0, 2, count) * reach_N
    shape_colour_NC = differing(dice, colour_NC, 0.35, 0.9)
    squeeze_N = dice.uniform(1.0, 1.25, count)
    for label, signed_distance in enumerate(SHAPES.values()):
        own = slice(label, None, len(SHAPES))
        u, v = local_frame(x_N[own], y_N[own], radius_N[own], turn_N[own])
        share = coverage(signed_distance(u, v * squeeze_N[own, None, None]), radius_N[own])
        paint(images_NCHW[own], share, shape_colour_NC[own])
    _distract(dice, images_NCHW, colour_NC)
    noise_N = dice.uniform(0.01, 0.06, count)
    images_NCHW += dice.bell(count, 3, SIDE, SIDE) * noise_N[:, None, None, None]
    return to_uint8(images_NCHW)


def to_uint8(images_NCHW: np.ndarray) -> np.ndarray:
    """(n, H, W, 3) bytes from planes in [0, 1]; values outside are clipped."""
    pixels = np.clip(images_NCHW * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def draw(count: int, stream: Stream) -> LabelledImages:
    """The first `count` pictures of a stream, with label i % 10 for picture i."""
    words = 80 * CHUNK + CHUNK * 3 * SIDE * SIDE // 2
    images_BHWC = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for chunk, start in enumerate(range(0, count, CHUNK)):
        dice = Dice(random_words(words, seed=0, epoch=chunk, stream=stream))
        images_BHWC[start : start + CHUNK] = _draw_chunk(dice, CHUNK)[: count - start]
    labels_B = torch.arange(count) % len(SHAPES)
    return LabelledImages(torch.from_numpy(images_BHWC), labels_B)


def read(cfg: ShapesConfig, tell: Tell) -> Source:
    """cfg.num_train and cfg.num_test pictures, the same in every process; larger sets begin with smaller ones."""
    train = draw(cfg.num_train, Stream.shapes_train)
    moments = PixelMoments()
    moments.add(train.images_BHWC.numpy())
    mean_C, std_C = moments.result()
    return Source(
        train=train,
        test=draw(cfg.num_test, Stream.shapes_test),
        classes=list(SHAPES),
        fingerprint=f"shapes-{VERSION}-{cfg.num_train}-{cfg.num_test}",
        mean_C=mean_C,
        std_C=std_C,
    )
