"""The embedded segmentation data: pictures with several shapes, the same in every process."""

import numpy as np
import torch

from normlab.config.data import ShapesSegConfig
from normlab.data import load, shapes_seg
from normlab.data.dataset import IGNORED
from normlab.data.order import Stream


def test_a_larger_set_begins_with_the_smaller_one():
    small, large = (shapes_seg.draw(count, Stream.shapes_seg_train) for count in (30, 70))
    assert torch.equal(large.pixels[: len(small.pixels)], small.pixels)
    assert torch.equal(large.labels[: len(small.labels)], small.labels)
    assert not torch.equal(shapes_seg.draw(30, Stream.shapes_seg_test).pixels, small.pixels)


def test_every_class_is_there_and_pictures_hold_several_objects():
    data = load(ShapesSegConfig(num_train=200, num_test=10))
    masks = torch.stack([data.train.sample(i)[1] for i in range(200)])
    assert masks.unique().tolist() == [*range(11), IGNORED]
    assert data.classes[0] == "background"
    objects = [len(set(mask.unique().tolist()) - {0, IGNORED}) for mask in masks]
    assert min(objects) >= 1
    assert 2 < np.mean(objects) < 4
    share = torch.bincount(masks.flatten().int(), minlength=256) / masks.numel()
    assert 0.4 < share[0] < 0.9
    assert share[IGNORED] < 0.15
    assert share[1:11].min() > 0.003


def test_a_shape_has_another_colour_than_what_lies_around_it():
    data = load(ShapesSegConfig(num_train=50, num_test=10))
    differences = []
    for index in range(50):
        image_HWC, mask_HW = data.train.sample(index)
        ground = image_HWC[mask_HW == 0].double().mean(0)
        for label in set(mask_HW.unique().tolist()) - {0, IGNORED}:
            differences.append((image_HWC[mask_HW == label].double().mean(0) - ground).norm().item())
    assert np.median(differences) > 50


def test_pictures_do_not_change_between_versions():
    split = shapes_seg.draw(2, Stream.shapes_seg_train)
    assert (int(split.pixels.sum()), int(split.labels.long().sum())) == PINNED


PINNED = (3569180, 133218)
"""Sums of the pixels and labels of the first two pictures: raise shapes_seg.VERSION when they change."""
