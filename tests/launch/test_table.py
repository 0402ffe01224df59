"""What a person sees of a sweep."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from launch.jobs import Ended, Job
from launch.table import SweepView, print_summary
from normlab.console import plain_console
from normlab.run import name_run
from tests.runs import typed


@pytest.fixture
def jobs(tmp_path):
    cfg = typed(f"output_dir={tmp_path}")

    def job(seed: int) -> Job:
        run = name_run(replace(cfg, seed=seed), world_size=1, study="test", data_fingerprint="")
        run.create()
        return Job(run, "test", (f"seed={seed}",), 1000, (seed,), f"seed={seed}")

    return [job(seed) for seed in range(30)]


def view_of(jobs, height, *, terminal=True):
    file = io.StringIO()
    return file, SweepView(
        jobs, plain_console(file=file, force_terminal=terminal, width=100, height=height, soft_wrap=True)
    )


def last_frame(file):
    return Console(file=io.StringIO(), width=100).render_str(file.getvalue().rpartition("state")[2]).plain


def test_the_live_table_shows_each_runs_state_samples_accuracy_and_time_left(jobs):
    file, view = view_of(jobs[:2], height=30)
    point = {"step": 1, "samples_seen": 400, "epoch": 0.5, "val/accuracy": 0.25, "images_per_second": 10.0}
    jobs[0].run.metrics_path.write_text(json.dumps(point) + "\n")
    with view:
        view.begin(jobs[0])
        view.update()
        shown = last_frame(file)
    running, waiting = (next(line for line in shown.splitlines() if f"seed={n}" in line) for n in (0, 1))
    assert all(word in running for word in ("running", "400/1000", "0.2500", "1 min"))
    assert "waiting" in waiting
    assert "0/1000" in waiting


def test_where_the_terminal_is_low_what_runs_comes_first_and_the_rest_is_counted(jobs):
    file, view = view_of(jobs, height=10)
    with view:
        view.begin(jobs[29])
        view.update()
        shown = last_frame(file)
    assert "seed=29" in shown
    assert "seed=28" not in shown
    assert "29 waiting" in shown


def test_without_a_terminal_what_begins_and_ends_is_a_line(jobs):
    file, view = view_of(jobs[:2], height=30, terminal=False)
    with view:
        view.begin(jobs[0])
        view.update()
        view.end(Ended(jobs[0], "finished", "val/accuracy 0.5000 [rank0] :x:"))
        view.end(Ended(jobs[1], "skipped", "finished before"))
    began, ended, skipped = file.getvalue().splitlines()
    assert began == f"[0/2] running: seed=0: {jobs[0].run.directory}"
    assert ended.startswith("[1/2] finished: seed=0: val/accuracy 0.5000 [rank0] :x: (")
    assert skipped == "[2/2] skipped: seed=1: finished before"


def test_the_summary_ends_with_what_went_wrong_and_where_to_read_it(jobs, capsys):
    print_summary(
        [
            Ended(jobs[0], "failed", "rank 0: out of luck [rank0] :x:"),
            Ended(jobs[1], "finished", "val/accuracy 0.5000"),
            Ended(jobs[2], "diverged"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["finished", "diverged", "failed"]
    assert lines[2].endswith("seed=0  rank 0: out of luck [rank0] :x:")
    assert lines[3].strip() == f"log: {jobs[0].run.log_path}"
    assert lines[4] == "1 finished, 1 diverged, 1 failed"


def test_the_summary_ends_with_what_to_type_next(jobs, capsys):
    folder = jobs[0].run.config.output_dir
    commands = [f"see: python -m launch.status {folder}", f"see: python -m normlab.report {folder}/test"]
    print_summary([Ended(jobs[0], "finished"), Ended(jobs[1], "skipped")])
    assert capsys.readouterr().out.splitlines()[-2:] == commands
    print_summary([Ended(jobs[0], "finished"), Ended(jobs[1], "stopped")])
    assert capsys.readouterr().out.splitlines()[-3:] == ["The same command goes on with what is left.", *commands]
