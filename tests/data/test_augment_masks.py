"""The same scale, crop and flip for picture and mask, a function of (seed, epoch, sample) alone."""

import pytest
import torch

from normlab.config.config import Precision
from normlab.config.data import ShapesSegConfig
from normlab.data.augment_masks import ScaleAndCrop
from normlab.data.batches import Inputs, TrainBatches
from normlab.data.dataset import IGNORED, MaskedImages
from normlab.numerics import Numerics

CPU = torch.device("cpu")
FP64 = Numerics.of(Precision.fp64, CPU)
MEAN_C = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
SIZES = [(40, 60), (20, 90), (64, 64), (10, 10)]


def pictures(sizes):
    """Each pixel's colour tells its class, which is drawn in blocks of 5 pixels."""
    generator = torch.Generator().manual_seed(0)
    images, masks, places, first = [], [], [], 0
    for height, width in sizes:
        blocks = torch.randint(0, 4, (height // 5 + 1, width // 5 + 1), generator=generator)
        mask = blocks.repeat_interleave(5, 0).repeat_interleave(5, 1)[:height, :width].to(torch.uint8)
        images.append((mask * 60)[..., None].expand(-1, -1, 3).reshape(-1))
        masks.append(mask.reshape(-1))
        places.append([first, height, width])
        first += height * width
    return MaskedImages(torch.cat(images), torch.cat(masks), torch.tensor(places))


def scale_and_crop(**options):
    return ScaleAndCrop(ShapesSegConfig(**{"crop_size": 32, "colour_jitter": 0.0, **options}), MEAN_C)


def fill():
    return (255 * MEAN_C).round().to(torch.uint8)


def test_unaugmented_the_centre_is_cut_out_and_padded_with_ignored_pixels():
    split = pictures(SIZES)
    images_BHWC, labels_BHW = scale_and_crop().batch(split, torch.tensor([0, 3]), None, CPU)
    image, mask = split.sample(0)
    assert torch.equal(images_BHWC[0], image[4:36, 14:46])
    assert torch.equal(labels_BHW[0], mask[4:36, 14:46].long())
    small, small_mask = split.sample(3)
    assert torch.equal(images_BHWC[1, 11:21, 11:21], small)
    assert torch.equal(labels_BHW[1, 11:21, 11:21], small_mask.long())
    assert (labels_BHW[1] == IGNORED).sum() == 32 * 32 - 100
    assert torch.equal(images_BHWC[1, 0, 0], fill())


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_picture_and_its_mask_stay_together_whatever_is_drawn(scale):
    augmentation = scale_and_crop(scale_min=scale, scale_max=scale)
    split, index_B = pictures(SIZES), torch.arange(len(SIZES))
    for epoch in range(20):
        draws = augmentation.draws(len(split), seed=0, epoch=epoch)
        images_BHWC, labels_BHW = augmentation.batch(split, index_B, draws, CPU)
        of_colour = (images_BHWC[..., 0].float() / 60).round().long()
        counted = labels_BHW != IGNORED
        # Between blocks the picture is blurred where it was scaled; within them class and colour agree.
        assert (of_colour == labels_BHW)[counted].float().mean() > (0.999 if scale == 1 else 0.7)
        assert torch.equal(images_BHWC[~counted].unique(dim=0), fill()[None]) or scale != 1 or counted.all()


def test_every_place_and_both_directions_are_drawn():
    split = pictures([(34, 34)])
    mask = split.sample(0)[1].long()
    windows = [w for r in range(3) for c in range(3) for w in (mask[r : r + 32, c : c + 32],)]
    windows += [w.flip(1) for w in windows]
    augmentation = scale_and_crop(scale_min=1.0, scale_max=1.0)
    seen = set()
    for epoch in range(300):
        _, labels_BHW = augmentation.batch(
            split, torch.tensor([0]), augmentation.draws(1, seed=0, epoch=epoch), CPU
        )
        seen.add(next(i for i, w in enumerate(windows) if torch.equal(w, labels_BHW[0])))
    assert seen == set(range(18))


def test_colours_change_within_bounds_and_the_mask_does_not():
    split = pictures([(32, 32)])
    kept, changed = (
        scale_and_crop(scale_min=1, scale_max=1),
        scale_and_crop(scale_min=1, scale_max=1, colour_jitter=0.3),
    )
    draws = kept.draws(1, seed=0, epoch=0)
    plain, labels = kept.batch(split, torch.tensor([0]), draws, CPU)
    jittered, same_labels = changed.batch(split, torch.tensor([0]), draws, CPU)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(plain, jittered)
    draws[:, 4:] = 0.5  # in the middle of the range nothing changes
    assert torch.equal(changed.batch(split, torch.tensor([0]), draws, CPU)[0], plain)


def batches(ranks, first, here, batch_size):
    return TrainBatches(
        pictures(SIZES * 8),
        Inputs(scale_and_crop(), MEAN_C, torch.ones(3, dtype=torch.float64), FP64),
        seed=3,
        batch_size=batch_size,
        accumulate=1,
        logical_ranks=ranks,
        ranks_here=range(first, first + here),
        augment=True,
    )


@pytest.mark.parametrize(("ranks", "here"), [(2, 1), (4, 1), (4, 2), (4, 4)])
def test_invariant_1_ranks_together_see_the_global_batch_of_one(ranks, here):
    shares = [batches(ranks, first, here, 8 // ranks).epoch(1) for first in range(0, ranks, here)]
    state = torch.get_rng_state()
    for [(images_BCHW, labels_BHW)] in batches(1, 0, 1, 8).epoch(1):
        dealt = [part for share in shares for part in next(share)]
        images = torch.cat([images[v::here] for images, _ in dealt for v in range(here)])
        labels = torch.cat([labels[v::here] for _, labels in dealt for v in range(here)])
        assert torch.equal(images, images_BCHW)
        assert torch.equal(labels, labels_BHW)
    assert torch.equal(torch.get_rng_state(), state)
