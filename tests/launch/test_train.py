"""train.py as a person runs it: real processes, real signals."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from normlab import checkpoint
from normlab.data.order import epoch_order
from tests.data.jpeg_files import write_folder
from tests.processes import LONG, PATIENCE_S, ROOT, TINY, TRAIN, Job, alive, descendants, read_proc, until


def train(folder: Path, *overrides: str) -> tuple[int, str, str]:
    return Job(folder, TRAIN, *overrides).end()


def result_in(folder: Path) -> dict:
    (path,) = folder.glob("runs/*/*/result.json")
    return json.loads(path.read_text())


def state_in(folder: Path) -> dict:
    (path,) = folder.glob("runs/*/*/checkpoint.pt")
    return checkpoint.load(path)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A short run on two ranks that train.py started itself."""
    folder = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        ended = train(folder, *TINY, "norm=syncbn", "world_size=2", "epochs=2")
        assert left_in_tmpdir() == []
    return folder, ended


def left_in_tmpdir() -> list[Path]:
    """What Python's and torch's launchers made there; torchinductor's cache is to stay."""
    return [path for path in Path(os.environ["TMPDIR"]).iterdir() if not path.name.startswith("torchinductor")]


def test_a_run_ends_with_its_result_its_directory_and_the_tensorboard_line(started):
    folder, (code, out, err) = started
    assert code == 0, err
    result = result_in(folder)
    assert f"val/accuracy {result['metrics']['val/accuracy']:.4f}" in out
    assert "run: runs/default/syncbn-b32-w2-resnet8-shapes-s0-" in out
    assert "tensorboard --logdir runs" in out
    assert "val acc" in err  # plain progress lines
    expected = {"status": "finished", "world_size": 2, "normalization_batch_size": 64, "resumed": 0}
    assert expected.items() <= result.items()


def test_composing_leaves_nothing_behind_but_the_run(started):
    folder, _ = started
    assert [p.name for p in folder.iterdir()] == ["runs"]
    (directory,) = folder.glob("runs/*/*")
    names = {p.name.split(".")[0] for p in directory.iterdir()}
    assert names == {"config", "metrics", "norms", "events", "checkpoint", "result", "lock"}


def test_torchrun_joins_the_same_run_which_has_ended_and_trains_it_alike_when_told(started, tmp_path):
    folder = shutil.copytree(started[0], tmp_path / "started")
    before = state_in(folder)["model"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TRAIN]
    code, out, err = Job(folder, *torchrun, *TINY, "norm=syncbn", "epochs=2").end()
    assert code == 0, err
    assert "has ended before" in err
    assert out.count("finished:") == 1
    code, out, err = Job(folder, *torchrun, *TINY, "norm=syncbn", "epochs=2", "rerun=true").end()
    assert code == 0, err
    after = state_in(folder)["model"]
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("world_size", "epochs"), [(1, 3), (4, 6)])
def test_a_run_killed_mid_epoch_and_started_again_ends_bit_for_bit_equal(world_size, epochs, tmp_path):
    command = [*TINY, "batch_size=4", f"epochs={epochs}", "checkpoint_every_s=0", f"world_size={world_size}"]
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    straight.mkdir()
    cut.mkdir()
    code, _, err = train(straight, *command)
    assert code == 0, err
    job = Job(cut, TRAIN, *command)
    job.wait_for_step(7)
    os.killpg(job.process.pid, signal.SIGKILL)
    job.end()
    assert list(cut.glob("runs/*/*/result.json")) == []
    assert state_in(cut)["step"] < state_in(straight)["step"]
    code, _, err = train(cut, *command)
    assert code == 0, err
    assert "resuming after" in err
    ours, theirs = state_in(cut), state_in(straight)
    for part in ("model", "rank_state"):
        a, b = ({"": s[part]} if part == "rank_state" else s[part] for s in (ours, theirs))
        assert all(torch.equal(a[name], b[name]) for name in b), part
    assert result_in(cut)["resumed"] == 1
    assert result_in(cut)["metrics"] == result_in(straight)["metrics"]


