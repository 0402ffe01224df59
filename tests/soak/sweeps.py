"""A sweep whose processes are killed at random and which is started again until all its runs have ended.

python -m tests.soak.sweeps --runs 1000 --kills 50
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normlab.run_state import is_locked
from tests.processes import TRAIN, alive, born, descendants

TINY = ["data.num_train=64", "data.num_test=16", "eval_batch_size=16", "eval_train_samples=16", "batch_size=8"]
TINY += ["diagnostics_samples=16", "log_every=1", "epochs=1", "checkpoint_every_s=0", "threads=1"]
TINY += ["progress=false", "study=soak", "output_dir=runs"]
CHOICES = 10
"""Of every ten runs one has two ranks."""
STALLED_S = 300
"""No run takes as long: a sweep in which nothing ends for this time hangs."""
MOST_GROWTH_MB = 10
OF_A_SPEED = ("images_per_second",)
"""What is logged and differs from one training to the next."""


@dataclass
class Sample:
    """The sweep process while `ended` of its runs had ended."""

    ended: int
    rss_mb: float
    files: int


@dataclass
class Swept:
    """A sweep in a folder of its own: started, watched, killed, and started again."""

    folder: Path
    runs: int
    starts: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    everyone: set[tuple[int, int]] = field(default_factory=set)
    """(process id, when it started) of all processes that were seen: ids come again."""
    first_results: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """(inode, time) of each result.json of a run that finished, when it was first seen."""

    def command(self) -> list[str]:
        seeds = self.runs // CHOICES
        choices = ",".join(f"soak{n}" for n in range(CHOICES))
        sweep = [f"experiment={choices}", f"seed=range({seeds})"]
        return [sys.executable, TRAIN, "-m", *TINY, *sweep, f"--config-dir={self.folder}/conf"]

    def write_choices(self) -> None:
        folder = self.folder / "conf/experiment"
        folder.mkdir(parents=True)
        for n in range(CHOICES):
            settings = {"world_size": 2 if n == 0 else 1, "optim": {"lr": 0.05 + 0.01 * n}}
            (folder / f"soak{n}.yaml").write_text(f"# @package _global_\n{json.dumps(settings)}\n")

    def start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        (self.folder / "tmp").mkdir(exist_ok=True)
        with (self.folder / f"sweep{self.starts}.log").open("wb") as log:
            env = os.environ | {"TMPDIR": str(self.folder / "tmp")}
            return subprocess.Popen(
                self.command(), cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def look(self, sweep: int) -> int:
        """Remember what is to be seen just now. Returns how many runs have finished."""
        self.everyone.update((pid, started) for pid in (sweep, *descendants(sweep)) if (started := born(pid)))
        for path in self.folder.glob("runs/soak/*/result.json"):
            with suppress(FileNotFoundError):  # a failed run is trained again
                if path not in self.first_results and json.loads(path.read_text())["status"] == "finished":
                    self.first_results[path] = _identity(path)
        with suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{sweep}/status").read_text()
            if "VmRSS:" in status:
                rss_mb = int(status.partition("VmRSS:")[2].split()[0]) / 1024
                files = len(os.listdir(f"/proc/{sweep}/fd"))
                self.samples.append(Sample(len(self.first_results), rss_mb, files))
        return len(self.first_results)

    def run(self, kill_at: list[tuple[int, str]], chance: random.Random) -> None:
        """Until a sweep ends with every run finished. `kill_at`: (finished runs, what to kill then), in order."""
        self.write_choices()
        left = list(kill_at)
        code: int | None = None
        while code != 0:
            process = self.start()
            finished, since = -1, time.monotonic()
            while (code := process.poll()) is None:
                now_finished = self.look(process.pid)
                if now_finished != finished:
                    finished, since = now_finished, time.monotonic()
                assert time.monotonic() - since < STALLED_S, f"{finished} of {self.runs} finished, and no more"
                if left and finished >= left[0][0]:
                    time.sleep(chance.uniform(0, 1))  # at any moment of what it does
                    if self.kill(process.pid, left[0][1], chance):
                        left.pop(0)
                time.sleep(0.05)
            self.until_gone()
            if code not in (0, 1, -signal.SIGKILL):
                raise AssertionError(f"exit code {code}:\n{self.log()}")
        assert not left, f"nothing was there for {left}"

    def kill(self, sweep: int, what: str, chance: random.Random) -> bool:
        """SIGKILL for the sweep, or for one of its jobs or ranks. Returns whether there was one."""
        if what == "sweep":
            victims = [sweep]
        else:
            # Jobs and ranks are forked from the fork server; a job leads a session of its own.
            forked = [pid for child in descendants(sweep) for pid in descendants(child)]
            victims = [pid for pid in forked if _leads_session(pid) == (what == "job")] or forked
        if not victims:
            return False
        with suppress(ProcessLookupError):
            os.kill(chance.choice(victims), signal.SIGKILL)
            self.kills[what] += 1
            return True
        return False

    def until_gone(self) -> None:
        deadline = time.monotonic() + STALLED_S
        while left := [pid for pid, started in self.everyone if born(pid) == started] + _working_in(self.folder):
            assert time.monotonic() < deadline, f"processes that were left: {left}"
            time.sleep(0.05)

    def log(self) -> str:
        return (self.folder / f"sweep{self.starts}.log").read_text(errors="replace")

    def outcome(self) -> dict[str, Any]:
        """Of each run: its metrics, and its curves but for what the clock decides."""
        found = {}
        for directory in sorted(self.folder.glob("runs/soak/*")):
            result = json.loads((directory / "result.json").read_text())
            lines = (directory / "metrics.jsonl").read_text().splitlines()
            points = [{k: v for k, v in json.loads(line).items() if k not in OF_A_SPEED} for line in lines if line]
            found[directory.name] = (result["status"], result["metrics"], points)
        return found

    def leftovers(self) -> list[str]:
        """Files and locks that nobody needs once the sweep has ended."""
        runs = self.folder / "runs"
        left = [str(path) for path in runs.rglob(".*")]
        left += [str(path) for path in runs.rglob("lock") if is_locked(path) != (False, "")]
        # torchinductor's is a cache of torch, one folder per user.
        return left + [str(path) for path in (self.folder / "tmp").iterdir() if "torchinductor" not in path.name]

    def sample(self, part: float) -> Sample:
        """When that part of the runs had finished; the largest, since a sweep that has just begun is small."""
        most = max(sample.ended for sample in self.samples)  # the sweep may end before the last are seen
        ended = next(sample.ended for sample in self.samples if sample.ended >= min(int(part * self.runs), most))
        return max((sample for sample in self.samples if sample.ended == ended), key=lambda sample: sample.rss_mb)

    def growth_mb(self) -> float:
        """From a tenth of the runs to nearly all."""
        return self.sample(0.95).rss_mb - self.sample(0.1).rss_mb

    def trained_twice(self) -> list[Path]:
        return [path for path, before in self.first_results.items() if _identity(path) != before]


def _identity(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def _leads_session(pid: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getsid(pid) == pid
    return False


def _working_in(folder: Path) -> list[int]:
    """Processes whose working folder is `folder`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/cwd") == str(folder) and alive(int(pid)):
                found.append(int(pid))
    return found


