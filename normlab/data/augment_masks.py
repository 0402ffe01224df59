"""How pictures with masks become a training batch: with the same random scale, crop and flip for both."""

from dataclasses import dataclass

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from normlab.config.data import SegmentationConfig
from normlab.data.dataset import IGNORED, MaskedImages, Split
from normlab.data.order import Stream, random_words, unit

NUM_DRAWS = 7


@dataclass(frozen=True)
class ScaleAndCrop:
    """Cuts a square of crop_size pixels from each picture, scaled, flipped and jittered at random.

    A scaled picture that is smaller than the square is put at a random place in it; the pixels around it have
    the mean colour and are ignored.
    """

    cfg: SegmentationConfig
    mean_C: torch.Tensor

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.cfg.crop_size, self.cfg.crop_size

    def draws(self, num_samples: int, *, seed: int, epoch: int) -> torch.Tensor:
        """(num_samples, 7) float64 on [0, 1): scale, row, column, flip, brightness, contrast, saturation."""
        words = random_words(num_samples * NUM_DRAWS, seed=seed, epoch=epoch, stream=Stream.augment)
        return torch.from_numpy(unit(words).reshape(num_samples, NUM_DRAWS))

    def batch(
        self, split: Split, index_B: torch.Tensor, draws: torch.Tensor | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, crop_size, crop_size, 3) uint8 and labels (B, crop_size, crop_size) int64."""
        assert isinstance(split, MaskedImages)
        size = self.cfg.crop_size
        images_BHWC = torch.empty(len(index_B), size, size, 3, dtype=torch.uint8)
        labels_BHW = torch.empty(len(index_B), size, size, dtype=torch.int64)
        for row, index in enumerate(index_B.tolist()):
            image_HWC, mask_HW = split.sample(index)
            drawn = None if draws is None else draws[index].tolist()
            image_CHW, mask_HW = self._cut(image_HWC.permute(2, 0, 1), mask_HW, drawn)
            images_BHWC[row], labels_BHW[row] = image_CHW.permute(1, 2, 0), mask_HW
        return images_BHWC.to(device), labels_BHW.to(device)

    def _cut(
        self, image_CHW: torch.Tensor, mask_HW: torch.Tensor, drawn: list[float] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cfg = self.cfg
        factor, row, column, flip, *jitter = drawn or [1.0, 0.5, 0.5, 0.0]
        if drawn is not None:
            factor = cfg.scale_min + (cfg.scale_max - cfg.scale_min) * factor
        # The square is cut out before it is scaled, so that the rest of the picture is never touched.
        side = max(1, round(cfg.crop_size / factor))
        image_CHW = _window(image_CHW, side, row, column, (255 * self.mean_C).round().to(torch.uint8))
        mask_HW = _window(mask_HW[None], side, row, column, torch.tensor([IGNORED], dtype=torch.uint8))[0]
        if side != cfg.crop_size:
            size = [cfg.crop_size, cfg.crop_size]
            image_CHW = functional.resize(image_CHW, size, InterpolationMode.BILINEAR, antialias=True)
            mask_HW = functional.resize(tv_tensors.Mask(mask_HW), size)  # takes the nearest pixel
        if flip >= 0.5:
            image_CHW, mask_HW = image_CHW.flip(-1), mask_HW.flip(-1)
        changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
        for change, share in zip(changes, jitter, strict=False):
            image_CHW = change(image_CHW, 1 + cfg.colour_jitter * (2 * share - 1))
        return image_CHW, mask_HW


def _window(planes_CHW: torch.Tensor, side: int, row: float, column: float, fill_C: torch.Tensor) -> torch.Tensor:
    """A copy of a square of `side` x `side` pixels; `row` and `column` in [0, 1) choose among its possible places.

    Along an axis shorter than `side`, the picture lies within the square; otherwise the square lies within it.
    """
    window_CHW = fill_C[:, None, None].repeat(1, side, side)
    source, target = [slice(None)], [slice(None)]
    for length, share in zip(planes_CHW.shape[1:], (row, column), strict=True):
        first = int(share * (abs(length - side) + 1))
        span = min(length, side)
        source.append(slice(first, first + span) if length >= side else slice(0, span))
        target.append(slice(0, span) if length >= side else slice(first, first + span))
    window_CHW[tuple(target)] = planes_CHW[tuple(source)]
    return window_CHW