@pytest.mark.parametrize(
    ("stop_signal", "world_size"),
    [(signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGUSR2, 1), (signal.SIGHUP, 2)],
)
def test_a_stop_signal_finishes_the_step_saves_and_leaves_with_128_and_itself(
    stop_signal, world_size, start, tmp_path, tmp_path_factory, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
    job = start(TRAIN, *LONG, f"world_size={world_size}")
    job.wait_for_step(3)
    others = job.ranks()
    job.process.send_signal(stop_signal)
    if stop_signal == signal.SIGTERM:
        os.killpg(job.process.pid, stop_signal)  # as `timeout` does: the fork server is in the group too
    code, _, err = job.end()
    assert code == 128 + stop_signal, err
    assert left_in_tmpdir() == []
    assert "the same command goes on from" in err
    assert "Traceback" not in err
    assert state_in(tmp_path)["step"] >= 3
    assert list(tmp_path.glob("runs/*/*/result.json")) == []
    until(lambda: not any(map(alive, others)))


@pytest.mark.parametrize(
    ("imported", "options"),
    [("yaml", []), ("libtorch_cpu", []), ("libtorch_cpu", ["world_size=2"])],
    ids=["hydra", "torch", "torch in the fork server"],
)
def test_ctrl_c_during_the_imports_is_no_traceback(imported, options, start, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
    job = start(TRAIN, *LONG, *options)

    def importing() -> bool:
        everyone = [job.process.pid, *descendants(job.process.pid)]
        return any(imported in read_proc(pid, "maps") for pid in everyone)

    until(importing)
    os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does
    code, out, err = job.end()
    assert (code, out, err) == (-signal.SIGINT, "", "")  # a shell's 130
    assert left_in_tmpdir() == []


@pytest.mark.parametrize("options", [["world_size=2"], ["-m", "norm=bn"]], ids=["a run", "a sweep"])
def test_a_run_whose_output_nobody_reads_goes_on_to_its_end(options, start, tmp_path):
    job = start(TRAIN, *options, *TINY, "epochs=1")
    job.process.stderr.readline()
    job.process.stderr.close()
    job.process.stdout.close()
    assert job.process.wait(PATIENCE_S) == 0
    assert result_in(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("norm", ["bn", "syncbn"])
def test_a_rank_that_is_killed_takes_the_others_with_it_and_is_recorded_as_the_cause(norm, start, tmp_path):
    job = start(TRAIN, *LONG, "world_size=2", f"norm={norm}")
    job.wait_for_step(3)
    everyone = job.ranks()
    rank_processes = [
        pid for pid in everyone if "forkserver" in read_proc(pid, "cmdline") and len(descendants(pid)) == 0
    ]
    os.kill(rank_processes[-1], signal.SIGKILL)
    code, _, err = job.end()
    assert code == 1, err
    (killed,) = re.findall(r"error: (rank \d was killed by SIGKILL)", err)
    assert "Traceback" not in err
    result = result_in(tmp_path)
    assert (result["status"], result["error"]) == ("failed", killed)
    until(lambda: not any(map(alive, everyone)))


@pytest.mark.parametrize("launcher", ["train.py", "torchrun"])
def test_a_launcher_that_is_killed_takes_its_ranks_with_it(launcher, start):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, TRAIN, *LONG] if launcher == "torchrun" else [TRAIN, *LONG, "world_size=2"]
    job = start(*command)
    job.wait_for_step(3)
    others = job.ranks()
    assert len(others) >= 2
    os.kill(job.process.pid, signal.SIGKILL)
    until(lambda: not any(map(alive, others)))


FAILING_RANK = """
import os, sys
sys.path.insert(0, {root!r})
from normlab.trainer import Trainer
step = Trainer._step
def fail(self, number, *rest):
    if self.ranks.rank == 1 and number == 2:
        raise RuntimeError("out of luck")
    return step(self, number, *rest)
Trainer._step = fail
sys.argv[0] = {train!r}
import runpy
runpy.run_path({train!r}, run_name="__main__")
"""


def test_a_rank_that_raises_is_shown_with_its_error_and_ends_the_others(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING_RANK.format(root=str(ROOT), train=TRAIN))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    code, _, err = Job(tmp_path, *torchrun, *TINY, "batch_size=4").end()
    assert code == 1
    assert err.count("Traceback (most recent call last)") - err.count("ChildFailedError") <= 1, err
    assert "rank 1:\nTraceback" in err
    assert "RuntimeError: out of luck" in err
    result = result_in(tmp_path)
    assert (result["status"], result["error"]) == ("failed", "rank 1: out of luck")


def streamed(folder: Path) -> list[str]:
    """Two ranks, a batch of 2 each, on 26 pictures; small, as TINY is."""
    root = write_folder(folder / "pictures", 13, 3)
    options = [f"data.root={root}", "data.decode=stream", "data.image_size=16", "world_size=2", "batch_size=2"]
    return ["data=image_folder", *options, "eval_train_samples=4", "diagnostics=false", "progress=false"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_picture_that_one_rank_cannot_read_is_one_line_that_names_it(rank, tmp_path):
    overrides = streamed(tmp_path)
    order = epoch_order(26, seed=0, epoch=0, accumulate=1, logical_ranks=2, batch_size=2)
    path = sorted((tmp_path / "pictures/train").glob("*/*.jpg"))[int(order[3, 0, rank, 1])]
    path.write_bytes(path.read_bytes()[:300])
    code, _, err = train(tmp_path, *overrides)
    assert code == 2
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {path} cannot be read as an image (")
    result = result_in(tmp_path)
    assert (result["status"], f"error: {result['error']}") == ("failed", line)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_streamed_run_leaves_nothing_behind_when_it_is_stopped_or_killed(number, start, tmp_path):
    job = start(TRAIN, *streamed(tmp_path), "epochs=1000", "eval_every_epochs=1000", "checkpoint_every_s=0")
    job.wait_for_step(3)
    ranks = job.ranks()
    assert len(ranks) >= 2
    os.kill(job.process.pid, number)
    code, _, _ = job.end()
    assert code == (128 + number if number == signal.SIGTERM else -number)
    until(lambda: not any(map(alive, ranks)))
