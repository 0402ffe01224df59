import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from normlab import checkpoint
from normlab.config import ConfigError

STATE = {"step": 3, "model": {"w": torch.arange(5000.0)}, "metrics": {"val/loss": 0.5}}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded["model"]["w"], STATE["model"]["w"])
    assert (loaded["step"], loaded["metrics"]) == (3, {"val/loss": 0.5})
    assert os.listdir(tmp_path) == ["c.pt"]


def test_the_newest_and_the_one_before_it_are_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "c.pt", {**STATE, "step": step})
    assert sorted(os.listdir(tmp_path)) == ["c.previous.pt", "c.pt"]
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("c.previous.pt", "c.pt")] == [2, 3]


def test_they_are_kept_where_a_file_has_one_name_only(tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    test_the_newest_and_the_one_before_it_are_kept(tmp_path)


def test_a_save_that_was_cut_short_between_its_renames_is_made_up_for(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path / "c.pt", {**STATE, "step": step})
    os.replace(tmp_path / "c.pt", tmp_path / "c.previous.pt")
    os.link(tmp_path / "c.previous.pt", tmp_path / "c.pt")
    checkpoint.save(tmp_path / "c.pt", {**STATE, "step": 3})
    assert sorted(os.listdir(tmp_path)) == ["c.previous.pt", "c.pt"]
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("c.previous.pt", "c.pt")] == [2, 3]


def test_a_damaged_one_gives_way_to_the_one_before_it(tmp_path, capsys):
    path = tmp_path / "c.pt"
    assert not checkpoint.recover(path)
    for step in (1, 2):
        checkpoint.save(path, {**STATE, "step": step})
    assert checkpoint.recover(path)
    assert (checkpoint.load(path)["step"], capsys.readouterr().err) == (2, "")
    path.write_bytes(path.read_bytes()[:-100])
    assert checkpoint.recover(path)
    assert checkpoint.load(path)["step"] == 1
    assert "c.pt was damaged" in capsys.readouterr().err
    assert (tmp_path / "c.damaged.pt").exists()  # nothing is lost where it was judged wrongly
    path.rename(tmp_path / "c.previous.pt")
    assert checkpoint.recover(path)
    assert "c.pt was missing" in capsys.readouterr().err
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"c\.pt is damaged .* rerun=true"):
        checkpoint.recover(path)


@pytest.mark.parametrize(
    "altered", [{"step": 4}, {"model": {"w": torch.ones(5000)}}, {"metrics": {}}, {"more": 1}]
)
def test_a_file_that_was_written_anew_with_other_values_is_damaged(altered, tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    torch.save({**state, **altered}, tmp_path / "c.pt")
    with pytest.raises(ConfigError, match=r"c\.pt is damaged \(its checksum does not match\); .*rerun=true"):
        checkpoint.load(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("hash_", "steps", "width", "reason"),
    [
        ("other", 3, 4, "it was saved by run abc"),
        ("abc", 2, 4, "it was saved after step 3 of a run of 2"),
        ("abc", 3, 5, "its parameters have other names or shapes"),
    ],
)
def test_a_checkpoint_of_another_run_is_named_with_the_fix(hash_, steps, width, reason):
    state = {"hash": "abc", "step": 3, "model": nn.Linear(4, 4).state_dict()}
    with pytest.raises(ConfigError, match=rf"c\.pt is not this run's \({reason}\); .*rerun=true"):
        checkpoint.check(Path("c.pt"), state, hash_, steps, nn.Linear(4, width))
    checkpoint.check(Path("c.pt"), state, "abc", 3, nn.Linear(4, 4))


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    with pytest.raises((AttributeError, TypeError)):
        checkpoint.save(tmp_path / "c.pt", {"step": 4, "bad": lambda: None})
    assert checkpoint.load(tmp_path / "c.pt")["step"] == 3
    assert os.listdir(tmp_path) == ["c.pt"]


@pytest.mark.parametrize("in_zip", [True, False])
def test_a_whole_model_in_the_place_of_its_weights_is_said_to_be_one(in_zip, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pt", _use_new_zipfile_serialization=in_zip)
    words = (
        r"c\.pt: it holds a torch\.nn\.modules\.linear\.Linear, which is not .*; save the model's state_dict\(\)"
    )
    with pytest.raises(ConfigError, match=words):
        checkpoint.load_tensors(tmp_path / "c.pt")
    with pytest.raises(checkpoint.Damaged, match=r"is damaged \(it holds a torch\.nn.*rerun=true"):
        checkpoint.load(tmp_path / "c.pt")


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "empty", "text"])
def test_a_damaged_file_is_an_error_that_names_it_and_the_fix(damage, tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut short": content[:-100], "empty": b"", "text": b"hello"}.get(damage, content))
    with pytest.raises(ConfigError, match=r"c\.pt is damaged .* rerun=true"):
        checkpoint.load(path)


def test_any_flipped_bit_of_the_files_directory_is_damage_or_holds_nothing(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, STATE)
    whole = path.read_bytes()
    for back in range(1, 300):
        content = bytearray(whole)
        content[-back] ^= 1 << back % 8
        path.write_bytes(content)
        try:
            assert torch.equal(checkpoint.load(path)["model"]["w"], STATE["model"]["w"])
        except checkpoint.Damaged:
            continue


def test_a_pickle_from_outside_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": checkpoint.FORMAT, "model": Evil()}, tmp_path / "c.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()
