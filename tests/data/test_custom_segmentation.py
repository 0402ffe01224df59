"""Pictures with masks that users name as module:name."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from normlab import data
from normlab.config import ConfigError
from tests.data.test_decode import png
from tests.runs import SEGMENTATION, run_training, typed

MODULE = """
import io
import numpy as np
import torch
from PIL import Image

read = []

def sample(index):
    draw = np.random.default_rng(index)
    height, width = 8 + index % 3, 9
    pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = draw.choice([0, 1, 2, 9], (height, width)).astype(np.uint8)
    return pixels, mask

class Pictures:
    def __init__(self, size, as_kind, first=0):
        self.size, self.as_kind, self.first = size, as_kind, first

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        read.append(index)
        pixels, mask = sample(self.first + index)
        picture = Image.fromarray(pixels)
        kinds = {
            "PIL": lambda: (picture, Image.fromarray(mask)),
            "PIL16": lambda: (picture, Image.fromarray(mask.astype(np.uint16))),
            "array": lambda: (pixels, mask.astype(np.int32)),
            "tensor": lambda: (torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask).long()),
            "dict": lambda: {"image": picture, "mask": Image.fromarray(mask)},
            "colours": lambda: (picture, picture),
            "float": lambda: (picture, mask / 2),
            "bfloat16": lambda: (picture, torch.from_numpy(mask).bfloat16()),
            "stacked": lambda: (picture, mask[None]),
            "number": lambda: (picture, 3),
            "larger": lambda: (picture, np.pad(mask, 1)),
            "unknown": lambda: (picture, mask + 1),
            "alone": lambda: picture,
            "black_and_white": lambda: (picture, (mask > 1) * np.uint8(255)),
        }
        return kinds[self.as_kind]()

def load(as_kind="PIL", train=5, classes=("road", "sky", "car"), **more):
    return {"train": Pictures(train, as_kind), "test": Pictures(3, as_kind, 7), "classes": classes, **more}

def from_files(folder):
    train = [(Image.fromarray(sample(index)[0]), Image.open(f"{folder}/{index}.png")) for index in range(5)]
    return {"train": train, "test": Pictures(3, "PIL"), "classes": ["road", "sky", "car"]}

def cut_off():
    whole, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 3, (60, 50), dtype=np.uint8)
    Image.fromarray(noise).save(whole, "PNG")
    half = [(Image.fromarray(np.stack([noise] * 3, 2)), Image.open(io.BytesIO(whole.getvalue()[:500])))]
    return {"train": half, "test": half, "classes": 3}

def nameless():
    return {"train": Pictures(5, "PIL"), "test": Pictures(3, "PIL")}
"""


@pytest.fixture
def module(own_module) -> str:
    return own_module(MODULE)


def overrides(target: str, *more: str) -> list[str]:
    fixed = ["data.cache_dir=cache", "data.ignore_index=9", "data.crop_size=8"]
    return [*SEGMENTATION, "data=custom_segmentation", f"data.target={target}", *fixed, *more]


def load(target: str, *more: str):
    return data.load(typed(*overrides(target, *more)).data)


def drawn(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture, and its mask with 255 for what is ignored."""
    draw = np.random.default_rng(index)
    shape = (8 + index % 3, 9)
    pixels = draw.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = draw.choice([0, 1, 2, 9], shape)
    return pixels, np.where(mask == 9, 255, mask)


@pytest.mark.parametrize("kind", ["PIL", "PIL16", "array", "tensor", "dict"])
def test_pictures_and_masks_are_those_that_the_target_gives(kind, module):
    found = load(f"{module}:load", f"data.args.as_kind={kind}")
    assert (len(found.train), len(found.val), found.test) == (5, 3, None)
    for split, first in ((found.train, 0), (found.val, 7)):
        for index in range(len(split)):
            pixels, mask = split.sample(index)
            assert (pixels.numpy() == drawn(first + index)[0]).all()
            assert (mask.numpy() == drawn(first + index)[1]).all()
    assert found.classes == ["road", "sky", "car"]
    assert found.palette_K3.shape == (3, 3)
    pixels = torch.cat([torch.from_numpy(drawn(index)[0]).view(-1, 3) for index in range(5)]).double() / 255
    torch.testing.assert_close(found.mean_C, pixels.mean(0))
    torch.testing.assert_close(found.std_C, pixels.std(0, correction=0))


