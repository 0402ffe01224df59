"""Splits and subsets are fixed: they depend on nothing but the data and their own settings."""

from types import SimpleNamespace

import pytest
import torch

from normlab.config import ConfigError
from normlab.config.data import ShapesConfig
from normlab.data import load
from normlab.data.dataset import LabelledImages, PixelMoments, Source, moved, near, split_source


@pytest.fixture
def source():
    def split(start, count):
        labels = torch.arange(start, start + count)
        return LabelledImages(labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3).contiguous(), labels)

    ones = torch.ones(3, dtype=torch.float64)
    return Source(split(0, 100), split(100, 20), ["a"], "fingerprint", ones, ones)


def samples(split):
    return split.take(torch.arange(len(split)))[1].tolist()


def test_without_a_fraction_val_is_the_test_folder(source):
    data = split_source(source, ShapesConfig())
    assert (data.eval_split, data.test) == ("test", None)
    assert samples(data.train) == list(range(100))
    assert samples(data.val) == list(range(100, 120))


def test_held_out_val_and_train_are_the_training_folder_in_two(source):
    data = split_source(source, ShapesConfig(val_fraction=0.2))
    assert data.eval_split == "val"
    assert data.test is not None
    assert samples(data.test) == list(range(100, 120))
    assert len(data.val) == 20
    assert sorted(samples(data.train) + samples(data.val)) == list(range(100))


def test_val_does_not_change_with_train_samples_and_subsets_are_nested(source):
    large = split_source(source, ShapesConfig(val_fraction=0.2, train_samples=50))
    small = split_source(source, ShapesConfig(val_fraction=0.2, train_samples=10))
    assert (
        samples(large.val)
        == samples(small.val)
        == samples(split_source(source, ShapesConfig(val_fraction=0.2)).val)
    )
    assert len(small.train) == 10
    assert set(samples(small.train)) < set(samples(large.train))
    assert max(samples(small.train)) > 50  # from all over the folder


def test_a_subset_copies_no_pixels(source):
    data = split_source(source, ShapesConfig(val_fraction=0.2, train_samples=10))
    assert data.train.images_BHWC.data_ptr() == source.train.images_BHWC.data_ptr()


def test_take_gives_pictures_with_their_own_labels(source):
    images_BHWC, labels_B = split_source(source, ShapesConfig(train_samples=30)).train.take(
        torch.tensor([7, 3, 7])
    )
    assert torch.equal(images_BHWC[:, 0, 0, 0].long(), labels_B)
    assert labels_B[0] == labels_B[2] != labels_B[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"train_samples": 101}, ["data.train_samples=101", "100", "null"]),
        ({"train_samples": 90, "val_fraction": 0.2}, ["data.train_samples=90", "80", "val_fraction=0.2", "20"]),
        ({"val_fraction": 0.001}, ["data.val_fraction=0.001", "100", "none"]),
        ({"val_fraction": 0.999}, ["data.val_fraction=0.999", "100", "none"]),
    ],
)
def test_an_empty_split_or_too_large_a_subset_is_one_line_with_numbers(source, settings, words):
    with pytest.raises(ConfigError) as caught:
        split_source(source, ShapesConfig(**settings))
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_moments_are_those_of_all_pixels_however_they_are_cut_into_blocks():
    images = torch.randint(0, 256, (9, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moments = PixelMoments()
    moments.add(images[:2].numpy())
    moments.add(images[2:].numpy())
    mean_C, std_C = moments.result()
    pixels = images.view(-1, 3).double() / 255
    torch.testing.assert_close(mean_C, pixels.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(std_C, pixels.std(0, correction=0), rtol=1e-12, atol=0)


def test_load_applies_the_settings_to_the_source():
    data = load(ShapesConfig(num_train=40, num_test=10, val_fraction=0.25, train_samples=20))
    assert (len(data.train), len(data.val), len(data.classes)) == (20, 10, 10)


def test_images_that_fit_easily_are_kept_on_a_gpu_and_splits_share_them_there(source, monkeypatch):
    dataset = split_source(source, ShapesConfig(val_fraction=0.2))
    assert near(dataset, torch.device("cpu")) is dataset
    monkeypatch.setattr("normlab.data.dataset.moved", lambda dataset, device: device)
    cuda = torch.device("cuda", 0)
    size = 120 * 2 * 2 * 3
    for room, expected in ((size, cuda), (size - 1, dataset)):
        properties = SimpleNamespace(total_memory=16 * room)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device, p=properties: p)
        assert near(dataset, cuda) is expected
    there = moved(dataset, torch.device("meta"))
    assert there.train.images_BHWC is there.val.images_BHWC
    assert {split.device.type for split in (there.train, there.val, there.test)} == {"meta"}
    assert there.val.take(torch.arange(2, device="meta"))[0].shape == (2, 2, 2, 3)
