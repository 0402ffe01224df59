"""Your own pictures with masks: what is read, and one line that names the file where it cannot be."""

import os

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from normlab.config import ConfigError
from normlab.config.data import MaskFolderConfig
from normlab.data import load
from normlab.data.dataset import IGNORED
from tests.data.mask_files import SIZES, mask_of, write


@pytest.fixture
def root(tmp_path):
    """Three classes and 9 for what is ignored; b lies in a folder of its own, its picture is a JPEG."""
    root = tmp_path / "streets"
    for split, names in {"train": "abc", "val": "ab", "test": "c"}.items():
        for name in names:
            width, height = SIZES[name]
            pixels = np.full((height, width, 3), ord(name), dtype=np.uint8)
            place = f"deep/{name}" if name == "b" else name
            write(root / split / "images" / f"{place}.{'jpg' if name == 'b' else 'png'}", pixels)
            write(root / split / "masks" / f"{place}.png", mask_of(name))
    return root


@pytest.fixture
def read(root, tmp_path):
    def read(**options):
        given = {"num_classes": 3, "ignore_index": 9, **options}
        return load(MaskFolderConfig(root=str(root), cache_dir=str(tmp_path / "cache"), **given))

    return read


def labels(name):
    return np.where(mask_of(name) == 9, IGNORED, mask_of(name))


def test_pictures_and_masks_are_those_of_the_files_whatever_their_sizes(read):
    data = read()
    assert data.classes == ["class_0", "class_1", "class_2"]
    assert [len(data.train), len(data.val), len(data.test), data.eval_split] == [3, 2, 1, "val"]
    for index, name in enumerate("acb"):  # in the order of their names: deep/b comes last
        image_HWC, mask_HW = data.train.sample(index)
        assert image_HWC.shape == (*SIZES[name][::-1], 3)
        assert abs(int(image_HWC.float().mean()) - ord(name)) <= 1
        assert np.array_equal(mask_HW.numpy(), labels(name))
    assert data.palette_K3.shape == (3, 3)
    pixels = torch.cat([data.train.sample(i)[0].reshape(-1, 3) for i in range(3)]).double() / 255
    torch.testing.assert_close(data.mean_C, pixels.mean(0))


def test_a_second_load_decodes_nothing(read, monkeypatch):
    first = read()
    monkeypatch.setattr("normlab.data.mask_files._decode", lambda *a, **k: pytest.fail("decoded again"))
    second = read()
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.train.pixels, second.train.pixels)


def test_a_changed_mask_makes_another_cache_and_another_fingerprint(root, read):
    before = read()
    write(root / "train/masks/a.png", mask_of("a", (2, 2, 1)))
    os.utime(root / "train/masks/a.png", ns=(1, 1))
    after = read()
    assert after.fingerprint != before.fingerprint
    assert after.train.sample(0)[1].unique().tolist() == [1, 2]


def test_unchecked_files_are_looked_at_once_and_again_by_a_load_that_checks(root, read):
    first = read(check_files=False)
    write(root / "train/masks/a.png", mask_of("a", (2, 2, 1)))
    (root / "test/masks").rename(root / "test/away")
    second = read(check_files=False)
    assert (len(second.train), second.fingerprint) == (len(first.train), first.fingerprint)
    (root / "test/away").rename(root / "test/masks")
    checked = read()
    assert checked.fingerprint != first.fingerprint
    assert read(check_files=False).fingerprint == checked.fingerprint


@pytest.mark.parametrize("change", ["truncated", "other"])
def test_a_damaged_cache_is_made_anew(read, tmp_path, change):
    before = read().train.labels.clone()
    [file] = (tmp_path / "cache").glob("*/*/train_labels.npy")
    file.write_bytes(file.read_bytes()[:-10] if change == "truncated" else b"something else")
    assert torch.equal(read().train.labels, before)


def test_image_size_resizes_pictures_and_masks_to_their_shorter_side(read):
    data = read(image_size=16)
    assert [tuple(data.train.sample(i)[1].shape) for i in range(3)] == [(16, 24), (16, 16), (20, 16)]
    assert data.train.sample(0)[1].unique().tolist() == [0, 1, 2, IGNORED]  # no class in between


def test_where_there_is_one_of_test_and_val_it_is_what_the_curves_call_val(root, read):
    (root / "test").rename(root / "kept")
    data = read()
    assert (len(data.val), data.test, data.eval_split) == (2, None, "test")
    held_out = read(val_fraction=0.4)
    assert [len(held_out.train), len(held_out.val), len(held_out.test)] == [2, 1, 2]


