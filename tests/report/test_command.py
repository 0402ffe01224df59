"""python -m normlab.report, as a user runs it."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from normlab.report.__main__ import main
from normlab.report.reading import load
from tests.processes import ROOT
from tests.report.made import make_run


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fails(*arguments, capsys):
    """Exit code 2 and one line."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_a_report_is_made_beside_the_runs_and_made_again_it_replaces_itself(study_folder, capsys):
    before = files(study_folder)
    main([str(study_folder)])
    shown = capsys.readouterr()
    assert "val/accuracy, mean ± 95 percent interval over n seeds (Student t)" in shown.out
    assert "10 runs: 8 finished, 1 failed, 1 stale" in shown.out
    assert "rank 0: out of luck" in shown.out
    made = files(study_folder / "report")
    assert {"index.html", "tables.md", "tables.csv", "runs.csv"} <= set(made)
    assert "figures/val_accuracy_vs_batch_size.png" in made
    cells = pd.read_csv(study_folder / "report" / "tables.csv")
    assert cells[cells["metric"] == "val/accuracy"]["n"].tolist() == [2, 2, 2, 2]
    assert len(pd.read_csv(study_folder / "report" / "runs.csv")) == 10
    events = [path for path in files(study_folder / "comparison") if "tfevents" in path]
    main([str(study_folder)])  # its own outputs are no runs, and nothing is there twice
    assert "10 runs:" in capsys.readouterr().out
    assert files(study_folder / "report") == made
    again = [path for path in files(study_folder / "comparison") if "tfevents" in path]
    assert len(again) == len(events)
    ours = ("report/", "comparison/")
    assert [path for path in files(study_folder) if not path.startswith(ours)] == before


def test_nothing_of_the_runs_is_needed_but_the_files(study_folder):
    """In a process of its own, as on a login node: no torch."""
    code = "import sys; from normlab.report.__main__ import main; main(sys.argv[1:])"
    command = [
        sys.executable,
        "-c",
        f"{code}; sys.exit('torch' in sys.modules)",
        str(study_folder),
        "--out",
        str(study_folder.parent / "elsewhere"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (study_folder.parent / "elsewhere" / "index.html").exists()
    assert not (study_folder / "report").exists()


def test_text_alone_writes_nothing(study_folder, capsys):
    before = files(study_folder)
    main([str(study_folder), "--text", "--metric", "train/loss", "--baseline", "gn"])
    shown = capsys.readouterr().out
    assert "train/loss minus that of gn" in shown
    assert files(study_folder) == before


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_export_has_every_point_with_its_run(ending, trained, tmp_path):
    path = tmp_path / f"points.{ending}"
    main([str(trained), "--export", str(path)])
    table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    runs, points = load(trained)
    assert len(table) == len(points)
    assert {"run", "state", "norm", "seed", "batch_size", "samples_seen", "val/accuracy"} <= set(table)
    last = table[table["norm"] == "gn"].dropna(subset="val/accuracy").groupby("run")["val/accuracy"].last()
    finished = runs[(runs["norm"] == "gn") & (runs["state"] == "finished")].set_index("run")["val/accuracy"]
    assert len(finished) == 4
    pd.testing.assert_series_equal(last[finished.index], finished, check_dtype=False)


def test_two_studies_stand_side_by_side(trained, study_folder, tmp_path, capsys):
    other = shutil.copytree(study_folder, tmp_path / "other")
    for run in other.glob("gn-*"):
        shutil.rmtree(run)
    main(["--compare", str(study_folder), str(other), "--out", str(tmp_path / "out")])
    shown = capsys.readouterr().out
    assert "study=other" in shown
    assert "study=study" in shown
    assert "val/accuracy of study minus that of other with the same seed" in shown
    assert (tmp_path / "out" / "tables.md").read_text().startswith("# study against other\n")
    assert "<title>study against other</title>" in (tmp_path / "out" / "index.html").read_text()
    cells = pd.read_csv(tmp_path / "out" / "tables.csv")
    of_bn = cells[(cells["metric"] == "val/accuracy") & (cells["norm"] == "bn") & (cells["study"] == "study")]
    assert of_bn["study minus other"].tolist() == [0, 0]  # a copy of it
    n = cells[cells["metric"] == "val/accuracy"].groupby("study")["n"].sum()
    assert n.to_dict() == {"other": 4, "study": 8}
    assert not (study_folder / "comparison").exists()


def test_what_is_wrong_is_one_line_and_exit_code_2(trained, tmp_path, capsys):
    assert "is not a folder" in fails(tmp_path / "nowhere", capsys=capsys)
    assert "has no runs in it" in fails(tmp_path, capsys=capsys)
    assert "they have " in fails(trained, "--metric", "val/acc", capsys=capsys)
    assert "they have bn, gn" in fails(trained, "--baseline", "ln", "--text", capsys=capsys)
    assert "swept are batch_size" in fails(trained, "--x", "optim.lr", "--text", capsys=capsys)
    assert "neither .csv nor .parquet" in fails(trained, "--export", tmp_path / "x.xlsx", capsys=capsys)
    assert "cannot be written" in fails(trained, "--export", tmp_path / "no" / "x.csv", capsys=capsys)
    (tmp_path / "file").write_text("")
    assert "is not a folder" in fails(trained, "--out", tmp_path / "file", capsys=capsys)
    make_run(tmp_path / "foreign", name="run0")
    (tmp_path / "foreign/run0/config.yaml").write_text("key: 1\n")
    assert "has a norm and a seed" in fails(tmp_path / "foreign", capsys=capsys)
    make_run(tmp_path / "empty", status=None)
    assert "has logged a metric yet" in fails(tmp_path / "empty", capsys=capsys)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_watch_that_cannot_sleep_so_long_is_refused(seconds, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main([str(tmp_path), f"--watch={seconds}"])
    assert f"--watch {seconds} is not a number of seconds above 0" in capsys.readouterr().err


def test_files_are_utf_8_in_any_locale(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "study", 0.5 + 0.1 * seed, seed=seed)
    of_ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "normlab.report", str(tmp_path / "study")]
    done = subprocess.run(command, env=os.environ | of_ascii, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("tables.md", "index.html"):
        assert "±" in (tmp_path / "study/report" / name).read_text(encoding="utf-8")


def test_a_study_that_has_just_begun_is_reported(tmp_path, capsys):
    """One run with a point, nothing finished: every part of the report still stands."""
    make_run(tmp_path / "study", status=None, curve={8: 0.3}, seed=0)
    make_run(tmp_path / "study", status="diverged", seed=1, batch_size=8)
    main([str(tmp_path / "study")])
    shown = capsys.readouterr().out
    assert "2 runs: 1 diverged, 1 stale" in shown
    assert (tmp_path / "study" / "report" / "index.html").exists()