def shared_memory() -> set[str]:
    """Blocks in /dev/shm, which are files of its top level, that no living process has open or mapped."""
    used = ""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            used += Path(f"/proc/{pid}/maps").read_text()
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    used += os.readlink(f"/proc/{pid}/fd/{fd}") + "\n"
    return {path.name for path in Path("/dev/shm").iterdir() if path.is_file() and str(path) not in used}


def soak(folder: Path, *, runs: int, kills: int, sweep_kills: int, seed: int) -> str:
    """Sweep undisturbed, and again with `kills` kills. Returns the figures. Raises: AssertionError."""
    assert runs % CHOICES == 0
    chance = random.Random(seed)
    shm_before = shared_memory()
    calm, disturbed = (Swept(folder / name, runs) for name in ("calm", "disturbed"))
    calm.run([], chance)
    others = [chance.choice(("job", "rank")) for _ in range(kills - sweep_kills)]
    # Runs of two ranks are trained first, so ranks are killed there.
    until = {"rank": max(1, runs // CHOICES - 1), "job": runs - 3, "sweep": runs - 3}
    kill_at = sorted((chance.randrange(until[what]), what) for what in [*others, *["sweep"] * sweep_kills])
    disturbed.run(kill_at, chance)

    figures = "\n".join([*_figures(calm, "undisturbed"), *_figures(disturbed, "disturbed")])
    expected, found = calm.outcome(), disturbed.outcome()
    problems = {
        "runs that are missing": runs - len(expected),
        "runs that differ": [
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        ],
        "runs that were trained again after they had finished": disturbed.trained_twice(),
        "left files and locks": calm.leftovers() + disturbed.leftovers(),
        "left shared memory": shared_memory() - shm_before,
        "memory that the sweep's process grew by": calm.growth_mb() > MOST_GROWTH_MB,
    }
    assert not any(problems.values()), f"{problems}\n{figures}"
    return figures


def _figures(swept: Swept, name: str) -> list[str]:
    lines = [
        f"{name}: {len(swept.first_results)} runs finished, {swept.starts} starts, killed {dict(swept.kills)}"
    ]
    for part in (0.1, 0.25, 0.5, 0.75, 0.95):
        at = swept.sample(part)
        lines.append(f"  {at.ended:5} ended: {at.rss_mb:.1f} MB resident, {at.files} open files")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.sweeps", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--sweep-kills", type=int, default=8, help="how many of them end the sweep's process")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"in {folder}, which stays there if anything is found", flush=True)
    print(soak(folder, runs=args.runs, kills=args.kills, sweep_kills=args.sweep_kills, seed=args.seed))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
