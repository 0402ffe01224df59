"""Curves as their readers see them: TensorBoard's own, and metrics.jsonl."""

import io
import json
import os
import stat
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from normlab import checkpoint
from normlab.config import ConfigError
from normlab.logger import FileLogger, Logger, LoggerList
from normlab.progress import ProgressLogger
from tests.runs import NARROW, TINY, Recorder, StopAt, build, directory_of

SCALARS = {
    "running_stats/mean_spread",
    "running_stats/var_spread",
    "train/loss",
    "train/accuracy",
    "train/batch_accuracy",
    "val/loss",
    "val/accuracy",
}
SCALARS |= {"lr", "images_per_second", "grad_norm", "epoch", "val/train_mode_gap"}
OF_LAYERS = {f"running_stats/{tag}" for tag in ("mean_gap", "var_gap", "mean_spread", "var_spread")}
OF_LAYERS |= {f"norm/{tag}" for tag in ("dead_channels", "activation_scale", "gamma_range")}
SCALARS |= OF_LAYERS | {f"{tag}_worst" for tag in OF_LAYERS}


def train_with_files(rank, overrides, stop_at=None):
    trainer = build(rank, overrides)
    logger = FileLogger(trainer.run)
    outcome = trainer.train(logger, StopAt(stop_at, 15) if stop_at else lambda: 0)
    logger.close(outcome.metrics if outcome.status == "finished" else None)
    return outcome


def read(directory):
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return events, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def cut_and_straight(ranks, tmp_path_factory):
    """The directories of one run stopped at its 7th step and resumed, and of one undisturbed."""
    looks = 6 + 12 + 1  # an epoch, its evaluation, a step
    directories = []
    for name, stops in [("cut", [looks, None]), ("straight", [None])]:
        overrides = [*TINY, f"output_dir={tmp_path_factory.mktemp(name)}", "batch_size=16", "epochs=2"]
        for stop_at in stops:
            outcome = ranks.run(train_with_files, overrides, stop_at, world_size=1)[0]
        directories.append((directory_of(overrides, 1).directory, outcome))
    return directories


def test_tensorboard_reads_every_curve_over_samples_seen(cut_and_straight):
    (_, _), (directory, outcome) = cut_and_straight
    events, points = read(directory)
    assert set(events.Tags()["scalars"]) == SCALARS
    assert set(events.Tags()["histograms"]) == {f"layers/{tag}" for tag in OF_LAYERS}
    layers = events.Histograms("layers/norm/activation_scale")
    assert [(h.step, h.histogram_value.num) for h in layers] == [(96, 7), (192, 7)]  # resnet8 has 7 norms
    assert [e.step for e in events.Scalars("train/loss")] == [16 * step for step in range(1, 13)]
    assert [e.step for e in events.Scalars("val/accuracy")] == [96, 192]
    assert events.Scalars("val/accuracy")[-1].value == pytest.approx(outcome.metrics["val/accuracy"])
    losses = [p["train/loss"] for p in points if "train/loss" in p]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)


def test_values_beyond_tensorboards_bins_are_kept_at_its_last(tmp_path):
    run = directory_of([*TINY, f"output_dir={tmp_path}"], 1)
    run.create()
    logger = FileLogger(run)
    logger.start(0, 0, {})
    logger.histogram(16, "layers/norm/activation_scale", [1e30, 1e300, float("inf")])
    logger.close()
    events, _ = read(run.directory)
    (kept,) = events.Histograms("layers/norm/activation_scale")
    assert kept.histogram_value.num == 2


def test_metrics_jsonl_has_a_line_per_point_with_its_place(cut_and_straight):
    (_, _), (directory, _) = cut_and_straight
    _, points = read(directory)
    assert all({"step", "samples_seen", "epoch"} <= p.keys() for p in points)
    assert [p["step"] for p in points] == sorted(p["step"] for p in points)
    assert points[5]["epoch"] == 1.0


def test_a_resumed_run_has_the_curves_of_an_undisturbed_one(cut_and_straight):
    (cut, _), (straight, _) = cut_and_straight
    (cut_events, cut_points), (straight_events, straight_points) = read(cut), read(straight)
    timing = {"images_per_second"}
    assert [{k: v for k, v in p.items() if k not in timing} for p in cut_points] == [
        {k: v for k, v in p.items() if k not in timing} for p in straight_points
    ]
    for tag in SCALARS - timing:
        values = [[(e.step, e.value) for e in ev.Scalars(tag)] for ev in (cut_events, straight_events)]
        assert values[0] == values[1], tag


def test_a_text_is_read_once_however_often_a_run_went_on(cut_and_straight):
    texts = [read(directory)[0].Tensors("norms/text_summary") for directory, _ in cut_and_straight]
    assert [len(text) for text in texts] == [1, 1]
    assert texts[0][0].tensor_proto == texts[1][0].tensor_proto


def logged_twice(tmp_path):
    """A run that logged two points before its checkpoint, and one after it."""
    run = directory_of([*TINY, f"output_dir={tmp_path}"], 1)
    run.create()
    logger = FileLogger(run)
    logger.start(0, 0, {})
    for step in (1, 2):
        logger.log(step, 10 * step, 0.0, {"train/loss": float(step)})
    logged = logger.flush()
    logger.log(3, 30, 0.0, {"train/loss": 3.0, "val/loss": 3.0})
    logger.close()
    return run, logged


def losses(run):
    return [json.loads(line)["train/loss"] for line in run.metrics_path.read_text().splitlines()]


def test_points_before_the_checkpoint_are_on_disk_before_the_next_is_logged(tmp_path):
    run, logged = logged_twice(tmp_path)
    logger = FileLogger(run)
    logger.start(2, 20, logged)
    assert losses(run) == [1.0, 2.0]
    logger.close()


