"""Images read from their files when they are needed: what is cut out of them, in which order, how far ahead."""

import math
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from normlab import data
from normlab.config import ConfigError
from normlab.config.config import Precision
from normlab.config.data import Decode, ImageFolderConfig
from normlab.data import image_folder
from normlab.data.batches import AHEAD, PIECE, Inputs, TrainBatches, eval_batches, read_ahead
from normlab.data.decode import UnreadableError, decode
from normlab.data.order import epoch_order, random_words, unit
from normlab.data.streamed import (
    NUM_DRAWS,
    TRIES,
    ResizedCropAndFlip,
    StreamedImages,
    centre,
    random_part,
    read_pixels,
)
from normlab.distributed import Ranks
from normlab.numerics import Numerics
from normlab.run import name_run
from tests.data.jpeg_files import picture, write_folder
from tests.runs import typed

CPU = torch.device("cpu")
SIZE = 28
PER_CLASS = 9


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / "pictures", PER_CLASS, 4)


def settings(root, **changes):
    return ImageFolderConfig(root=str(root), decode=Decode.stream, image_size=SIZE, **changes)


@pytest.fixture
def dataset(root):
    return data.load(settings(root))


@pytest.fixture
def bytes_stay_bytes(monkeypatch):
    """torchvision 0.23 resizes bytes by way of floats on AVX512, as later versions do where there is no AVX2."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


def as_tensor(path):
    return torch.from_numpy(read_pixels(path, 1000)).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1"])
def test_a_file_of_any_mode_has_the_pixels_that_the_cache_would_hold(mode, tmp_path):
    path = tmp_path / ("x.jpg" if mode in ("RGB", "L", "CMYK") else "x.png")
    picture(3, (48, 48)).convert(mode).save(path)
    difference = read_pixels(str(path), 1000).astype(int) - decode(str(path), 48)
    assert np.abs(difference).max() <= (mode == "CMYK")  # which Pillow rounds otherwise


def test_a_picture_is_known_by_its_content_not_by_its_suffix(tmp_path):
    picture(1, (48, 40)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.JPEG")
    assert np.array_equal(read_pixels(str(tmp_path / "x.JPEG"), 1000), np.asarray(picture(1, (48, 40))))


@pytest.mark.parametrize(("shortest", "scale"), [(31, 1), (30, 2), (24, 2), (15, 4), (9, 4)])
def test_a_large_jpeg_is_decoded_no_larger_than_is_needed(tmp_path, shortest, scale):
    picture(2, (96, 60)).save(tmp_path / "x.jpg", quality=95)
    found = read_pixels(str(tmp_path / "x.jpg"), shortest).astype(int)
    assert found.shape == (60 // scale, 96 // scale, 3)
    whole = np.asarray(picture(2, (96, 60))).reshape(60 // scale, scale, 96 // scale, scale, 3)
    assert np.abs(found - whole.mean((1, 3))).mean() < 2  # of 255: the mean of the pixels that one stands for


def test_the_smallest_random_part_of_a_picture_that_was_shrunk_is_not_enlarged(monkeypatch):
    asked = []

    def read(path, shortest):
        asked.append(shortest)
        return np.zeros((300, 300, 3), dtype=np.uint8)

    monkeypatch.setattr("normlab.data.streamed.read_pixels", read)
    StreamedImages(["a"], torch.tensor([0]), 224).take(torch.tensor([0]))
    [shortest] = asked
    for numbers in [[0.0, 0.0], [0.0, 0.999999]]:
        rows, columns = random_part(shortest, shortest, numbers * TRIES + [0.5, 0.5])
        assert min(rows.stop - rows.start, columns.stop - columns.start) >= 224


def test_evaluation_takes_the_centre_as_torchvision_does(bytes_stay_bytes, dataset):
    images_BHWC, labels_B = dataset.train.take(torch.arange(18))
    assert labels_B.tolist() == [0] * PER_CLASS + [1] * PER_CLASS
    for image_HWC, path in zip(images_BHWC, dataset.train.paths, strict=True):
        whole = functional.resize(as_tensor(path), [round(SIZE / 0.875)], antialias=True)
        expected = functional.center_crop(whole, [SIZE, SIZE])
        assert torch.equal(image_HWC.permute(2, 0, 1), expected), path


def test_a_224_crop_is_of_a_picture_whose_shorter_side_is_256():
    ramp_HWC = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3).repeat(256, 0)  # is not resized
    assert centre(ramp_HWC, 224)[0, 0].tolist() == list(range(16, 240))


def test_of_a_very_long_picture_only_the_middle_is_resized():
    assert centre(np.zeros((1, 65000, 3), dtype=np.uint8), 224).shape == (3, 224, 224)  # 13 GB as a whole


def drawn(count, seed=0):
    words = random_words(count * (2 * TRIES + 2), seed=seed, epoch=0, stream=77)
    return unit(words).reshape(count, -1).tolist()


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 300), (200, 900)])
def test_random_parts_are_distributed_as_torchvisions(height, width):
    """Area, ratio and place: mean and deviation of 1,500 each, within 5 standard errors of their difference."""
    crop = v2.RandomResizedCrop(SIZE)
    torch.manual_seed(0)
    theirs = []
    for _ in range(1500):
        made = crop.make_params([torch.empty(3, height, width)])
        theirs.append((made["top"], made["left"], made["height"], made["width"]))
    ours = [(r.start, c.start, r.stop - r.start, c.stop - c.start) for r, c in parts(height, width, 1500)]
    for found in zip(*(statistics_of(boxes, height, width) for boxes in (ours, theirs)), strict=True):
        a, b = (np.array(values) for values in found)
        error = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 5 * error
        spread = math.sqrt(2 * ((a - a.mean()) ** 2).var() / len(a))
        assert abs(a.var() - b.var()) < 5 * spread


def parts(height, width, count):
    return [random_part(height, width, numbers) for numbers in drawn(count)]


def statistics_of(boxes, height, width):
    """Area, log ratio, and the place of the part's first row and column among those possible."""
    top, left, h, w = np.array(boxes, dtype=float).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    return h * w, np.log(w / h), top / np.maximum(height - h, 1), left / np.maximum(width - w, 1)


