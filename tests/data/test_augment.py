"""Augmentation and normalisation against a loop over samples."""

import numpy as np
import pytest
import torch

from normlab.data.augment import PAD, augment, epoch_draws

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmented_one_by_one(images_BHWC, draws_B3):
    _, H, W, _ = images_BHWC.shape
    out = []
    for image, (row, column, flip) in zip(images_BHWC.numpy(), draws_B3.tolist(), strict=True):
        flipped = image[:, ::-1] if flip else image
        padded = np.pad(flipped, ((PAD, PAD), (PAD, PAD), (0, 0)))
        out.append(padded[row : row + H, column : column + W])
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(64, 32, 32, 3), (5, 7, 12, 3), (1, 4, 4, 3)])
def test_augmentation_of_a_batch_equals_that_of_each_sample(shape, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images_BHWC, draws_B3 = images(*shape), epoch_draws(shape[0], seed=0, epoch=0)
    expected = augmented_one_by_one(images_BHWC, draws_B3)
    found = augment(images_BHWC.to(device), draws_B3.to(device))
    assert found.dtype == torch.uint8
    assert torch.equal(found.cpu(), expected)


def test_the_outermost_crops_stay_within_their_own_image():
    corners = torch.tensor([[r, c, f] for r in (0, 2 * PAD) for c in (0, 2 * PAD) for f in (0, 1)])
    images_BHWC = images(8, 6, 6, 3)
    assert torch.equal(augment(images_BHWC, corners), augmented_one_by_one(images_BHWC, corners))


def test_draws_cover_every_offset_and_both_flips_evenly():
    draws = epoch_draws(18000, seed=0, epoch=0)
    for column, choices in enumerate((2 * PAD + 1, 2 * PAD + 1, 2)):
        counts = torch.bincount(draws[:, column], minlength=choices)
        assert len(counts) == choices
        assert (counts - 18000 / choices).abs().max() < 5 * (18000 / choices) ** 0.5


def test_draws_are_a_function_of_seed_epoch_and_sample():
    draws = epoch_draws(100, seed=1, epoch=2)
    torch.manual_seed(5)
    assert torch.equal(draws, epoch_draws(100, seed=1, epoch=2))
    assert torch.equal(draws[:10], epoch_draws(10, seed=1, epoch=2))
    assert not torch.equal(draws, epoch_draws(100, seed=1, epoch=3))
    assert not torch.equal(draws, epoch_draws(100, seed=2, epoch=2))