def test_what_a_checkpoint_counts_on_is_on_disk_before_it(tmp_path, monkeypatch):
    """After a crash of the machine a file is sure to hold what was fsynced, and a folder the names it had then."""
    on_disk: dict[int, bytes] = {}
    saved, unsure = [], []
    fsync, replace = os.fsync, os.replace

    def fsync_and_remember(descriptor):
        fsync(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            unsure.clear()
        else:
            on_disk[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def replace_and_look(source, target):
        assert unsure == []
        if Path(target).name == "checkpoint.pt":
            left = {path.name: on_disk.get(path.stat().st_ino, b"") for path in Path(target).parent.iterdir()}
            assert left[Path(source).name] == Path(source).read_bytes()
            logged = checkpoint.load(Path(source))["logged"]
            saved.append(logged.pop("metrics.jsonl"))
            assert left["metrics.jsonl"].count(b"\n") >= saved[-1]
            assert all(len(left[events]) >= size > 0 for events, size in logged.items())
            unsure.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync_and_remember)
    monkeypatch.setattr(os, "replace", replace_and_look)
    overrides = [*TINY, NARROW, f"output_dir={tmp_path}", "batch_size=32", "epochs=1", "checkpoint_every_s=0"]
    train_with_files(0, overrides)
    assert (saved, unsure) == ([1, 2, 3], [])


def test_points_that_are_lost_or_damaged_are_said_and_the_run_goes_on(tmp_path, capsys):
    run, logged = logged_twice(tmp_path)
    first, second, third = run.metrics_path.read_bytes().splitlines(keepends=True)
    for held, kept in [
        ([first, second, b"[]\n", third], [1.0, 2.0]),
        ([b"5\n", second], [2.0]),
        ([b"{]\n", second, third], [2.0]),  # what was logged after the checkpoint makes up for nothing
        ([first[:-1] + b"\0" + second, third], []),
        ([], []),
    ]:
        run.metrics_path.write_bytes(b"".join(held))
        logger = FileLogger(run)
        logger.start(2, 20, logged)
        assert losses(run) == kept
        logger.close()
        assert ("metrics.jsonl lost what was logged before step 2" in capsys.readouterr().err) == (len(kept) < 2)


def test_a_folder_in_the_place_of_the_points_is_named_with_the_fix(tmp_path):
    run, logged = logged_twice(tmp_path)
    run.metrics_path.unlink()
    run.metrics_path.mkdir()
    with pytest.raises(ConfigError, match=r"metrics\.jsonl cannot be read \(Is a directory\); .*rerun=true"):
        FileLogger(run).start(2, 20, logged)


def test_points_after_the_checkpoint_are_forgotten(cut_and_straight, tmp_path):
    """As after a kill: points were written that no checkpoint knows of, the last one only half."""
    run, logged = logged_twice(tmp_path)
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "train/lo')
    with next(run.directory.glob("events*")).open("ab") as file:
        file.write(b"half a record")
    logger = FileLogger(run)
    logger.start(2, 20, logged)
    logger.log(3, 30, 0.0, {"train/loss": 33.0})
    logger.close()
    events, points = read(run.directory)
    assert [(p["step"], p["train/loss"]) for p in points] == [(1, 1.0), (2, 2.0), (3, 33.0)]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 1.0), (20, 2.0), (30, 33.0)]
    assert "val/loss" not in events.Tags()["scalars"]


def test_a_start_from_nothing_forgets_a_run_that_was_killed_before_its_first_checkpoint(tmp_path):
    run = directory_of([*TINY, f"output_dir={tmp_path}"], 1)
    run.create()
    for value in (1.0, 2.0):
        logger = FileLogger(run)
        logger.start(0, 0, {})
        logger.log(1, 10, 0.0, {"train/loss": value})
        logger.close()
    events, points = read(run.directory)
    assert [p["train/loss"] for p in points] == [e.value for e in events.Scalars("train/loss")] == [2.0]


def test_a_list_hands_every_call_to_each_of_its_loggers():
    one, other = Recorder(), Recorder()
    both = LoggerList(one, other)
    both.log(1, 8, 0.5, {"train/loss": 1.0})
    both.note("a note")
    both.document("norms", "a text")
    both.picture(8, "masks", print)
    both.histogram(8, "layers", [1.0])
    assert vars(one) == vars(other)
    assert all(vars(one).values())
    both.start(0, 0, {})
    assert one.points == other.points == []
    calls = {name for name in vars(Logger) if not name.startswith("_")}
    assert calls <= vars(LoggerList).keys()


def test_hparams_stand_in_the_runs_own_writer_with_the_final_metrics(cut_and_straight):
    (_, _), (directory, outcome) = cut_and_straight
    assert [p for p in directory.iterdir() if p.is_dir()] == []
    events, _ = read(directory)
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["norm.name"].string_value == "bn"
    assert settings["batch_size"].number_value == 16
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {m.name.tag for m in metrics} == outcome.metrics.keys()


def shown(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    progress = ProgressLogger(200, console)
    progress.start(0, 0, {})
    progress.log(10, 100, 0.5, {"train/loss": 1.25, "train/batch_accuracy": 0.5, "images_per_second": 321.0})
    progress.log(20, 200, 1.0, {"val/loss": 0.8, "val/accuracy": 0.75})
    progress.note("a note")
    progress.close()
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_tells_samples_loss_accuracy_and_speed(terminal):
    text = shown(terminal)
    for part in ("200/200 samples", "loss 1.250", "acc 0.500", "val acc 0.7500", "images/s 321", "a note"):
        assert part in text
    assert ("\x1b[" in text) == terminal
