"""What a rank says, and records, of its end."""

import resource
from contextlib import contextmanager

import pytest

from launch.failure import report_failure
from launch.rank import run_rank
from normlab import checkpoint
from tests.runs import TINY, directory_of

GLOO = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:24731. "
    "This is typically caused by a remote worker crashing. GLHF!"
)


@contextmanager
def files_end_at(size: int):
    """The disk is full for any file larger than `size` bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_full_disk_names_the_file_the_disk_and_what_is_kept_and_the_same_command_goes_on(tmp_path, capsys):
    overrides = [*TINY, f"output_dir={tmp_path}", "batch_size=48", "epochs=2", "checkpoint_every_s=0", "threads=1"]
    run = directory_of([*overrides, "diagnostics=false"], 1)
    with files_end_at(200_000):
        assert run_rank(run.config, "test", run) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"error: rank 0: {run.checkpoint_path} cannot be written: File too large" in said
    assert "MiB are free on the disk at /" in said
    assert "Nothing had been saved yet; once there is room, the same command begins again." in said
    assert run.result()["status"] == "failed"
    assert run.result()["error"] in said
    assert run_rank(run.config, "test", run) == 0
    assert run.result()["status"] == "finished"


@pytest.fixture
def failed_run(tmp_path):
    run = directory_of([*TINY, f"output_dir={tmp_path}"], 2)
    run.create()
    return run


def raised(error: Exception, run, stop_signal=lambda: 15) -> None:
    try:
        raise error
    except Exception as caught:
        report_failure(caught, 0, run, stop_signal)


def test_what_was_saved_before_a_disk_was_full_is_named(failed_run, capsys):
    checkpoint.save(failed_run.checkpoint_path, {"step": 3})
    raised(OSError(28, "No space left on device"), failed_run)
    assert (
        f"{failed_run.checkpoint_path} is kept; once there is room, the same command goes on from it."
        in (failed_run.result()["error"])
    )
    assert (
        f"a file in {failed_run.directory} cannot be written: No space left on device" in capsys.readouterr().err
    )


def test_a_rank_that_another_left_waits_to_be_told_and_says_nothing_where_the_cause_is_known(failed_run, capsys):
    looks = iter([0, 0, 15])

    def told() -> int:
        if looked := next(looks):
            failed_run.fail("rank 1: out of luck", "")
        return looked

    raised(RuntimeError(GLOO), failed_run, told)
    assert failed_run.result()["error"] == "rank 1: out of luck"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "quoted"),
    [(GLOO, "Connection closed by peer"), ("rank 1 left while SyncBatchNorm waited for it", "rank 1 left")],
)
def test_a_rank_that_another_left_says_so_in_words_and_the_cause_overrules_it(failed_run, capsys, error, quoted):
    raised(RuntimeError(error), failed_run)
    words = f"rank 0: another rank has gone ({quoted}); its own output says why"
    assert failed_run.result()["error"] == words
    assert capsys.readouterr().err == f"error: {words}\n"
    assert failed_run.fail("rank 1 was killed by SIGKILL", "", overrule=True)
    assert failed_run.result()["error"] == "rank 1 was killed by SIGKILL"