def test_a_mask_that_is_an_open_file_gives_the_values_in_the_file(module, tmp_path):
    for index in range(5):
        values = np.where(drawn(index)[1] == 255, 9, drawn(index)[1])
        png(tmp_path / f"{index}.png", 4, 0, values[..., None])
    found = load(f"{module}:from_files", f"data.args.folder={tmp_path}")
    assert all((found.train.sample(index)[1].numpy() == drawn(index)[1]).all() for index in range(5))


def test_image_size_resizes_pictures_and_masks_to_their_shorter_side(module):
    found = load(f"{module}:load", "data.image_size=16")
    pixels, mask = found.train.sample(0)
    assert (pixels.shape, mask.shape) == ((16, 18, 3), (16, 18))
    assert (mask[::2, ::2].numpy() == drawn(0)[1]).all()


def test_classes_may_be_a_number(module):
    assert load(f"{module}:load", "data.args.classes=4").classes == ["0", "1", "2", "3"]


def test_samples_are_read_once_until_a_setting_changes_what_they_mean(module):
    def reads(*more: str) -> int:
        before = len(import_module(module).read)
        load(f"{module}:load", *more)
        return len(import_module(module).read) - before

    assert (reads(), reads()) == (8, 0)
    assert reads("data.image_size=16") == 8
    assert reads("data.args.classes=10", "data.ignore_index=12") == 8
    assert reads("data.args.classes=10", "data.ignore_index=13") == 8


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nameless", r"gave no classes; add `classes` to the dict, their names or their number"),
        ("load PIL data.args.classes=1", r"gave 1 classes; 2 to 255 can be learned"),
        ("load PIL data.args.classes=abc", r"gave classes='abc', which is one text; let it be a list of names"),
        ("load PIL data.args.classes=[a,b,a]", r"gave several classes the name a; let each have its own"),
        (
            "load alone",
            r"train\[0\] is a picture of PIL in mode RGB; let it be \(picture, mask\), or a dict of image",
        ),
        ("load colours", r"train\[0\] has for its mask a picture of PIL in mode RGB; let it be integers"),
        ("load float", r"train\[0\] has for its mask an array \(8, 9\) of float64; let it be integers"),
        ("load bfloat16", r"train\[0\] has for its mask a tensor \(8, 9\) of bfloat16; let it be integers"),
        ("cut_off", r"train\[0\] has a mask that cannot be read: OSError: "),
        ("load stacked", r"train\[0\] has for its mask an array \(1, 8, 9\) of uint8; let it be integers"),
        ("load number", r"train\[0\] has for its mask something of type int; let it be integers"),
        ("load larger", r"train\[0\]: the picture is 9x8 pixels, but its mask is 11x10; they must be of one size"),
        ("load unknown", r"train\[0\] holds 3, which is not a class"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_target(target, words, module):
    name, *args = target.split()
    more = [f"data.args.as_kind={args[0]}", *args[1:]] if args else []
    with pytest.raises(ConfigError, match=words) as error:
        load(f"{module}:{name}", *more)
    assert str(error.value).startswith(f"data.target={module}:{name}")
    assert "\n" not in str(error.value)
    assert not list(Path("cache").glob("*/*"))


def test_masks_of_0_and_255_are_refused_with_what_to_write(module):
    words = r"the 5 masks of train hold the class 0 alone, besides .* \(where 0 and 255 are two classes, write 1"
    with pytest.raises(ConfigError, match=words):
        load(f"{module}:load", "data.args={as_kind: black_and_white, classes: 2}", "data.ignore_index=255")


def test_an_ignore_index_that_is_a_class_is_refused(module):
    with pytest.raises(ConfigError, match=r"^data.ignore_index=2 is one of the classes 0 to 2 of data.target=own"):
        load(f"{module}:load", "data.ignore_index=2")


def test_a_run_trains_on_it(module, tmp_path):
    small = ["epochs=1", "batch_size=2", "eval_batch_size=2", "log_every=1", "diagnostics=false"]
    run = run_training(0, [*overrides(f"{module}:load"), *small, f"output_dir={tmp_path}/runs"])
    assert run["outcome"].status == "finished"
    assert f"-{module}.load-" in run["run"].directory.name