def test_a_val_folder_and_a_val_fraction_exclude_each_other(read):
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0\.4.*set it to 0"):
        read(val_fraction=0.4)


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_indices_are_read_from_any_kind_of_mask(root, read, mode):
    values = mask_of("a", (0, 1))
    if mode == "P":
        mask = Image.fromarray(values)
        mask.putpalette([200, 10, 30, 0, 0, 90] + [0] * 762)
    elif mode == "I;16":
        mask = Image.fromarray(values.astype(np.uint16))
    else:
        mask = Image.fromarray(values.astype(bool)) if mode == "1" else Image.fromarray(values)
    assert mask.mode == mode
    write(root / "train/masks/a.png", mask)
    assert np.array_equal(read().train.sample(0)[1].numpy(), values)


@pytest.fixture
def in_colour(root, tmp_path):
    """The masks in colours, and what they mean: two colours are one class."""
    colours = np.zeros((10, 3), dtype=np.uint8)
    colours[[0, 1, 2, 9]] = [[10, 0, 0], [0, 200, 0], [0, 0, 255], [7, 7, 7]]
    for path in root.glob("*/masks/**/*.png"):
        write(path, colours[np.asarray(Image.open(path))])
    colour_map = tmp_path / "colours.txt"
    colour_map.write_text("# of a test\n10 0 0 wide road\n0,200,0 tree\n\n0 0 255 wide road\n7 7 7 Void\n")
    return colour_map


def test_colours_are_classes_by_a_colour_map(read, in_colour):
    data = read(num_classes=None, colour_map=str(in_colour))
    assert data.classes == ["wide road", "tree"]
    assert data.palette_K3.tolist() == [[10, 0, 0], [0, 200, 0]]
    merged = np.array([0, 1, 0] + [IGNORED] * 7)[mask_of("a")]
    assert np.array_equal(data.train.sample(0)[1].numpy(), merged)


def test_a_colour_that_the_map_lacks_is_named_with_its_file(root, read, in_colour):
    write(root / "val/masks/a.png", np.full((8, 12, 3), 99, dtype=np.uint8))
    with pytest.raises(ConfigError, match=r"val/masks/a\.png holds the colour 99 99 99, .*data\.colour_map="):
        read(num_classes=None, colour_map=str(in_colour))


@pytest.mark.parametrize("line", ["1 2 3", "1 2 300 road", "a b c road"])
def test_a_line_of_a_colour_map_that_cannot_be_read_is_named(read, in_colour, line):
    in_colour.write_text(f"1 2 3 a\n{line}\n")
    with pytest.raises(ConfigError, match=rf"data\.colour_map=.*line 2: '{line}'"):
        read(num_classes=None, colour_map=str(in_colour))


def test_a_colour_that_is_two_classes_is_refused(read, in_colour):
    in_colour.write_text("1 2 3 road\n4 5 6 tree\n\n1 2 3 tree\n")
    with pytest.raises(
        ConfigError, match=r"data\.colour_map=.*, line 4: 1 2 3 is the colour of another class already"
    ):
        read(num_classes=None, colour_map=str(in_colour))


def test_a_colour_that_is_listed_twice_as_one_class_is_that_class(read, in_colour):
    in_colour.write_text(in_colour.read_text() + "10 0 0 wide road\n7 7 7 void\n")
    assert read(num_classes=None, colour_map=str(in_colour)).classes == ["wide road", "tree"]


def test_a_colour_map_that_is_a_pipe_is_refused(read, tmp_path):
    os.mkfifo(tmp_path / "colours")
    with pytest.raises(ConfigError, match=r"data\.colour_map=.*is not a file but a folder, pipe"):
        read(num_classes=None, colour_map=str(tmp_path / "colours"))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_whose_pixels_are_all_ignored_is_refused(root, read, split):
    for path in (root / split / "masks").rglob("*.png"):
        write(path, np.full_like(np.asarray(Image.open(path)), 9))
    with pytest.raises(ConfigError, match=rf"every pixel of the \d masks of {split} is ignored.*ignore_index"):
        read()


def test_a_mask_all_of_which_is_ignored_among_others_is_not_refused(root, read):
    write(root / "train/masks/a.png", np.full((8, 12), 9, dtype=np.uint8))
    assert len(read().train) == 3


