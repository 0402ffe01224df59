"""CIFAR through torchvision, on an archive of its own format with a handful of pictures."""

import hashlib
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from torchvision import datasets

from normlab.config import ConfigError
from normlab.config.data import CifarConfig
from normlab.data import load

READERS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def write_archive(root, reader, monkeypatch):
    """Files as CIFAR's authors pickled them, and their checksums where torchvision looks for them."""
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    fine = reader is datasets.CIFAR100

    def put(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def put_batch(number, name):
        pixels = np.full((4, 3072), number, dtype=np.uint8)
        pixels[:, 1024:2048] = 100  # green, for planes come one after the other
        return [name, put(name, {"data": pixels, "fine_labels" if fine else "labels": [0, 1, 2, number]})]

    for attribute in ("train_list", "test_list"):
        listed = [put_batch(i, name) for i, (name, _) in enumerate(getattr(reader, attribute))]
        monkeypatch.setattr(reader, attribute, listed)
    names = [f"class {i}" for i in range(10)]
    md5 = put(reader.meta["filename"], {reader.meta["key"]: names})
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5})


@pytest.mark.parametrize(("name", "num_train"), [("cifar10", 20), ("cifar100", 4)])
def test_an_unpacked_archive_is_read_without_the_network(name, num_train, tmp_path, monkeypatch):
    write_archive(tmp_path, READERS[name], monkeypatch)
    data = load(CifarConfig(name=name, root=str(tmp_path), download=False))
    assert data.train.images_BHWC.shape == (num_train, 32, 32, 3)
    assert data.train.images_BHWC.dtype == torch.uint8
    last = data.train.images_BHWC[-1, 5, 5].tolist()
    assert last == [data.train.labels_B[-1].item(), 100, data.train.labels_B[-1].item()]
    assert len(data.val) == 4
    assert data.classes[3] == "class 3"
    assert data.fingerprint == f"{name}-{READERS[name].tgz_md5}"


def test_a_missing_archive_without_download_is_one_line_with_the_fix(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(CifarConfig(root=str(tmp_path / "nowhere"), download=False))
    assert all(word in str(caught.value) for word in ("data.root=", "nowhere", "data.download=true"))
    assert "\n" not in str(caught.value)


def test_an_archive_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", refuse)
    with pytest.raises(ConfigError, match="no intact cifar10"):
        load(CifarConfig(root=str(tmp_path), download=False))


def test_a_download_goes_to_the_home_folder_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", lambda *args, **kwargs: None)
    with pytest.raises(ConfigError):
        load(CifarConfig(root="~/data"))
    assert (tmp_path / "home/data").is_dir()
    assert not (tmp_path / "~").exists()


def test_a_damaged_archive_is_not_read(tmp_path, monkeypatch):
    write_archive(tmp_path, datasets.CIFAR10, monkeypatch)
    (tmp_path / datasets.CIFAR10.base_folder / "test_batch").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="no intact cifar10"):
        load(CifarConfig(root=str(tmp_path), download=False))


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no network"), RuntimeError("File not found or\ncorrupted.")]
)
def test_a_failed_download_is_one_line_with_the_fix(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(ConfigError) as caught:
        load(CifarConfig(root=str(tmp_path / "new"), download=True))
    assert all(word in str(caught.value) for word in ("data.root=", "could not be fetched", "cifar-10-python"))
    assert "\n" not in str(caught.value)


def test_a_root_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"data\.root=.*file/data holds no intact"):
        load(CifarConfig(root=str(tmp_path / "file" / "data")))