@pytest.mark.parametrize(("height", "width"), [(40, 1000), (1000, 40), (41, 900)])
def test_where_no_part_fits_the_centre_is_torchvisions(height, width):
    made = v2.RandomResizedCrop(SIZE).make_params([torch.empty(3, height, width)])
    rows, columns = random_part(height, width, drawn(1)[0])
    assert (rows.start, columns.start) == (made["top"], made["left"])
    assert (rows.stop - rows.start, columns.stop - columns.start) == (made["height"], made["width"])


def test_a_training_picture_is_the_drawn_part_resized_and_flipped_as_by_torchvision(bytes_stay_bytes, dataset):
    augmentation = ResizedCropAndFlip(SIZE)
    draws = augmentation.draws(18, seed=3, epoch=2)
    images_BHWC, labels_B = augmentation.batch(dataset.train, torch.arange(18), draws, CPU)
    assert torch.equal(labels_B, dataset.train.labels_B)
    flips = 0
    for image_HWC, path, word in zip(images_BHWC, dataset.train.paths, draws.tolist(), strict=True):
        *of_part, flip = unit(random_words(NUM_DRAWS, seed=word, epoch=0, stream=8)).tolist()
        whole = as_tensor(path)
        rows, columns = random_part(*whole.shape[1:], of_part)
        place = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        expected = functional.resized_crop(whole, *place, [SIZE, SIZE], antialias=True)
        expected = functional.horizontal_flip(expected) if flip >= 0.5 else expected
        assert torch.equal(image_HWC.permute(2, 0, 1), expected), path
        flips += flip >= 0.5
    assert 0 < flips < 18


def test_what_is_drawn_is_a_function_of_seed_epoch_and_sample(dataset):
    augmentation = ResizedCropAndFlip(SIZE)
    draws = augmentation.draws(18, seed=0, epoch=0)
    assert torch.equal(augmentation.draws(9, seed=0, epoch=0), draws[:9])
    assert len({*draws.tolist(), *augmentation.draws(18, seed=0, epoch=1).tolist()}) == 36
    assert len({*draws.tolist(), *augmentation.draws(18, seed=1, epoch=0).tolist()}) == 36
    state = torch.get_rng_state()
    together, _ = augmentation.batch(dataset.train, torch.tensor([7, 2]), draws, CPU)
    alone, _ = augmentation.batch(dataset.train, torch.tensor([2]), draws, CPU)
    assert torch.equal(together[1], alone[0])
    assert torch.equal(torch.get_rng_state(), state)


