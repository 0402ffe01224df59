"""A run that is killed, or whose disk fails, at any moment: nothing is lost, and it ends like an undisturbed one.

Each test has a quick part, which draws a few operations on files, and the whole behind the marker `full`.
"""

import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normlab import checkpoint
from normlab.config import ConfigError
from normlab.run import Run
from normlab.run_files import read_points, read_result
from tests.faults.injection import Fault, Kind
from tests.faults.trained import Attempt, Ended, Trained

TIMING = ("images_per_second",)
SEED = 11


@pytest.fixture(scope="module")
def trained():
    server = Trained()
    yield server
    server.close()


class Bench:
    """Runs to disturb: `fresh`, `cut` (killed in its third epoch) and `over` (ended, and to start over)."""

    def __init__(self, trained: Trained, folder: Path) -> None:
        self.trained, self.folder, self.cases = trained, folder, 0
        self.undisturbed = replace(trained.run, directory=folder / "undisturbed")
        self.operations = {"fresh": self.train(self.undisturbed).operations}
        self.expected = what_is_left(self.undisturbed)
        saves = [
            at for at, operation in enumerate(self.operations["fresh"], 1) if operation == "replace checkpoint.pt"
        ]
        assert len(saves) == 3
        self.cut = replace(trained.run, directory=folder / "cut")
        assert self.train(self.cut, Fault("kill", saves[2] - 1)).code == -9
        for start in ("cut", "over"):
            self.operations[start] = self.train(self.begun(start), number=1).operations

    def train(self, run: Run, fault: Fault | None = None, number: int = 0, **more) -> Ended:
        return self.trained.train(Attempt(run, number, fault, **more))

    def begun(self, start: str) -> Run:
        """A run of its own in this state."""
        self.cases += 1
        directory = self.folder / f"{start}{self.cases}"
        if start == "cut":
            shutil.copytree(self.cut.directory, directory)
        elif start == "over":
            shutil.copytree(self.undisturbed.directory, directory)
        return replace(self.trained.run, directory=directory, attempt="again" if start == "over" else "")

    def disturb(self, start: str, kind: Kind, at: int) -> None:
        """One fault at one operation; then the run is begun again, and must end as if there had been none."""
        run = self.begun(start)
        ended = self.train(run, Fault(kind, at), number=1)
        where = f"{start}: {kind} at {at}, {ended.operations[at - 1]}"
        assert ended.code == -9 if kind in ("kill", "torn") else ended.code in (0, 1, 2), where
        done = ended.operations[: at - 1] if ended.code == -9 else ended.operations  # a full disk allows much
        if start == "over" and "unlink result.json" not in done:  # it had not begun to train
            assert read_result(run.directory)[0]["status"] == "finished", where
        self.check_kept(run, where)
        self.finish(run, where, number=2)

    def finish(self, run: Run, where: str, number: int) -> None:
        ended = self.train(run, number=number)
        assert ended.code == 0, where + Attempt(run, 0).log.read_text()
        self.check_end(run, where)
        shutil.rmtree(run.directory)

    def check_kept(self, run: Run, where: str) -> None:
        """The points that the newest whole checkpoint counts on are there."""
        for path in (run.checkpoint_path, checkpoint.former(run.checkpoint_path)):
            try:
                logged = checkpoint.load(path)["logged"]
                break
            except (FileNotFoundError, ConfigError):
                continue
        else:
            return
        number = logged.pop("metrics.jsonl")
        assert points(run)[:number] == self.expected["points"][:number], where
        assert all((run.directory / name).stat().st_size >= size for name, size in logged.items()), where

    def check_end(self, run: Run, where: str) -> None:
        ours = what_is_left(run)
        for part, expected in self.expected.items():
            assert ours[part] == expected, f"{where}: {part}"


def same(ours: object, theirs: object) -> bool:
    return checkpoint._checksum(ours) == checkpoint._checksum(theirs)


def what_is_left(run: Run) -> dict:
    """All that a run leaves, but for when and how fast it was trained."""
    result, state = read_result(run.directory)[0], checkpoint.load(run.checkpoint_path)
    return {
        "result": (result["status"], result["metrics"]),
        "checkpoint": checkpoint._checksum([state[part] for part in ("step", "model", "rank_state", "optimizer")]),
        "points": points(run),
        "events": events(run),
        "files": {re.sub("tfevents.*", "", path.name) for path in run.directory.iterdir()}
        - {"attempt", "checkpoint.damaged.pt"},
    }


