"""Class folders, decoded once into a cache that is rebuilt when they change."""

import os
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from normlab.config import ConfigError
from normlab.config.data import Decode, ImageFolderConfig
from normlab.data import image_folder, load
from normlab.data.decode import decode


def paint(path, colour, size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "pictures"
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                paint(root / split / name / f"{i}.png", (50 * i, 100 * label, 200))
    return root


@pytest.fixture
def read(root, tmp_path):
    def read(root=root, **settings):
        settings = {"image_size": 8, "cache_dir": str(tmp_path / "cache")} | settings
        return load(ImageFolderConfig(root=str(root), **settings))

    return read


@pytest.fixture
def builds(monkeypatch):
    """How often a cache was built: one entry each time."""
    built, build = [], image_folder._build
    monkeypatch.setattr(image_folder, "_build", lambda *a, **k: (built.append(1), build(*a, **k))[1])
    return built


def cached(tmp_path):
    return sorted((tmp_path / "cache").glob("*/*"))


def test_pictures_labels_classes_and_moments_are_those_of_the_files(read):
    data = read()
    assert data.classes == ["cat", "dog"]
    assert data.train.labels_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.val.labels_B.tolist() == [0, 0, 1, 1]
    assert data.train.images_BHWC[4].unique(dim=0).shape == (1, 8, 3)
    assert data.train.images_BHWC[4, 0, 0].tolist() == [50, 100, 200]
    pixels = data.train.images_BHWC.view(-1, 3).double() / 255
    torch.testing.assert_close(data.mean_C, pixels.mean(0))
    torch.testing.assert_close(data.std_C[:2], pixels.std(0, correction=0)[:2])


def test_a_second_load_decodes_nothing_and_maps_the_same_file(read, builds):
    first, second = read(), read()
    assert len(builds) == 1
    assert torch.equal(first.train.images_BHWC, second.train.images_BHWC)
    assert first.fingerprint == second.fingerprint


def test_progress_counts_every_picture(root, tmp_path):
    seen = []
    cfg = ImageFolderConfig(root=str(root), image_size=8, cache_dir=str(tmp_path / "cache"))
    load(cfg, lambda text, done=0, total=0: seen.append((done, total)))
    assert seen[-1] == (10, 10)


def test_how_much_is_decoded_to_where_is_told(root, tmp_path):
    told = []
    cfg = ImageFolderConfig(root=str(root), image_size=8, cache_dir=str(tmp_path / "cache"))
    load(cfg, lambda text, done=0, total=0: None if total else told.append(text))
    [place] = cached(tmp_path)
    assert told == [f"decoding 10 images of pictures into {place.parent} (0.00192 MB)"]
    load(cfg, lambda text, done=0, total=0: pytest.fail("decoded again"))


def test_classes_and_counts_are_noted(root, read):
    assert read().notes == (f"{root}: 2 classes, 6 training and 4 test images: cat 3 + 2, dog 3 + 2",)


@pytest.mark.parametrize(
    ("names", "warned"),
    [(("images", "masks"), True), (("JPEGImages", "SegmentationClass"), True), (("mask", "no_mask"), False)],
)
def test_folders_of_pictures_and_of_masks_are_warned_of(root, read, names, warned):
    for split in ("train", "test"):
        for old, new in zip(("cat", "dog"), names, strict=True):
            (root / split / old).rename(root / split / new)
    _, *warnings = read().notes
    assert [line.startswith("warning:") and "data=mask_folder" in line for line in warnings] == [True] * warned


@pytest.mark.parametrize("decode", ["cache", "stream"])
def test_unchecked_files_are_looked_at_once_and_again_by_a_load_that_checks(root, read, monkeypatch, decode):
    monkeypatch.setattr(image_folder, "PROBED", 1)  # what is streamed is read
    unchecked = partial(read, decode=Decode[decode], check_files=False)
    first = unchecked()
    paint(root / "train/cat/9.png", (1, 2, 3))
    with monkeypatch.context() as patch:
        patch.setattr("normlab.data.listing.entries", lambda folder: pytest.fail(f"looked into {folder}"))
        second = unchecked()
    assert (len(second.train), second.fingerprint, second.notes) == (6, first.fingerprint, first.notes)
    assert torch.equal(second.train.take(torch.arange(6))[0], first.train.take(torch.arange(6))[0])
    assert len(read(decode=Decode[decode]).train) == 7
    assert len(unchecked().train) == 7


def test_a_list_of_files_that_is_up_to_date_is_not_written_again(read, tmp_path):
    read(check_files=False)
    [listed] = (tmp_path / "cache").glob("*.files.json")
    before = listed.stat().st_ino
    read()
    assert listed.stat().st_ino == before


def test_files_that_are_checked_are_not_listed_on_disk(read, tmp_path):
    read()
    assert not list((tmp_path / "cache").glob("*.json"))


@pytest.mark.parametrize("change", ["content", "added", "removed"])
def test_the_cache_is_rebuilt_when_a_file_changes_and_the_old_one_deleted(root, read, tmp_path, change):
    before = read()
    [old] = cached(tmp_path)
    if change == "content":
        paint(root / "train/cat/0.png", (1, 2, 3))
        os.utime(root / "train/cat/0.png", ns=(1, 1))
    elif change == "added":
        paint(root / "train/cat/9.png", (1, 2, 3))
    else:
        (root / "train/cat/0.png").unlink()
    after = read()
    [new] = cached(tmp_path)
    assert new != old
    assert len(after.train) == {"content": 6, "added": 7, "removed": 5}[change]
    assert after.fingerprint != before.fingerprint
    assert before.train.images_BHWC[1, 0, 0].tolist() == [50, 0, 200]  # what was mapped stays readable


def test_the_fingerprint_is_of_pixels_labels_and_classes_not_of_path_or_time(root, read, tmp_path):
    fingerprint = read().fingerprint
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    for path in moved.rglob("*.png"):
        os.utime(path, ns=(7, 7))
    assert read(moved).fingerprint == fingerprint
    (moved / "train/cat").rename(moved / "train/cow")
    (moved / "test/cat").rename(moved / "test/cow")
    assert read(moved).fingerprint != fingerprint
    with Image.open(root / "test/dog/0.png") as image:
        image.putpixel((3, 3), (51, 100, 200))
        image.save(root / "test/dog/0.png")
    assert read().fingerprint != fingerprint


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut short", "missing", "nonsense"])
def test_a_damaged_cache_is_rebuilt(read, tmp_path, builds, file, damage):
    expected = read()
    [place] = cached(tmp_path)
    content = (place / file).read_bytes()
    (place / file).unlink()
    if damage != "missing":
        (place / file).write_bytes(content[:-20] if damage == "cut short" else b"{}")
    found = read()
    assert len(builds) == 2
    assert torch.equal(found.train.images_BHWC, expected.train.images_BHWC)
    assert found.val.labels_B.tolist() == expected.val.labels_B.tolist()


def test_a_damaged_cache_that_may_not_be_written_is_refused_as_such(read, tmp_path, monkeypatch):
    read()
    [place] = cached(tmp_path)
    (place / "train_images.npy").write_bytes(bytes((place / "train_images.npy").stat().st_size))

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("normlab.data.cache.FileLock", refuse)
    with pytest.raises(ConfigError, match=rf"cannot be written \(Permission denied\), and {place} is damaged"):
        read()


def test_a_half_made_cache_of_a_killed_process_is_cleared_away(root, read, tmp_path):
    read()
    [place] = cached(tmp_path)
    shutil.rmtree(place)
    (place.parent / "half-made-x").mkdir()
    read()
    assert cached(tmp_path) == [place]


def test_val_serves_where_there_is_no_test(root, read):
    (root / "test").rename(root / "val")
    assert len(read().val) == 4


@pytest.mark.parametrize("decode", list(Decode))
def test_val_beside_test_is_val_and_test_is_for_the_end(root, read, decode):
    shutil.copytree(root / "test", root / "val")
    shutil.rmtree(root / "val/cat")
    data = read(decode=decode)
    assert data.eval_split == "val"
    assert data.val.labels_B.tolist() == [1, 1]
    assert data.test.labels_B.tolist() == [0, 0, 1, 1]
    index_B = torch.arange(2)
    assert torch.equal(data.val.take(index_B)[0], data.test.take(index_B + 2)[0])
    assert data.notes[0].endswith("2 classes, 6 training, 4 test and 2 val images: cat 3 + 2 + 0, dog 3 + 2 + 2")
    shutil.copytree(root / "val/dog", root / "val/fox")
    with pytest.raises(ConfigError, match="class fox is in val/ but not in train/"):
        read(decode=decode)


def test_labels_of_test_are_those_of_train_where_test_lacks_a_class(root, read):
    shutil.rmtree(root / "test/cat")
    assert read().val.labels_B.tolist() == [1, 1]


def test_other_files_are_passed_over_and_deeper_folders_are_not(root, read):
    (root / "train/cat/notes.txt").write_text("")
    (root / "train/cat/.hidden.png").write_bytes(b"")
    (root / "train/.cache").mkdir()
    paint(root / "train/cat/more/x.PNG", (9, 9, 9))
    assert len(read().train) == 7


def test_the_shorter_side_is_resized_and_the_centre_cut_out(tmp_path):
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, 16:32] = 255  # the centre third
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    found = decode(str(tmp_path / "wide.png"), 8)
    assert found.shape == (8, 8, 3)
    assert (found[:, 1:-1] == 255).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    paint(tmp_path / f"x.{suffix}", (255, 255, 255), mode=mode)
    assert (decode(str(tmp_path / f"x.{suffix}"), 8) == 255).all()


