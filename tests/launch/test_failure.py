"""What a rank says, and records, of its end."""

import re
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from launch.failure import report_failure
from launch.rank import run_rank
from normlab import checkpoint
from normlab.config.model import CustomModelConfig
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


def test_a_late_error_of_the_users_own_code_is_named_with_its_type_and_line(tmp_path):
    run = directory_of([*TINY, f"output_dir={tmp_path}"], 1)
    run = replace(run, config=replace(run.config, model=CustomModelConfig(target="my_nets:build")))
    run.create()
    raised(KeyError("pixels"), run)
    assert re.fullmatch(r"rank 0: KeyError at tests/launch/test_failure\.py:\d+: 'pixels'", run.result()["error"])


def test_an_error_without_words_is_named_by_its_type(failed_run):
    raised(AssertionError(), failed_run)
    assert failed_run.result()["error"].startswith("rank 0: AssertionError at ")


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


def test_too_little_memory_names_what_to_lower_in_one_line(failed_run, capsys):
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    raised(refused.value, failed_run)
    error = failed_run.result()["error"]
    assert error == (
        "rank 0: out of memory (tried to allocate 4503599627370496 bytes) at batch_size=32; "
        "lower batch_size, or try precision=bf16."
    )
    assert capsys.readouterr().err == f"error: {error}\n"
    assert "torch.empty" in failed_run.result()["traceback"]


def test_too_little_memory_of_a_gpu_names_what_it_has(tmp_path):
    run = directory_of([*TINY, f"output_dir={tmp_path}", "batch_size=8", "virtual_ranks=4", "precision=bf16"], 1)
    run.create()
    said = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB"
    )
    raised(torch.OutOfMemoryError(said), run)
    assert run.result()["error"] == (
        "rank 0: out of memory (tried to allocate 2.00 GiB; the GPU has 79.10 GiB) at batch_size=8 "
        "virtual_ranks=4; lower batch_size or virtual_ranks, or see that nothing else uses the GPU, as "
        "hydra.launcher.jobs_per_gpu lets other runs do."
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