def points(run: Run) -> list[dict]:
    held = read_points(run.metrics_path.read_bytes().split(b"\n")[:-1])[0] if run.metrics_path.exists() else []
    return [{key: value for key, value in point.items() if key not in TIMING} for point in held]


def events(run: Run) -> dict:
    """What TensorBoard's own reader makes of the files."""
    read = EventAccumulator(str(run.directory), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    read.Reload()
    tags = read.Tags()
    scalars = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags["scalars"] if tag not in TIMING}
    histograms = {tag: [(e.step, e.histogram_value) for e in read.Histograms(tag)] for tag in tags["histograms"]}
    texts = {tag: [(e.step, str(e.tensor_proto)) for e in read.Tensors(tag)] for tag in tags["tensors"]}
    return {"scalars": scalars, "histograms": histograms, "texts": texts, "hparams": sorted(read.summary_metadata)}


@pytest.fixture(scope="module")
def bench(trained, tmp_path_factory):
    return Bench(trained, tmp_path_factory.mktemp("faults"))


def chosen(bench: Bench, start: str, kind: Kind, number: int | None) -> list[int]:
    """Operations that this fault can meet: all of them, or some, other ones for each kind.

    Of the many that write events a kill meets all, the other faults each eighth: one is like the next.
    """
    met = {"torn": ("write",), "ENOSPC": ("open", "write", "link", "mkdir")}.get(kind, ("",))
    able = [at for at, operation in enumerate(bench.operations[start], 1) if operation.startswith(met)]
    of_events = [at for at in able if "tfevents" in bench.operations[start][at - 1]]
    if kind != "kill":
        of_events = of_events[::8]
    able = [at for at in able if "tfevents" not in bench.operations[start][at - 1]] + of_events
    draw = random.Random(f"{SEED} {start} {kind}")
    return able if number is None else sorted(draw.sample(able, number))


QUICK_OR_WHOLE = [1, pytest.param(None, marks=pytest.mark.full)]


@pytest.mark.parametrize("number", QUICK_OR_WHOLE)
@pytest.mark.parametrize("kind", ["kill", "torn", "EIO", "ENOSPC"])
@pytest.mark.parametrize("start", ["fresh", "cut", "over"])
def test_a_fault_at_any_operation_on_files_loses_nothing(start, kind, number, bench):
    operations = chosen(bench, start, kind, number)
    for at in operations:
        bench.disturb(start, kind, at)
    print(f"{start}: {kind} at {len(operations)} of {len(bench.operations[start])} operations")


@pytest.mark.full
def test_kills_at_random_times_one_after_another_lose_nothing(bench):
    draw = random.Random(SEED)
    for case in range(20):
        run, number = bench.begun("fresh"), 0
        while read_result(run.directory)[0] is None and number < 20:
            bench.train(run, number=number, kill_after_s=draw.uniform(0.02, 1.0))
            bench.check_kept(run, f"random {case}")
            number += 1
        bench.finish(run, f"random {case}", number)


@pytest.mark.parametrize("number", QUICK_OR_WHOLE)
def test_a_disk_that_takes_no_larger_file_is_an_error_that_loses_nothing(number, bench):
    assert bench.cut.checkpoint_path.stat().st_size > 60_000
    for size in [0, 300, 3_000, 20_000, 60_000][-(number or 5) :]:
        run = bench.begun("cut")
        assert bench.train(run, number=1, largest_file=size).code > 0
        bench.check_kept(run, f"{size} bytes")
        bench.finish(run, f"{size} bytes", 2)


def damaged(held: bytes, how: str, draw: random.Random) -> bytes:
    at = draw.randrange(len(held))
    if how == "cut short":
        return held[:at]
    return held[:at] + bytes([held[at] ^ 1 << draw.randrange(8)]) + held[at + 1 :]


@pytest.mark.parametrize("number", [2, pytest.param(100, marks=pytest.mark.full)])
@pytest.mark.parametrize("how", ["cut short", "one bit flipped"])
def test_the_checkpoint_before_a_damaged_one_is_used(how, number, bench):
    draw = random.Random(f"{SEED} {how}")
    for case in range(number):
        run = bench.begun("cut")
        path = run.checkpoint_path
        whole = checkpoint.load(path)
        path.write_bytes(damaged(path.read_bytes(), how, draw))
        try:
            assert same(checkpoint.load(path), whole), f"{how} {case}"  # a bit that holds nothing
        except ConfigError:
            bench.finish(run, f"{how} {case}", 1)
            assert "checkpoint.pt was damaged" in Attempt(run, 0).log.read_text()
