"""A cache on disk: verified against what was decoded, shared by several users, and cleared of nothing else."""

import os
import shutil

import numpy as np
import pytest

from normlab.data import cache
from normlab.data.cache import ArrayWriter, map_array, read_or_build

KEY, OTHER_KEY = "0123456789abcdef", "fedcba9876543210"
PIXELS = np.arange(2000, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache/pictures"


@pytest.fixture
def load(folder):
    """Reads the cache, and counts how often it was built."""

    def build(place):
        load.built += 1
        with ArrayWriter(place / "pixels.npy", PIXELS.shape[1:], PIXELS.dtype) as writer:
            writer.write(PIXELS)

    def load(key=KEY):
        pixels = read_or_build(
            folder, key, lambda place: map_array(place / "pixels.npy", PIXELS.shape, PIXELS.dtype), build
        )
        assert pixels.tolist() == PIXELS.tolist()

    load.built = 0
    return load


@pytest.fixture
def read(monkeypatch):
    """How often checksums were computed."""
    read, compute = [], cache._checksums
    monkeypatch.setattr(cache, "_checksums", lambda place: (read.append(place), compute(place))[1])
    return read


def spoil(file):
    """Zeros in the place of the last pixels: the size stays."""
    content = file.read_bytes()
    file.write_bytes(content[:-100] + bytes(100))


def test_pixels_that_changed_on_disk_are_found_and_made_anew_and_it_is_said(load, folder, capsys):
    load()
    assert capsys.readouterr().err == ""
    spoil(folder / KEY / "pixels.npy")
    load()
    assert load.built == 2
    assert "warning: a damaged cache is rebuilt: " in (said := capsys.readouterr().err)
    assert (said.count("\n"), "pixels.npy" in said) == (1, True)


def test_a_damaged_cache_is_rebuilt_whatever_else_lies_in_it(load, folder):
    load()
    (folder / KEY / ".nfs0001").write_text("of a process that still has it open")
    spoil(folder / KEY / "pixels.npy")
    load()
    load()
    assert load.built == 2


def test_a_cache_is_read_to_be_verified_once_until_its_files_change(load, folder, read):
    load()
    assert len(read) == 1  # as it was made
    load()
    assert len(read) == 1
    os.utime(folder / KEY / "pixels.npy")
    load()
    load()
    assert len(read) == 2
    assert load.built == 1


@pytest.mark.parametrize("seen_by", ["another user", "another machine", "a user without a folder"])
def test_each_user_and_machine_verifies_a_shared_cache(load, read, tmp_path, monkeypatch, seen_by):
    load()
    if seen_by == "another machine":
        monkeypatch.setattr(cache.platform, "node", lambda: "elsewhere")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    if seen_by == "a user without a folder":
        (tmp_path / "another").write_text("")
    load()
    load()
    assert len(read) == (3 if seen_by == "a user without a folder" else 2)
    assert load.built == 1


def test_a_damaged_note_of_what_was_verified_costs_a_look_and_no_build(load, read, own_cache):
    load()
    [note] = (own_cache / "normlab/verified").iterdir()
    note.write_bytes(b"\xff\xfe")
    load()
    assert (len(read), load.built) == (2, 1)


@pytest.mark.parametrize("checksums", ["", "[]", "{}", None])
def test_a_cache_without_its_checksums_is_made_anew(load, folder, checksums):
    load()
    (folder / KEY / "checksums.json").unlink()
    if checksums is not None:
        (folder / KEY / "checksums.json").write_text(checksums)
    load()
    assert load.built == 2


def test_a_build_clears_away_what_builds_left_and_nothing_else(load, folder):
    load(OTHER_KEY)
    (folder / "half-made-x").mkdir()
    (folder / "half-made-x/pixels.npy").write_bytes(b"")
    kept = [folder / "notes", folder / "0000000000000000", folder / "1111111111111111"]
    for place in kept[:2]:
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    kept[2].symlink_to(folder.parent)
    (folder / "pixels.npy").write_text("a file of somebody's")
    load()
    assert sorted(folder.iterdir()) == sorted([folder / KEY, folder / "pixels.npy", *kept])
    assert all((place / "thesis.tex").exists() for place in kept[:2])


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_cache_is_open_to_those_whom_the_umask_lets_in(load, folder, umask):
    before = os.umask(umask)
    try:
        load()
    finally:
        os.umask(before)
    made = [folder, folder / KEY, *(folder / KEY).iterdir(), *folder.parent.glob("*.lock")]
    assert len(made) == 5
    for place in made:
        assert place.stat().st_mode & 0o777 == (0o777 if place.is_dir() else 0o666) & ~umask, place


def test_a_finished_cache_may_be_read_only(load, folder, monkeypatch):
    load()
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    monkeypatch.setattr(cache, "FileLock", lambda path: pytest.fail("locked, which asks for the right to write"))
    load()