def test_how_much_is_decoded_to_where_is_told(root, tmp_path):
    told = []
    cfg = MaskFolderConfig(root=str(root), cache_dir=str(tmp_path / "cache"), num_classes=3, ignore_index=9)
    load(cfg, lambda text, done=0, total=0: None if total else told.append(text))
    [place] = (tmp_path / "cache").glob("streets-*/*")
    pixels = sum(w * h for w, h in [*SIZES.values(), SIZES["a"], SIZES["b"], SIZES["c"]])
    assert told == [f"decoding 6 pictures and masks of streets into {place.parent} ({4e-6 * pixels:.3g} MB)"]


def test_pictures_that_are_stored_turned_are_named_and_used_as_stored(root, read, capsys):
    place = root / "train" / "images" / "deep" / "b.jpg"
    with Image.open(place) as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 3
        stored = np.asarray(image)
        image.save(place, exif=exif, quality=100, subsampling=0)
    data = read()
    said = capsys.readouterr().err
    assert said.startswith("warning: 1 pictures of streets are to be shown turned or mirrored (EXIF), ")
    assert str(place) in said
    assert np.abs(data.train.sample(2)[0].numpy().astype(int) - stored).max() <= 2


def out_of_range(root):
    write(root / "test/masks/c.png", np.full((9, 9), 5, dtype=np.uint8))


def colours(root):
    write(root / "train/masks/a.png", np.zeros((8, 12, 3), dtype=np.uint8))


def other_size(root):
    write(root / "train/masks/a.png", np.zeros((12, 8), dtype=np.uint8))


def no_mask(root):
    (root / "train/masks/a.png").unlink()


def no_picture(root):
    (root / "val/images/a.png").unlink()


def no_masks(root):
    for path in (root / "train/masks").rglob("*.png"):
        path.unlink()


def no_mask_folder(root):
    (root / "train/masks").rename(root / "train/labels")


def twice(root):
    write(root / "train/images/a.bmp", np.zeros((8, 12, 3), dtype=np.uint8))


def broken(root):
    (root / "train/images/a.png").write_bytes(b"no picture")


def panorama(root):
    write(root / "train/images/a.png", Image.new("RGB", (20000, 1)))
    write(root / "train/masks/a.png", Image.new("L", (20000, 1)))
    return {"image_size": 224}


def pipe(root):
    (root / "train/images/a.png").unlink()
    os.mkfifo(root / "train/images/a.png")


MISTAKES = [
    (panorama, r"train/images/a\.png would be 4480000x224 pixels at data\.image_size=224; lower it"),
    (pipe, r"train/images/a\.png is not a file"),
    (out_of_range, r"test/masks/c\.png holds 5, .*data\.num_classes=3 allows 0 to 2.*data\.ignore_index=9"),
    (colours, r"train/masks/a\.png is a picture in RGB.*data\.colour_map"),
    (other_size, r"train/images/a\.png is 12x8 pixels, but its mask .*train/masks/a\.png is 8x12"),
    (no_mask, r"train/images/a\.png has no mask train/masks/a\.\* \(1 of this kind"),
    (no_picture, r"val/masks/a\.png has no picture val/images/a\.\*"),
    (no_masks, r"train/masks holds no image file"),
    (no_mask_folder, r"train/masks is not a folder"),
    (twice, r"train/images/a\.\w+ and .*train/images/a\.\w+ have one name"),
    (broken, r"train/images/a\.png cannot be read as an image"),
]


@pytest.mark.parametrize(("mistake", "words"), MISTAKES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_cannot_be_used_is_one_line_that_names_the_file(root, read, tmp_path, mistake, words):
    options = mistake(root) or {}
    with pytest.raises(ConfigError, match=words) as raised:
        read(**options)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").glob("*/*")) == []  # nothing half made


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": None}, r"data\.num_classes is not given"),
        ({"ignore_index": 2}, r"data\.ignore_index=2 is one of the classes 0 to 2"),
        ({"class_names": ["a", "b"]}, r"data\.class_names=a,b must be 3 distinct names"),
        ({"class_names": ["a", "b", "a"]}, r"data\.class_names=a,b,a must be 3 distinct names"),
        ({"crop_size": 20000}, r"data\.crop_size=20000 .*at most 4096"),
        ({"scale_min": 1e-12}, r"data\.scale_min=1e-12 with data\.crop_size=256 cuts squares of up to 2\.56e\+14"),
        ({"colour_map": "nowhere.txt"}, r"data\.colour_map=nowhere\.txt cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_named(read, options, words):
    with pytest.raises(ConfigError, match=words):
        read(**options)
