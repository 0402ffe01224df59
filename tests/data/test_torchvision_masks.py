"""Segmentation data through torchvision, on folders of their own layout with two pictures each."""

import numpy as np
import pytest
from PIL import Image

from normlab.config import ConfigError
from normlab.config.data import TorchvisionMasksConfig
from normlab.data import load
from normlab.data.torchvision_masks import VOC_CLASSES
from tests.data.mask_files import SIZES, mask_of, write


def voc(root):
    base = root / "VOCdevkit/VOC2012"
    for split, name in (("train", "a"), ("val", "b")):
        width, height = SIZES[name]
        write(base / f"JPEGImages/{name}.jpg", np.zeros((height, width, 3), dtype=np.uint8))
        mask = Image.fromarray(mask_of(name, (0, 20, 255)))
        mask.putpalette([1, 2, 3] * 256)
        write(base / f"SegmentationClass/{name}.png", mask)
        (base / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (base / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    return (0, 20, 255), VOC_CLASSES


def cityscapes(root):
    for split, name in (("train", "a"), ("val", "b")):
        width, height = SIZES[name]
        picture = np.zeros((height, width, 3), dtype=np.uint8)
        write(root / f"leftImg8bit/{split}/town/{name}_leftImg8bit.png", picture)
        # Ids 7 and 33 are road and bicycle, the first and last of the 19 that are judged; 3 is not.
        write(root / f"gtFine/{split}/town/{name}_gtFine_labelIds.png", mask_of(name, (7, 33, 3)))
    return (0, 18, 255), None


def oxford_pets(root):
    base = root / "oxford-iiit-pet"
    for split, name in (("trainval", "a"), ("test", "b")):
        width, height = SIZES[name]
        write(base / f"images/{name}.jpg", np.zeros((height, width, 3), dtype=np.uint8))
        write(base / f"annotations/trimaps/{name}.png", mask_of(name, (1, 2, 3)))
        (base / f"annotations/{split}.txt").write_text(f"{name} 1 1 1\n")
    return (0, 1, 2), ["pet", "background", "border"]


@pytest.mark.parametrize("make", [voc, cityscapes, oxford_pets])
def test_torchvisions_data_are_read_where_they_lie(make, tmp_path):
    values, classes = make(tmp_path / "data")
    cfg = TorchvisionMasksConfig(
        name=make.__name__, root=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"), download=False
    )
    data = load(cfg)
    for split, name in ((data.train, "a"), (data.val, "b")):
        assert len(split) == 1
        assert np.array_equal(split.sample(0)[1].numpy(), mask_of(name, values))
    if classes:
        assert data.classes == classes
    else:
        assert (data.classes[0], data.classes[18], len(data.classes)) == ("road", "bicycle", 19)
    assert len(data.palette_K3) == len(data.classes)


@pytest.mark.parametrize("name", ["voc", "cityscapes", "oxford_pets"])
def test_data_that_are_not_there_are_named(name, tmp_path):
    with pytest.raises(ConfigError, match=rf"data\.root=.*holds no intact {name}"):
        load(TorchvisionMasksConfig(name=name, root=str(tmp_path), download=False))


def test_a_listed_picture_that_is_missing_is_named(tmp_path):
    voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/a.png").unlink()
    with pytest.raises(ConfigError, match=r"SegmentationClass/a\.png cannot be read"):
        load(TorchvisionMasksConfig(root=str(tmp_path), cache_dir=str(tmp_path / "cache"), download=False))
