"""Readers of a run's files say what is wrong and never raise."""

import json
import os
import threading

import pytest

from normlab.run_files import (
    is_number,
    read_config,
    read_launch,
    read_log,
    read_object,
    read_points,
    read_progress,
    read_result,
    trained_on,
)

DAMAGED = [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"[" * 100_000, b"1" * 5000]


@pytest.mark.parametrize("read", [read_result, read_launch])
@pytest.mark.parametrize("held", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_none_and_named(tmp_path, read, held):
    name = read.__name__.removeprefix("read_") + ".json"
    (tmp_path / name).write_bytes(held)
    found, problem = read(tmp_path)
    assert found is None
    assert problem.startswith(name)


@pytest.mark.parametrize("read", [read_result, read_launch])
def test_a_missing_file_is_no_problem(tmp_path, read):
    assert read(tmp_path) == (None, "")


def test_a_folder_in_a_files_place_is_named(tmp_path):
    (tmp_path / "result.json").mkdir()
    assert read_object(tmp_path / "result.json") == (None, "result.json cannot be read (Is a directory)")


@pytest.mark.parametrize(
    ("name", "read", "problem"),
    [
        ("result.json", read_result, "result.json cannot be read (not a file)"),
        ("launch.json", read_launch, "launch.json cannot be read (not a file)"),
        ("config.yaml", read_config, "config.yaml cannot be read"),
        ("metrics.jsonl", read_log, ["metrics.jsonl cannot be read (not a file)"]),
        (
            "metrics.jsonl",
            lambda run: (..., read_progress(run).problem),
            "metrics.jsonl cannot be read (not a file)",
        ),
    ],
)
def test_a_pipe_in_a_files_place_is_named_and_not_waited_for(tmp_path, name, read, problem):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: os.close(os.open(pipe, os.O_WRONLY)))  # ends a reader's wait
    writer.start()
    found = read(tmp_path)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # and the writer's
    writer.join()
    os.close(reader)
    assert found[1] == problem


def test_half_characters_of_json_are_escaped(tmp_path):
    """As in an error that names a file whose name is not UTF-8."""
    (tmp_path / "result.json").write_text(json.dumps({"error": [os.fsdecode(b"\xff"), "\U0001f600"], "\ud83d": 1}))
    assert read_object(tmp_path / "result.json")[0] == {"error": ["\\udcff", "\U0001f600"], "\\ud83d": 1}
    point = {"step": 1, "samples_seen": 8, "epoch": 0.5, "\ud83d": 1.0}
    assert read_points([json.dumps(point).encode()])[0][0]["\\ud83d"] == 1.0


@pytest.mark.parametrize(
    "foreign",
    [{}, {"status": "done", "metrics": {}}, {"status": "finished"}, {"status": "finished", "metrics": {"a": "b"}}],
)
def test_a_result_of_something_else_is_named(tmp_path, foreign):
    (tmp_path / "result.json").write_text(json.dumps(foreign))
    found, problem = read_result(tmp_path)
    assert found is None
    assert "result.json" in problem


def test_whole_files_are_read(tmp_path):
    result = {"status": "finished", "metrics": {"val/accuracy": 0.5}, "norm": "bn"}
    launch = {"launcher": "slurm", "job_id": "12_3", "submission": "abc"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "launch.json").write_text(json.dumps(launch))
    assert read_result(tmp_path) == (result, "")
    assert read_launch(tmp_path) == (launch, "")


@pytest.mark.parametrize(
    ("result", "asked", "said"),
    [
        ({"device": "cpu"}, "auto", " on cpu"),
        ({"device": "cuda:0", "devices": ["cuda"]}, "cuda", " on cuda"),
        ({"device": "cpu", "devices": ["cpu"]}, "cuda", " on cpu, though device=cuda"),
        ({"devices": ["cpu", "cuda", "cpu"]}, "cpu", " on cpu and cuda, though device=cpu"),
        ({}, "cuda", ""),
        ({"devices": 3}, "cuda", ""),
    ],
)
def test_a_result_says_where_it_was_computed(result, asked, said):
    assert trained_on(result, asked) == said


@pytest.mark.parametrize("foreign", [{"launcher": "local"}, {"launcher": []}, {"launcher": "slurm", "job_id": 3}])
def test_a_launch_json_without_what_its_launcher_keeps_is_named(tmp_path, foreign):
    (tmp_path / "launch.json").write_text(json.dumps(foreign))
    assert read_launch(tmp_path) == (None, "launch.json is not one of normlab's")


def test_broken_lines_are_counted_and_the_others_kept():
    good = json.dumps({"step": 1, "samples_seen": 8, "epoch": 0.5}).encode()
    lines = [good, b"{", b"[]", b"[" * 100_000, b'{"step": 1}', good]
    assert read_points(lines) == ([json.loads(good)] * 2, 4)


def test_a_number_is_one_that_a_float_holds():
    assert [is_number(value) for value in (1, 0.5, True, "1", None, float("nan"), 10**400)] == [True, True] + [
        False
    ] * 5