def batches(dataset, workers, *, batch_size=8, accumulate=1, ranks=1, first=0, here=1):
    inputs = Inputs(
        ResizedCropAndFlip(SIZE), dataset.mean_C, dataset.std_C, Numerics.of(Precision.fp64, CPU), workers
    )
    shape = {"batch_size": batch_size, "accumulate": accumulate, "logical_ranks": ranks}
    return TrainBatches(
        dataset.train, inputs, seed=0, ranks_here=range(first, first + here), augment=True, **shape
    )


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, PIECE + 1, 9])
def test_batches_that_are_read_ahead_are_those_that_are_not(dataset, workers, batch_size):
    expected = list(batches(dataset, 0, batch_size=batch_size).epoch(1))
    found = list(batches(dataset, workers, batch_size=batch_size).epoch(1))
    tail = list(batches(dataset, workers, batch_size=batch_size).epoch(1, first_step=1))
    assert len(expected) == len(found) == len(tail) + 1 == 18 // batch_size
    for step, [(images, labels)] in enumerate(expected):
        for [(ours, our_labels)] in [found[step], *tail[step - 1 : step]]:
            assert torch.equal(ours, images)
            assert torch.equal(our_labels, labels)


@pytest.mark.parametrize(("ranks", "here", "accumulate"), [(2, 1, 1), (4, 2, 2), (4, 4, 1)])
def test_processes_together_see_the_global_batches_of_one_rank(dataset, ranks, here, accumulate):
    shares = [
        batches(
            dataset, 2, batch_size=8 // ranks // accumulate, ranks=ranks, first=f, here=here, accumulate=accumulate
        )
        for f in range(0, ranks, here)
    ]
    epochs = [share.epoch(0) for share in shares]
    for [(images_BCHW, labels_B)] in batches(dataset, 0).epoch(0):
        steps = [next(epoch) for epoch in epochs]
        micro = [[t[v::here] for t in step[a]] for a in range(accumulate) for step in steps for v in range(here)]
        assert torch.equal(torch.cat([images for images, _ in micro]), images_BCHW)
        assert torch.equal(torch.cat([labels for _, labels in micro]), labels_B)


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_has_every_sample_once_at_any_world_size(dataset, world_size):
    inputs = data.inputs(settings("x"), dataset, Numerics.of(Precision.fp32, CPU), Ranks(0, 1, 1, CPU))
    shares = [
        list(eval_batches(dataset.train, inputs, Ranks(rank, world_size, 1, CPU), batch_size=5))
        for rank in range(world_size)
    ]
    found = [shares[k % world_size][k // world_size] for k in range(4)]
    assert [len(labels) for _, labels in found] == [5, 5, 5, 3]
    images_BHWC, labels_B = dataset.train.take(torch.arange(18))
    assert torch.equal(torch.cat([labels for _, labels in found]), labels_B)
    assert torch.equal(torch.cat([images for images, _ in found]), inputs.normalised(images_BHWC))


@pytest.mark.parametrize(("workers", "batch_size"), [(2, 1), (2, 40), (1, PIECE)])
def test_a_bounded_number_of_samples_is_read_ahead_and_the_threads_end_with_the_iterator(workers, batch_size):
    begun, lock = [], threading.Lock()

    def make(index_B):
        with lock:
            begun.extend(index_B.tolist())
        return index_B[:, None, None, None].expand(-1, 1, 1, 3).to(torch.uint8), index_B

    before = threading.active_count()
    reading = read_ahead(make, torch.arange(200 * batch_size).split(batch_size), workers)
    for batch in range(3):
        _, labels_B = next(reading)
        assert labels_B.tolist() == list(range(batch * batch_size, (batch + 1) * batch_size))
        ahead = max(2 * workers * min(PIECE, batch_size), AHEAD * batch_size)
        assert len(begun) <= (batch + 1) * batch_size + ahead
    assert threading.active_count() > before
    reading.close()
    assert threading.active_count() == before


def test_a_broken_picture_is_named_when_its_batch_is_asked_for(root, dataset):
    order = epoch_order(18, seed=0, epoch=0, accumulate=1, logical_ranks=1, batch_size=6).view(3, 6)
    path = dataset.train.paths[int(order[1, 5])]
    with open(path, "rb+") as file:
        file.truncate(100)
    epoch, before = batches(dataset, 2, batch_size=6).epoch(0), threading.active_count()
    next(epoch)
    with pytest.raises(UnreadableError) as caught:
        next(epoch)
    assert str(caught.value).startswith(f"{path} cannot be read as an image (")
    assert str(caught.value).endswith("; replace or remove it.")
    assert "\n" not in str(caught.value)
    assert threading.active_count() == before
    os.unlink(path)
    with pytest.raises(UnreadableError, match="No such file"):
        read_pixels(path, 1000)


def test_planning_decodes_nothing_and_writes_nothing(root, tmp_path, monkeypatch):
    monkeypatch.setattr("normlab.data.streamed.read_pixels", lambda *args: pytest.fail("decoded"))
    cfg = settings(root, cache_dir=str(tmp_path / "cache"))
    dataset = data.load(cfg)
    assert dataset.classes == ["cat", "dog"]
    assert (len(dataset.train), len(dataset.val)) == (18, 8)
    assert data.augmentation(cfg, dataset).image_shape == (3, SIZE, SIZE)
    torch.testing.assert_close(dataset.mean_C, torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64))
    torch.testing.assert_close(dataset.std_C, torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64))
    assert not (tmp_path / "cache").exists()


