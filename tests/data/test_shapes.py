"""The embedded default: drawn the same everywhere, balanced, and what it says it is."""

import numpy as np
import pytest
import torch

from normlab.config.data import ShapesConfig
from normlab.data import load, shapes
from normlab.data.order import Stream


def test_a_larger_set_begins_with_the_smaller_one():
    small, large = (shapes.draw(count, Stream.shapes_train) for count in (30, shapes.CHUNK + 10))
    assert torch.equal(large.images_BHWC[:30], small.images_BHWC)
    assert torch.equal(large.labels_B[:30], small.labels_B)
    assert not torch.equal(large.images_BHWC[:10], large.images_BHWC[shapes.CHUNK :])


def test_pictures_depend_on_no_random_state_and_train_differs_from_test():
    first = shapes.draw(20, Stream.shapes_train).images_BHWC
    np.random.seed(1)
    torch.manual_seed(1)
    assert torch.equal(shapes.draw(20, Stream.shapes_train).images_BHWC, first)
    assert not torch.equal(shapes.draw(20, Stream.shapes_test).images_BHWC, first)


def test_the_data_set_is_balanced_rgb_of_32_pixels():
    data = load(ShapesConfig(num_train=200, num_test=50))
    assert data.train.images_BHWC.shape == (200, 32, 32, 3)
    assert data.train.images_BHWC.dtype == torch.uint8
    assert torch.bincount(data.train.labels_B).tolist() == [20] * 10
    assert len(data.val) == 50
    assert len(set(data.classes)) == 10
    assert (data.std_C > 0.1).all()


def test_the_fingerprint_follows_the_counts_and_not_the_subset():
    def fingerprint(**settings):
        return load(ShapesConfig(**{"num_train": 40, "num_test": 10} | settings)).fingerprint

    assert fingerprint() == fingerprint(train_samples=20)
    assert len({fingerprint(), fingerprint(num_train=50), fingerprint(num_test=20)}) == 3


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_shape_lies_around_its_centre_and_within_its_frame(name):
    axis = np.linspace(-2, 2, 401, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    inside = shapes.SHAPES[name](u, v) < 0
    area = inside.mean() * 16
    assert 0.5 < area < np.pi
    assert np.sqrt(u * u + v * v)[inside].max() < 1.3


def test_coverage_of_a_disc_sums_to_its_area():
    radius = np.array([10.0], dtype=np.float32)
    centre, turn = np.array([15.3], dtype=np.float32), np.array([0.7], dtype=np.float32)
    u, v = shapes.local_frame(centre, centre, radius, turn)
    share = shapes.coverage(shapes.SHAPES["disc"](u, v), radius)
    assert share.sum() == pytest.approx(np.pi * (0.9 * 10) ** 2, rel=2e-3)


def test_a_local_frame_turns_moves_and_scales():
    one = np.ones(1, dtype=np.float32)
    u, v = shapes.local_frame(4 * one, 6 * one, 2 * one, np.float32(np.pi / 2) * one)
    assert u.shape == v.shape == (1, 32, 32)
    # The pixel at (x=4, y=8) lies one radius along the shape's own u axis, which points down the picture.
    np.testing.assert_allclose([u[0, 8, 4], v[0, 8, 4]], [1, 0], atol=1e-6)
    np.testing.assert_allclose([u[0, 6, 2], v[0, 6, 2]], [0, 1], atol=1e-6)


def test_paint_lays_the_colour_where_the_share_says():
    images = np.zeros((1, 3, 32, 32), dtype=np.float32)
    share = np.zeros((1, 32, 32), dtype=np.float32)
    share[0, 0] = [1, 0.5] + [0] * 30
    shapes.paint(images, share, np.array([[0.2, 0.4, 0.6]], dtype=np.float32))
    np.testing.assert_allclose(images[0, :, 0, 0], [0.2, 0.4, 0.6])
    np.testing.assert_allclose(images[0, :, 0, 1], [0.1, 0.2, 0.3])
    assert images[0, :, 1:].sum() == 0
