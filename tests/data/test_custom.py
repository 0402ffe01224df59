"""Data that users name as module:name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from normlab import data
from normlab.config import ConfigError
from normlab.data.decode import decode
from tests.runs import run_training, typed

MODULE = """
import io
import numpy as np
import torch
from PIL import Image

read = []

class Pictures:
    def __init__(self, size, as_kind):
        self.size, self.as_kind = size, as_kind

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        read.append(index)
        pixels = np.random.default_rng(index).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        kinds = {
            "PIL": (Image.fromarray(pixels), index % 3),
            "array": (pixels, np.int64(index % 3)),
            "tensor": (torch.from_numpy(pixels).permute(2, 0, 1), torch.tensor(index % 3)),
            "dict": {"image": Image.fromarray(pixels), "label": index % 3},
            "float": (torch.rand(3, 6, 5), 0),
            "bfloat16": (torch.rand(3, 6, 5).bfloat16(), 0),
            "grey": (Image.fromarray(np.zeros((6, 5), dtype=np.float32)), 0),
            "alone": pixels,
            "name": (pixels, "cat"),
            "negative": (pixels, -1),
            "high": (pixels, 7),
            "id": (pixels, 2**70 + index),
            "zero": (pixels, 0),
            "three": (pixels, 0, "a.png"),
        }
        return kinds[self.as_kind]

def load(as_kind="PIL", train=7, root="", **more):
    return {"train": Pictures(train, as_kind), "test": Pictures(4, as_kind), **more}

def same(as_kind="PIL"):
    return load(as_kind)

def lonely():
    return {"train": Pictures(7, "PIL")}

def number():
    return 3

def raises():
    return {"train": [missing]}

def cut_off():
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)).save(whole, "PNG")
    half = [(Image.open(io.BytesIO(whole.getvalue()[:5000])), 0)]
    return {"train": half, "test": half}

def lazy():
    class Fails(Pictures):
        def __getitem__(self, index):
            return 1 / 0
    return {"train": Fails(2, ""), "test": Fails(2, "")}
"""


@pytest.fixture
def module(own_module) -> str:
    return own_module(MODULE)


def overrides(target: str, *more: str) -> list[str]:
    return ["data=custom", f"data.target={target}", "data.cache_dir=cache", "data.image_size=4", *more]


def load(target: str, *more: str):
    return data.load(typed(*overrides(target, *more)).data)


def pictures(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(index).integers(0, 256, (6, 5, 3), dtype=np.uint8) for index in range(count)]


@pytest.mark.parametrize("kind", ["PIL", "array", "tensor", "dict"])
def test_pictures_are_those_that_image_files_would_give(kind, module, tmp_path):
    found = load(f"{module}:load", f"data.args.as_kind={kind}")
    for index, pixels in enumerate(pictures(7)):
        Image.fromarray(pixels).save(tmp_path / "one.png")
        assert (found.train.images_BHWC[index].numpy() == decode(str(tmp_path / "one.png"), 4)).all()
    assert found.train.labels_B.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (len(found.val), found.test, found.eval_split) == (4, None, "test")
    assert found.classes == ["0", "1", "2"]
    torch.testing.assert_close(found.mean_C, found.train.images_BHWC.double().mean((0, 1, 2)) / 255)


def test_classes_and_a_val_split_are_taken_where_they_are_given(module, tmp_path):
    Path(f"{module}.py").write_text(
        MODULE + "def all():\n    return load(val=Pictures(2, 'PIL'), classes=['cat', 'dog', 'eel'])\n"
    )
    found = load(f"{module}:all")
    assert (len(found.val), len(found.test), found.eval_split) == (2, 4, "val")
    assert found.classes == ["cat", "dog", "eel"]


def test_pictures_are_read_once_until_the_file_the_arguments_or_a_length_change(module):
    from importlib import import_module

    def reads(*more: str) -> int:
        before = len(import_module(module).read)
        load(f"{module}:load", *more)
        return len(import_module(module).read) - before

    assert (reads(), reads()) == (11, 0)
    assert reads("data.args.as_kind=array") == 11
    assert reads("data.args.root=/some/folder") == 11
    assert reads() == 0
    assert reads("data.args.train=8") == 12
    Path(f"{module}.py").write_text(MODULE + "# another\n")
    assert reads() == 11


def test_the_fingerprint_is_of_what_was_read_and_not_of_how(module):
    first = load(f"{module}:load").fingerprint
    assert load(f"{module}:same", "data.args.as_kind=array").fingerprint == first
    assert load(f"{module}:load", "data.args.train=8").fingerprint != first
    assert load(f"{module}:load", "data.args.classes=[a,b,c]").fingerprint != first


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("number", r"gave something of type int; let it give a dict of train and test"),
        ("lonely", r"gave a dict of train; let it give a dict of train and test"),
        ("raises", r"NameError at own_\d+\.py:\d+: name 'missing' is not defined"),
        ("lazy", r"train\[0\]: ZeroDivisionError at own_\d+\.py:\d+: division by zero"),
        ("cut_off", r"train\[0\] has a picture that cannot be read: OSError: "),
        ("load float", r"train\[0\] has for its picture a tensor \(3, 6, 5\) of float32; let it be one of PIL"),
        (
            "load bfloat16",
            r"train\[0\] has for its picture a tensor \(3, 6, 5\) of bfloat16; let it be one of PIL",
        ),
        ("load grey", r"train\[0\] is a picture of floats, with no defined black and white"),
        ("load alone", r"train\[0\] is an array \(6, 5, 3\) of uint8; let it be \(picture, label\)"),
        ("load name", r"train\[0\] has the label cat; let it be the number of the class, from 0"),
        ("load negative", r"train\[0\] has the label -1; let it be at least 0"),
        (
            "load high data.args.classes=[a,b]",
            r"train\[0\] has the label 7; let it be 0 to 1, which classes names",
        ),
        ("load id", r"train\[0\] has the label 1180591620717411303424, but there are 11 pictures; number the cla"),
        ("load PIL data.args.classes=abc", r"gave classes='abc', which is one text; let it be a list of names"),
        ("load zero", r"every label is 0, so there is nothing to learn; give at least 2 classes"),
        ("load three", r"train\[0\] is a tuple of 3; let it be \(picture, label\)"),
        ("load PIL data.args.train=0", r"gave nothing for train; let it be a list"),
        ("load PIL data.args.val=3", r"gave something of type int for val; let it be a list"),
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


def test_a_run_trains_on_it(module, tmp_path):
    small = ["epochs=1", "batch_size=4", "eval_batch_size=4", "log_every=1", "diagnostics=false"]
    run = run_training(0, [*overrides(f"{module}:load"), *small, f"output_dir={tmp_path}/runs"])
    assert run["outcome"].status == "finished"
    assert f"-{module}.load-" in run["run"].directory.name
