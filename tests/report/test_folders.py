"""What a report may replace: what a report wrote, and nothing else."""

import os
import socket
import subprocess

import pytest

from normlab.config import ConfigError
from normlab.report.__main__ import main
from normlab.report.folders import MARK, check_own, mark, replacing
from tests.report.made import make_run


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(*arguments, capsys):
    """The one line that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["comparison", "report"])
def test_a_study_of_that_name_is_a_study_and_survives_every_report(name, tmp_path, capsys):
    for norm in ("bn", "gn"):
        make_run(tmp_path / "runs" / name, norm=norm)
    make_run(tmp_path / "runs" / "other")
    before = content(tmp_path / "runs")
    error = refused(tmp_path / "runs", capsys=capsys)
    assert f"{tmp_path / 'runs' / name} is not replaced, since it holds a run" in error
    assert "--out" in error
    assert content(tmp_path / "runs") == before
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert f"study={name}" in capsys.readouterr().out
    assert content(tmp_path / "runs") == before
    for _ in range(2):  # and its own report, made again, is no reason to lose it
        main([str(tmp_path / "runs" / name)])
        assert "2 runs: 2 finished" in capsys.readouterr().out
        after = content(tmp_path / "runs")
        assert {path: after[path] for path in before} == before


def test_a_run_that_has_begun_in_a_folder_of_a_report_is_kept(tmp_path, capsys):
    make_run(tmp_path / "other")
    main([str(tmp_path)])
    capsys.readouterr()
    began = tmp_path / "comparison" / "bn-b4"
    began.mkdir()
    (began / "lock").touch()  # all that there is of a run before its config.yaml
    assert "holds a run (bn-b4/lock)" in refused(tmp_path, capsys=capsys)
    assert (began / "lock").exists()


def test_a_run_that_begins_while_the_comparison_is_written_is_kept(tmp_path):
    folder = tmp_path / "comparison"
    with replacing(folder):
        pass

    def replaced_while_a_run_begins():
        with replacing(folder):
            make_run(folder, name="begun")

    with pytest.raises(ConfigError, match="holds a run"):
        replaced_while_a_run_begins()
    assert (folder / "begun" / "result.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["comparison"]


def test_what_killed_reports_left_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    here, folder = socket.gethostname(), tmp_path / "comparison"
    left = [f".{name}.unfinished~{here}~{gone.pid}" for name in ("comparison", "comparison.former")]
    kept = [f".comparison.unfinished~{here}~{os.getppid()}", f".comparison.unfinished~elsewhere~{gone.pid}"]
    kept += [f".other.unfinished~{here}~{gone.pid}", ".comparison.notes"]
    for name in left + kept:
        (tmp_path / name).mkdir()
        mark(tmp_path / name)
    with replacing(folder):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"comparison", *kept}
    holds_a_run = tmp_path / left[0]
    make_run(holds_a_run)
    mark(holds_a_run)
    with replacing(folder):
        pass
    assert holds_a_run.exists()


@pytest.mark.parametrize("name", ["comparison", "report"])
def test_a_folder_without_the_mark_is_kept(name, tmp_path, capsys):
    make_run(tmp_path / "other")
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.md").write_text("a user's")
    error = refused(tmp_path, capsys=capsys)
    assert f"{tmp_path / name} is not replaced, since it has no {MARK}" in error
    assert content(tmp_path / name) == {"notes.md": b"a user's"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["other", name])


def test_a_mark_of_other_content_is_none(tmp_path):
    (tmp_path / MARK).write_text("something else")
    with pytest.raises(ConfigError, match="has no"):
        check_own(tmp_path)
    mark(tmp_path)
    check_own(tmp_path)


def test_an_empty_folder_is_free_and_a_link_leads_to_what_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "comparison").symlink_to("real")
    for text in ("first", "second"):
        with replacing(tmp_path / "comparison") as unfinished:
            (unfinished / "written").write_text(text)
    assert (tmp_path / "comparison").is_symlink()
    assert (tmp_path / "real" / "written").read_text() == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison", "real"]


def test_out_takes_the_comparison_too_and_leaves_the_study_as_it_is(tmp_path):
    make_run(tmp_path / "study")
    before = content(tmp_path / "study")
    main([str(tmp_path / "study"), "--out", str(tmp_path / "out")])
    assert content(tmp_path / "study") == before
    assert {MARK, "index.html", "comparison/" + MARK} <= content(tmp_path / "out").keys()


def test_out_may_not_be_a_study_or_a_run(tmp_path, capsys):
    run = make_run(tmp_path / "study")
    for folder in (tmp_path / "study", run):
        assert "holds a run" in refused(tmp_path / "study", "--out", folder, capsys=capsys)
