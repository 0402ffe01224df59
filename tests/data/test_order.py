"""Invariant 1: the order of the data is a function of (seed, epoch) alone."""

import numpy as np
import pytest
import torch

from normlab.config import ConfigError
from normlab.data.order import Stream, epoch_order, fixed_permutation, random_words, steps_per_epoch, stream_of


def order(num_samples=100, *, seed=0, epoch=0, accumulate=1, logical_ranks=1, batch_size=8):
    return epoch_order(
        num_samples,
        seed=seed,
        epoch=epoch,
        accumulate=accumulate,
        logical_ranks=logical_ranks,
        batch_size=batch_size,
    )


@pytest.mark.parametrize(
    ("accumulate", "logical_ranks", "batch_size"), [(1, 2, 4), (1, 4, 2), (2, 2, 2), (8, 1, 1), (1, 1, 8)]
)
def test_global_batch_t_is_the_same_however_it_is_split(accumulate, logical_ranks, batch_size):
    split = order(accumulate=accumulate, logical_ranks=logical_ranks, batch_size=batch_size)
    assert split.shape == (12, accumulate, logical_ranks, batch_size)
    assert torch.equal(split.view(12, 8), order().view(12, 8))


def test_each_sample_comes_once_but_for_the_incomplete_last_batch():
    indices = order().flatten()
    assert indices.dtype == torch.int64
    assert len(indices) == len(indices.unique()) == 96
    assert indices.min() >= 0
    assert indices.max() < 100


def test_global_random_state_neither_decides_the_order_nor_is_touched():
    first = order()
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.get_rng_state()
    assert torch.equal(order(), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_seed_and_epoch_has_an_order_of_its_own():
    orders = {tuple(order(seed=seed, epoch=epoch).flatten().tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_the_order_stays_what_it_is():
    assert order(8, seed=3, epoch=2).flatten().tolist() == [1, 5, 4, 2, 6, 3, 0, 7]


def test_fewer_words_are_a_prefix_of_more_and_streams_differ():
    words = random_words(10, seed=1, epoch=2, stream=Stream.augment)
    np.testing.assert_array_equal(words[:4], random_words(4, seed=1, epoch=2, stream=Stream.augment))
    assert not (words == random_words(10, seed=1, epoch=2, stream=Stream.order)).any()


def test_the_fixed_permutation_is_a_permutation():
    assert fixed_permutation(50).sort().values.tolist() == list(range(50))


def test_a_global_batch_larger_than_the_data_is_an_error_that_names_both():
    assert steps_per_epoch(100, 8) == 12
    with pytest.raises(ConfigError, match=r"batch_size.* 128, more than the 100 training samples"):
        steps_per_epoch(100, 128)


def test_a_named_stream_stays_what_it_is_and_meets_no_other():
    assert stream_of("stripes/train") == 0x85618347DDF97A91
    streams = [*Stream, stream_of("stripes/train"), stream_of("stripes/test")]
    words = np.concatenate([random_words(100, seed=0, epoch=0, stream=stream) for stream in streams])
    assert len(np.unique(words)) == 100 * len(streams)
