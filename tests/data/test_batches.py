"""Each process's share of the training and evaluation batches."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from normlab.config import ConfigError
from normlab.config.config import Precision
from normlab.data.augment import CropAndFlip, augment, epoch_draws
from normlab.data.batches import Inputs, TrainBatches, eval_batches, precise_batches
from normlab.data.dataset import LabelledImages
from normlab.data.order import epoch_order
from normlab.distributed import Ranks
from normlab.numerics import Numerics

CPU = torch.device("cpu")
FP64, FP32 = Numerics.of(Precision.fp64, CPU), Numerics.of(Precision.fp32, CPU)
MEAN_C, STD_C = torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 0.25, dtype=torch.float64)
INPUTS = Inputs(CropAndFlip((3, 8, 8)), MEAN_C, STD_C, FP32)
NUM = 70
"""Labels are sample numbers here, so that a batch tells what it holds."""


@pytest.fixture
def split():
    images_BHWC = torch.randint(
        0, 256, (NUM, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return LabelledImages(images_BHWC, torch.arange(NUM))


def batches(split, *, batch_size=16, accumulate=1, ranks=1, first=0, here=1, augment=True, seed=0):
    return TrainBatches(
        split,
        Inputs(CropAndFlip((3, 8, 8)), MEAN_C, STD_C, FP64),
        seed=seed,
        batch_size=batch_size,
        accumulate=accumulate,
        logical_ranks=ranks,
        ranks_here=range(first, first + here),
        augment=augment,
    )


def test_a_step_is_the_augmented_normalised_samples_of_the_order(split):
    order = epoch_order(NUM, seed=0, epoch=3, accumulate=1, logical_ranks=1, batch_size=16)
    draws = epoch_draws(NUM, seed=0, epoch=3)
    steps = list(batches(split).epoch(3))
    assert len(steps) == batches(split).steps_per_epoch == 4
    for [(images_BCHW, labels_B)], indices in zip(steps, order.view(4, 16), strict=True):
        assert torch.equal(labels_B, indices)
        expected = augment(split.images_BHWC[indices], draws[indices])
        assert torch.equal(images_BCHW, FP64.images(expected, MEAN_C, STD_C))


def test_without_augmentation_the_pictures_are_as_they_are(split):
    [(images_BCHW, labels_B)] = next(batches(split, augment=False).epoch(0))
    assert torch.equal(images_BCHW, FP64.images(split.images_BHWC[labels_B], MEAN_C, STD_C))


@pytest.mark.parametrize(("ranks", "here", "accumulate"), [(2, 1, 1), (4, 1, 1), (4, 2, 1), (2, 1, 2), (4, 4, 2)])
def test_processes_together_see_the_global_batches_of_one_rank(split, ranks, here, accumulate):
    shares = [
        batches(
            split,
            batch_size=16 // ranks // accumulate,
            accumulate=accumulate,
            ranks=ranks,
            first=first,
            here=here,
        ).epoch(0)
        for first in range(0, ranks, here)
    ]
    for [(images_BCHW, labels_B)] in batches(split).epoch(0):
        steps = [next(share) for share in shares]
        # A process deals its samples to its logical ranks like cards: sample i is of rank i % here.
        micro = [[t[v::here] for t in step[a]] for a in range(accumulate) for step in steps for v in range(here)]
        assert torch.equal(torch.cat([images for images, _ in micro]), images_BCHW)
        assert torch.equal(torch.cat([labels for _, labels in micro]), labels_B)


def test_an_epoch_from_first_step_on_is_the_tail_of_the_whole(split):
    tail = list(batches(split).epoch(1, first_step=2))
    whole = list(batches(split).epoch(1))[2:]
    assert len(tail) == len(whole) == 2
    for [(images, labels)], [(expected, expected_labels)] in zip(tail, whole, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_global_random_state_is_neither_used_nor_touched(split):
    state = torch.get_rng_state()
    list(batches(split).epoch(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_larger_than_the_data_is_refused_when_the_batches_are_made(split):
    with pytest.raises(ConfigError, match=r"80, more than the 70"):
        batches(split, batch_size=40, ranks=2)


def evaluated(split, rank, world_size, **options):
    ranks = Ranks(rank, world_size, 1, CPU)
    return eval_batches(split, INPUTS, ranks, batch_size=16, **options)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_has_the_same_batches_at_any_world_size(split, world_size):
    shares = [list(evaluated(split, rank, world_size)) for rank in range(world_size)]
    found = [shares[k % world_size][k // world_size] for k in range(5)]
    assert sum(map(len, shares)) == 5
    assert [len(labels) for _, labels in found] == [16, 16, 16, 16, 6]
    assert torch.cat([labels for _, labels in found]).tolist() == list(range(NUM))
    expected = FP32.images(split.images_BHWC, MEAN_C, STD_C)
    assert torch.equal(torch.cat([images for images, _ in found]), expected)


def test_a_limit_takes_that_many_distinct_samples_from_all_over_the_split(split):
    labels = torch.cat([labels for rank in (0, 1) for _, labels in evaluated(split, rank, 2, limit=20)])
    assert len(labels) == len(labels.unique()) == 20
    assert labels.max() >= 35  # not the first 20, which a sorted folder would fill with one class
    assert sum(len(labels) for _, labels in evaluated(split, 0, 1, limit=1000)) == NUM


@pytest.mark.parametrize(("samples", "sizes"), [(15, []), (16, [16]), (40, [32]), (1000, [32, 32])])
def test_statistics_are_computed_on_whole_chunks_and_on_none_where_there_is_none(split, samples, sizes):
    batches = precise_batches(
        split,
        INPUTS,
        Ranks(0, 1, 1, CPU),
        seed=0,
        samples=samples,
        chunk_size=16,
        chunks_per_batch=2,
    )
    assert [len(labels_B) for _, labels_B in batches] == sizes


class Copies(TorchDispatchMode):
    """Counts what is copied from one device to another."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::_to_copy" and kwargs.get("device") not in (None, args[0].device):
            self.number += 1
        return func(*args, **(kwargs or {}))


def test_of_images_that_lie_on_the_device_nothing_is_copied_there_in_an_epoch(split):
    meta = torch.device("meta")
    on_meta = LabelledImages(split.images_BHWC.to(meta), split.labels_B.to(meta))
    numerics = Numerics.of(Precision.fp32, meta)
    inputs = Inputs(CropAndFlip((3, 8, 8)), MEAN_C.to(meta), STD_C.to(meta), numerics)
    shape = {"batch_size": 16, "accumulate": 1, "logical_ranks": 1, "ranks_here": range(1)}
    for there, expected in ((on_meta, 0), (split, 9)):  # images, draws and labels of three steps
        steps = TrainBatches(there, inputs, seed=0, augment=True, **shape).epoch(0)
        next(steps)
        with Copies() as copies:
            [(images_BCHW, labels_B)] = list(steps)[-1]
        assert (images_BCHW.device, labels_B.device) == (meta, meta)
        assert copies.number == expected
    ranks = Ranks(0, 1, 1, meta)
    assert len(list(eval_batches(on_meta, inputs, ranks, batch_size=16, limit=20))) == 2
    chunks = precise_batches(on_meta, inputs, ranks, seed=0, samples=20, chunk_size=4, chunks_per_batch=2)
    assert [len(labels_B) for _, labels_B in chunks] == [8, 8, 4]