def break_nothing_given(root):
    return {"root": None}


def break_missing_folder(root):
    return {"root": str(root / "nowhere")}


def break_no_train(root):
    shutil.rmtree(root / "train")


def break_no_test(root):
    shutil.rmtree(root / "test")


def break_no_classes(root):
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def break_empty_class(root):
    (root / "train/eel").mkdir()


def break_unknown_class(root):
    paint(root / "test/eel/0.png", (0, 0, 0))


def break_unreadable_image(root):
    (root / "train/dog/1.png").write_bytes(b"no image")


def break_truncated_image(root):
    path = root / "test/dog/1.png"
    path.write_bytes(path.read_bytes()[:48])


def break_by_a_link_to_nothing(root):
    (root / "train/eel").symlink_to("nowhere")


def break_by_a_circle(root):
    (root / "train/dog/up").symlink_to(root / "train")


def break_by_a_pipe(root):
    os.mkfifo(root / "test/dog/2.png")


def break_by_far_too_many_pixels(root):
    return {"image_size": 4096 + 1}


def break_cache(root):
    (root.parent / "file").write_text("")
    return {"cache_dir": str(root.parent / "file")}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (break_nothing_given, ["data.root is not given"]),
        (break_missing_folder, ["data.root=", "nowhere", "not a folder"]),
        (break_no_train, ["data.root=", "train", "not a folder"]),
        (break_no_test, ["data.root=", "neither test/ nor val/"]),
        (break_no_classes, ["data.root=", "train/ holds no class folders"]),
        (break_empty_class, ["data.root=", "train/eel holds no image"]),
        (break_unknown_class, ["data.root=", "eel", "not in train/"]),
        (break_unreadable_image, ["train/dog/1.png", "cannot be read as an image"]),
        (break_truncated_image, ["test/dog/1.png", "cannot be read as an image"]),
        (break_by_a_link_to_nothing, ["train/eel", "cannot be read as a link"]),
        (break_by_a_circle, ["train/dog/up", "is a link to one of its own parent folders"]),
        (break_by_a_pipe, ["test/dog/2.png", "is not a file"]),
        (break_by_far_too_many_pixels, ["data.image_size=4097", "at most 4096"]),
        (break_cache, ["data.cache_dir=", "file", "cannot be written"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_cache_behind(root, tmp_path, broken, words):
    settings = {"root": str(root), "image_size": 8, "cache_dir": str(tmp_path / "cache")}
    settings |= broken(root) or {}
    with pytest.raises(ConfigError) as caught:
        load(ImageFolderConfig(**settings))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []
    assert [path for path in (tmp_path / "cache").glob("*") if path.is_dir()] == []


def test_read_only_pixels_bring_no_warning(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images_BHWC, _ = read().train.take(torch.tensor([0, 5]))
    images_BHWC.zero_()  # a copy: the file is not touched
    assert read().train.images_BHWC[5, 0, 0].tolist() == [100, 100, 200]


def test_the_cache_lies_under_xdg_cache_home_unless_told(root, tmp_path, monkeypatch, read):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    read(cache_dir=None)
    assert len(list((tmp_path / "xdg/normlab").glob("pictures-*/*/meta.json"))) == 1
