"""Data are decoded by a command of their own, and found by the runs after it."""

import pytest

from launch import prepare
from normlab import data
from normlab.data import image_folder
from tests.data.jpeg_files import write_folder
from tests.runs import typed


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words):
        monkeypatch.setattr("sys.argv", ["launch.prepare", *words])
        try:
            prepare.main()
            code = 0
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    return run


def test_a_run_finds_the_cache_that_was_prepared(command, tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets", train=3, test=2)
    words = ["data=image_folder", f"data.root={root}", "data.image_size=16", f"data.cache_dir={tmp_path}/cache"]
    code, out, err = command(*words)
    assert code == 0, err
    assert "decoding pets: 10/10" in err
    monkeypatch.setattr(image_folder, "_build", lambda *args, **kwargs: pytest.fail("it is decoded again"))
    dataset = data.load(typed(*words).data)
    assert out.splitlines()[-1] == f"6 samples of 2 classes to train on; fingerprint {dataset.fingerprint}"
    assert command(*words)[:2] == (0, out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=birds"], "there is no data=birds"),
        (["data=image_folder", "data.rot=x"], "there is no key data.rot; did you mean data.root?"),
        (["data=image_folder", "data.root=nowhere"], "data.root=nowhere: nowhere is not a folder"),
        (["data=mask_folder", "data.root=nowhere"], "data.root=nowhere: nowhere is not a folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said, command):
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
