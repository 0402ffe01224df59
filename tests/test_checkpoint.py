import os

import pytest
import torch

from normlab import checkpoint
from normlab.config import ConfigError

STATE = {"step": 3, "model": {"w": torch.arange(5000.0)}, "metrics": {"val/loss": 0.5}}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded["model"]["w"], STATE["model"]["w"])
    assert (loaded["step"], loaded["metrics"]) == (3, {"val/loss": 0.5})
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    with pytest.raises((AttributeError, TypeError)):
        checkpoint.save(tmp_path / "c.pt", {"step": 4, "bad": lambda: None})
    assert checkpoint.load(tmp_path / "c.pt")["step"] == 3
    assert os.listdir(tmp_path) == ["c.pt"]


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


def test_a_pickle_from_outside_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": checkpoint.FORMAT, "model": Evil()}, tmp_path / "c.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        checkpoint.load(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()
