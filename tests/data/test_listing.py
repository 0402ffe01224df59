"""What lies under data.root: what cannot be read is one line that names it."""

import os
import socket
from collections import namedtuple

import pytest

from normlab.config import ConfigError
from normlab.data import listing
from normlab.data.listing import announce, files_under


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root/deep").mkdir(parents=True)
    (tmp_path / "root/deep/1.png").write_bytes(b"x")
    return tmp_path / "root"


def circle(root):
    (root / "deep/up").symlink_to(root)
    return r"deep/up/?.* is a link to one of its own parent folders"


def itself(root):
    (root / "deep/me.png").symlink_to("me.png")
    return r"deep/me\.png cannot be read as a link"


def dangling(root):
    (root / "deep/gone").symlink_to("nowhere")
    return r"deep/gone cannot be read as a link \(No such file"


def pipe(root):
    os.mkfifo(root / "deep/2.png")
    return r"deep/2\.png is not a file but a folder, pipe, socket or device"


def plug(root):
    here = os.getcwd()
    os.chdir(root)  # the path of a socket may have 107 letters
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("3.png")
    os.chdir(here)
    return r"3\.png is not a file"


@pytest.mark.parametrize("trap", [circle, itself, dangling, pipe, plug], ids=lambda trap: trap.__name__)
def test_what_cannot_be_read_is_named(root, trap):
    words = trap(root)
    with pytest.raises(ConfigError, match=words) as raised:
        files_under(str(root))
    assert "\n" not in str(raised.value)


def test_a_folder_that_may_not_be_read_is_named(root, monkeypatch):
    def refuse(folder, scan=os.scandir):
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match=r"deep cannot be read \(Permission denied\)"):
        files_under(str(root))


def test_links_that_lead_on_and_folders_named_like_pictures_are_followed(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/2.jpg").write_bytes(b"xy")
    (root / "a.png").mkdir()
    (root / "a.png/linked").symlink_to(tmp_path / "elsewhere")
    (root / "3.png").symlink_to(tmp_path / "elsewhere/2.jpg")
    os.mkfifo(root / "queue")  # no picture by its name: passed over
    found = {path.removeprefix(f"{root}/"): size for path, size, _ in files_under(str(root))}
    assert found == {"a.png/linked/2.jpg": 2, "3.png": 2, "deep/1.png": 1}


def test_what_does_not_fit_the_disk_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(listing.shutil, "disk_usage", lambda place: usage(10**9))
    said = []
    announce(tmp_path / "half", "9 images of pets", 10**9, said.append)
    assert said == [f"decoding 9 images of pets into {tmp_path} (1 GB)"]
    with pytest.raises(ConfigError, match=r"9 images of pets take 1\.5 GB, and 1 GB are free.*data\.image_size"):
        announce(tmp_path / "half", "9 images of pets", 15 * 10**8, said.append)
