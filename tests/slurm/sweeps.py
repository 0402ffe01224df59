"""train.py on a test's cluster: submit, watch, disturb."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.jobs import Job
from normlab import checkpoint
from normlab.run import name_run
from normlab.run_files import find_runs
from tests.processes import hear_signals
from tests.runs import typed
from tests.slurm.cluster import PATIENCE_S, Cluster, until

ROOT = Path(__file__).parents[2]
TRAIN = str(ROOT / "train.py")
TINY = ["data.num_train=96", "data.num_test=50", "eval_batch_size=16", "eval_train_samples=20", "log_every=1"]
SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.tasks_per_node=1",  # a run of two ranks takes both nodes
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.poll_s=0.5",
]


@dataclass
class Sweep:
    """`train.py -m` in a folder of its own, on a cluster or, without one, on this machine."""

    folder: Path
    cluster: Cluster | None = None

    def run(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        launcher = SLURM if self.cluster else []
        return subprocess.run(
            [sys.executable, TRAIN, "-m", *launcher, *overrides],
            cwd=self.folder,
            env=self.cluster.env if self.cluster else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )

    @contextmanager
    def started(self, *overrides: str) -> Iterator[subprocess.Popen[str]]:
        """A sweep on the cluster that is still going on inside the block."""
        assert self.cluster is not None
        with subprocess.Popen(
            [sys.executable, TRAIN, "-m", *SLURM, *overrides],
            cwd=self.folder,
            env=self.cluster.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=hear_signals,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def directories(self) -> list[Path]:
        return find_runs(self.folder / "runs")

    def results(self) -> dict[str, dict]:
        return {
            path.parent.name: json.loads(path.read_text()) for path in self.folder.glob("runs/*/*/result.json")
        }

    def only(self) -> Path:
        (directory,) = self.directories()
        return directory

    def launch(self) -> dict:
        (launch,) = self.launches()
        return launch

    def launches(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self.folder.glob("runs/*/*/launch.json")]

    def result(self) -> dict:
        return json.loads((self.only() / "result.json").read_text())

    def checkpoint(self) -> dict:
        return checkpoint.load(self.only() / "checkpoint.pt")

    def wait_for_step(self, step: int) -> None:
        until(
            lambda: (self.only() / "checkpoint.pt").exists() and self.checkpoint()["step"] >= step,
            f"step {step}",
            self.about,
        )

    def wait_for_result(self) -> None:
        until((self.only() / "result.json").exists, "result.json", self.about)

    def status(self) -> list[dict]:
        """What `launch.status` tells of each run."""
        assert self.cluster is not None
        command = [sys.executable, "-m", "launch.status", str(self.folder / "runs"), "--json"]
        done = subprocess.run(command, env=self.cluster.env, cwd=ROOT, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def about(self) -> str:
        """What SLURM and the ranks say."""
        queue = self.cluster.run("squeue") if self.cluster else ""
        logs = sorted(self.folder.glob("runs/.slurm/*/*_log.*"))
        return "\n".join([queue, *(f"{path.name}: {path.read_text()}" for path in logs)])


def change_ranks(folder: Path, code: str) -> str:
    """The `setup` override under which `code` runs in every rank, once normlab.trainer is imported."""
    module = folder / "changed"
    module.mkdir()
    (module / "sitecustomize.py").write_text(f"from normlab.trainer import Trainer\nstep = Trainer._step\n{code}")
    return f"hydra.launcher.setup=['export PYTHONPATH={ROOT}:{module}']"


def job(tmp_path: Path, *overrides: str, world_size: int = 1) -> Job:
    """A job of a sweep, planned without data."""
    cfg = typed(f"output_dir={tmp_path}/runs", *overrides)
    run = name_run(cfg, world_size=world_size, study="sizes", data_fingerprint="x")
    return Job(run, "sizes", overrides, total_samples=96, places=(0,), name=" ".join(overrides))
