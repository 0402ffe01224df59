import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.generated_study import generate
from normlab.logger import FileLogger
from normlab.report.reading import read
from normlab.report.study import Study
from tests.processes import until
from tests.runs import TINY, StopAt, build

SETTINGS = [*TINY, "epochs=2", "virtual_ranks=2"]
NORMS, BATCH_SIZES, SEEDS = ("bn", "gn"), (4, 8), (0, 1)


def train(root: Path, *overrides: str, stop: StopAt | None = None) -> Path:
    """One real run below `root`, with every file that train.py leaves; returns its directory."""
    trainer = build(0, [*SETTINGS, f"output_dir={root}", *overrides])
    logger = FileLogger(trainer.run)
    outcome = trainer.train(logger, stop or (lambda: 0))
    logger.close(outcome.metrics if outcome.status == "finished" else None)
    if outcome.status != "stopped":
        trainer.run.write_result(outcome.status, outcome.metrics, outcome.measured)
    (trainer.run.directory / "log.txt").write_text(f"trained {trainer.run.config.norm.name}\nthe last line\n")
    return trainer.run.directory


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A study of real runs: two norms, two batch sizes, two seeds; one more seed of gn was stopped, one of bn
    failed."""
    root = tmp_path_factory.mktemp("trained")
    for norm in NORMS:
        for batch_size in BATCH_SIZES:
            for seed in SEEDS:
                train(root, f"norm={norm}", f"batch_size={batch_size}", f"seed={seed}")
    train(root, "norm=gn", "batch_size=8", "seed=2", stop=StopAt(4, 15))
    failed = build(0, [*SETTINGS, f"output_dir={root}", "norm=bn", "batch_size=8", "seed=2"]).run
    failed.fail("rank 0: out of luck", "")
    return root / "test"


@pytest.fixture
def study_folder(trained, tmp_path) -> Path:
    """The study of real runs, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "study"))


@pytest.fixture(scope="session")
def study(trained) -> Study:
    return Study(read(trained))


@pytest.fixture(scope="session")
def thousand(tmp_path_factory) -> Path:
    """A thousand made-up runs of 200 points each."""
    root = tmp_path_factory.mktemp("thousand")
    generate(root)
    return root


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; with CI=true its absence is a failure."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        if os.environ.get("CI") == "true":
            pytest.fail("chromium and chromedriver are not installed; .ci/install-browser installs them")
        pytest.skip("needs chromium and chromedriver: .ci/install-browser")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="session")
def start_tensorboard(tmp_path_factory):
    """start_tensorboard(logdir) -> the address of a real TensorBoard that has read all that is there."""
    servers = []

    def start(logdir: Path) -> str:
        log = tmp_path_factory.mktemp("tensorboard") / "log.txt"
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
        command += ["--host", "127.0.0.1", "--port", "0"]
        # --load_fast=false: the event files are read in this process, so nothing is left when it ends. It answers
        # once it has read them: while it reads, it shows runs without their points.
        command += ["--load_fast", "false", "--reload_task", "blocking", "--reload_interval", "0"]
        with log.open("wb") as out:
            server = subprocess.Popen(command, stdout=out, stderr=out)
        servers.append(server)

        def address() -> re.Match[str] | None:
            assert server.poll() is None, log.read_text()
            return re.search(r" at (http://127\.0\.0\.1:\d+)/", log.read_text())

        until(address)
        return address()[1]

    yield start
    for server in servers:
        server.kill()
        server.wait()
