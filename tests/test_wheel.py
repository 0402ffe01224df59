"""What a wheel installs works from an empty folder, without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import import_module
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS
from tests.processes import PATIENCE_S, ROOT, TINY

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
"""A path to the checkout in it would be found before what is installed."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The commands of a new environment, into which a wheel of this checkout was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy: a build leaves its files beside the source, where the next one would find them.
    for name in ("conf", "launch", "normlab"):
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    subprocess.run(
        [*PIP, "wheel", "--no-deps", "--wheel-dir", folder, folder / "source"], check=True, env=ENVIRONMENT
    )
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    subprocess.run(
        [*PIP, "--python", python, "install", "--no-deps", *folder.glob("*.whl")], check=True, env=ENVIRONMENT
    )
    # What normlab needs is taken from this Python: a .pth file brings in its packages, but not the checkout.
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv/bin"


def test_the_installed_command_trains_sweeps_and_reports_from_an_empty_folder(installed, tmp_path):
    def run(command: str, *more: str) -> str:
        words = [installed / command.split()[0], *command.split()[1:], *more]
        options = {
            "cwd": tmp_path,
            "env": ENVIRONMENT,
            "capture_output": True,
            "text": True,
            "timeout": PATIENCE_S,
        }
        ended = subprocess.run(words, **options)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    where = "import normlab, launch; print(normlab.__file__, launch.__file__)"
    assert all(str(installed.parent) in path for path in run("python -c", where).split())
    assert list(installed.parent.glob("lib/*/site-packages/normlab/py.typed"))
    assert "normlab train norm=syncbn" in run("normlab train --help")
    (tmp_path / "my_nets.py").write_text(
        "import torchvision\nfrom torch import nn\n\n\n"
        "def build(num_classes):\n    return torchvision.models.resnet18(num_classes=num_classes)\n\n\n"
        "def load(**args):\n    data = torchvision.datasets.FakeData(**args)\n"
        "    return {'train': data, 'test': data}\n\n\n"
        "def norm(num_features, groups):\n    return nn.GroupNorm(groups, num_features)\n"
    )
    own = ("model=custom", "model.target=my_nets:build", "data=custom", "data.target=my_nets:load")
    own += ("data.args={size: 96, image_size: [3, 32, 32]}", "data.cache_dir=cache")
    sizes = [word for word in TINY if not word.startswith("data.")]
    assert "finished: val/loss" in run("normlab train experiment=quickstart epochs=1", *sizes, *own)
    preset = tmp_path / "my_conf/experiment/mine.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(
        "# @package _global_\nepochs: 1\nworld_size: 2\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {norm: 'bn,custom'}}}\n"
    )
    own += ("norm.target=my_nets:norm", "norm.args={groups: 4}")
    assert "2 finished" in run("normlab train --config-dir my_conf experiment=mine", *sizes, *own)
    assert "2 finished" in run("normlab status runs/mine")
    run("normlab report runs/mine")
    assert "my_nets.norm" in (tmp_path / "runs/mine/report/index.html").read_text()
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"my_conf", "my_nets.py", "runs", "cache"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_what_it_calls(command):
    assert callable(import_module(COMMANDS[command][0]).main)