def test_splits_and_subsets_are_of_the_same_files_as_with_a_cache(root, tmp_path):
    options = {"val_fraction": 0.25, "train_samples": 7}
    streamed = data.load(settings(root, **options))
    numbered = torch.arange(18)
    order = data.dataset.fixed_permutation(18)
    paths = [str(path) for name in ("cat", "dog") for path in sorted((root / "train" / name).iterdir())]
    assert streamed.val.paths == [paths[i] for i in numbered[order[:4]].tolist()]
    assert streamed.train.paths == [paths[i] for i in numbered[order[4:11]].tolist()]
    assert streamed.train.labels_B.tolist() == [int("dog" in path) for path in streamed.train.paths]


def run_hash(root, *overrides):
    words = ["data=image_folder", f"data.root={root}", "data.decode=stream", "data.image_size=28", *overrides]
    cfg = typed(*words)
    return name_run(cfg, world_size=1, study="", data_fingerprint=data.load(cfg.data).fingerprint).hash


def test_a_runs_identity_holds_decoding_size_and_files_and_no_place_or_time(root, tmp_path):
    same = run_hash(root)
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy)
    for path in copy.rglob("*.jpg"):
        os.utime(path, ns=(7, 7))
    assert run_hash(copy, "data.workers=7") == same
    others = [run_hash(root, "data.image_size=32"), run_hash(root, "data.decode=cache")]
    path = copy / "train/cat/0.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\0")  # of the same size
    others.append(run_hash(copy))
    path.write_bytes(content + b"\0")
    others.append(run_hash(copy))
    path.write_bytes(content)
    assert run_hash(copy) == same
    path.rename(copy / "train/cat/00.jpg")
    others.append(run_hash(copy))
    assert len({same, *others}) == 6


def test_files_beyond_the_probed_ones_count_by_name_and_size(root, monkeypatch):
    monkeypatch.setattr(image_folder, "PROBED", 0)
    before = run_hash(root)
    path = root / "train/cat/0.jpg"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert run_hash(root) == before
    path.write_bytes(path.read_bytes() + b"\0")
    assert run_hash(root) != before


def test_a_file_that_cannot_be_read_is_named_before_anything_is_trained(root, monkeypatch):
    def refuse(path, mode="r"):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("normlab.data.listing.open", refuse, raising=False)
    with pytest.raises(ConfigError, match=r"\.jpg cannot be read \(Permission denied\)"):
        data.load(settings(root))


@pytest.mark.parametrize(("given", "workers"), [(None, 3), (5, 5)])
def test_threads_are_those_that_are_given_or_the_ranks_share_of_the_cores(dataset, given, workers, monkeypatch):
    monkeypatch.setattr("normlab.distributed.available_cores", lambda: 13)
    numerics, ranks = Numerics.of(Precision.fp32, CPU), Ranks(0, 8, 4, CPU)
    assert data.inputs(settings("x", workers=given), dataset, numerics, ranks).workers == workers
    generated = typed("data.num_train=20", "data.num_test=10").data
    assert data.inputs(generated, data.load(generated), numerics, ranks).workers == 0


def test_a_subset_shares_what_it_is_a_subset_of():
    images = StreamedImages(["a", "b", "c"], torch.tensor([5, 6, 7]), SIZE)
    chosen = images.subset(torch.tensor([2, 0]))
    assert (chosen.paths, chosen.labels_B.tolist(), len(chosen)) == (["c", "a"], [7, 5], 2)
