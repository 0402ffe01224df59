"""The order of samples: a function of (seed, epoch) alone, independent of the ranks (invariant 1)."""

import hashlib
from enum import IntEnum

import numpy as np
import torch

from normlab.config import ConfigError


class Stream(IntEnum):
    """The purpose of random words. Each has its own stream, so that none shifts another."""

    order = 0
    augment = 1
    split = 2
    shapes_train = 3
    shapes_test = 4
    precise = 5
    shapes_seg_train = 6
    shapes_seg_test = 7
    resized_crop = 8


def stream_of(purpose: str) -> int:
    """The stream of generated data, whose purpose is not in `Stream`, such as "stripes/train"."""
    digest = hashlib.sha256(purpose.encode()).digest()
    return int.from_bytes(digest[:8], "big") | 2**63  # above those in `Stream`


def random_words(count: int, *, seed: int, epoch: int, stream: int) -> np.ndarray:
    """`count` uniform uint64 words, a pure function of the arguments; fewer are a prefix of more.

    They are raw words of the counter-based Philox, which NumPy keeps the same in all versions, unlike the numbers
    that a Generator derives from them.
    """
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    counter = np.array([0, 0, epoch, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def unit(words: np.ndarray) -> np.ndarray:
    """Uniform float64 numbers on [0, 1), one from each of the uint64 words."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, *, seed: int, epoch: int, stream: int) -> torch.Tensor:
    """(count,) int64: a uniform permutation of range(count)."""
    words = random_words(count, seed=seed, epoch=epoch, stream=stream)
    return torch.from_numpy(np.argsort(words, kind="stable"))


def fixed_permutation(count: int) -> torch.Tensor:
    """(count,) int64: the permutation behind held-out splits and subsets, the same for every seed."""
    return permutation(count, seed=0, epoch=0, stream=Stream.split)


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """The number of complete global batches in the data; an incomplete last one is dropped.

    Raises: ConfigError if there is none.
    """
    if global_batch_size > num_samples:
        raise ConfigError(
            f"batch_size x ranks x accumulate makes a global batch of {global_batch_size}, more than the "
            f"{num_samples} training samples; lower batch_size (or raise data.train_samples)."
        )
    return num_samples // global_batch_size


def epoch_order(
    num_samples: int, *, seed: int, epoch: int, accumulate: int, logical_ranks: int, batch_size: int
) -> torch.Tensor:
    """The sample indices of an epoch: (steps, accumulate, logical_ranks, batch_size) int64.

    Step t has the same samples in the same order however the global batch is split.
    """
    global_batch_size = accumulate * logical_ranks * batch_size
    steps = steps_per_epoch(num_samples, global_batch_size)
    order = permutation(num_samples, seed=seed, epoch=epoch, stream=Stream.order)
    return order[: steps * global_batch_size].view(steps, accumulate, logical_ranks, batch_size)
