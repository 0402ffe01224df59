"""Tables: what stands in a cell, in words."""

import math

import pandas as pd
import pytest

from normlab.report.__main__ import main
from normlab.report.contrasts import contrasts
from normlab.report.reading import read
from normlab.report.statistics import estimate
from normlab.report.study import Study
from normlab.report.tables import as_list, as_markdown, cells_table, decimals, grids, runs_table
from tests.report.made import make_run


@pytest.fixture
def mixed(tmp_path):
    for seed, accuracy in enumerate((0.40, 0.50, 0.60)):
        make_run(tmp_path, accuracy, seed=seed, batch_size=2)
        make_run(tmp_path, accuracy + 0.1, seed=seed, batch_size=2, norm="gn", norm__num_groups=2)
    make_run(tmp_path, 0.5, seed=0, batch_size=16)
    make_run(tmp_path, status="diverged", seed=1, batch_size=16)
    make_run(tmp_path, status="diverged", seed=0, batch_size=2, norm="gn", norm__num_groups=4)
    return Study(read(tmp_path))


def test_a_cell_says_its_mean_interval_and_n_and_what_is_not_in_them(mixed):
    results, differences = grids(mixed, "val/accuracy", "batch_size", "bn")
    half = estimate([0.4, 0.5, 0.6]).half_width
    assert results.columns == ["batch_size=2", "batch_size=16"]
    assert results.rows == [
        ["bn", f"0.5000 ± {half:.4f} (n=3)", "0.5000 (n=1, no interval), 1 diverged"],
        ["gn num_groups=2", f"0.6000 ± {half:.4f} (n=3)", "missing"],
        ["gn num_groups=4", "1 diverged", "missing"],
    ]
    assert differences.rows == [
        ["gn num_groups=2", "0.1000 ± 0.0000 (n=3, p<0.001)"],
        ["gn num_groups=4", "no pair"],
    ]
    assert "minus that of bn with the same seed" in differences.title


def test_against_a_norms_own_key_norms_without_it_have_a_column_of_their_own(mixed):
    at_2, at_16, *_ = grids(mixed, "val/accuracy", "norm.num_groups", None)
    assert at_2.columns == ["norm.num_groups=2", "norm.num_groups=4", "without norm.num_groups"]
    [bn, gn] = at_2.rows
    assert (bn[0], bn[1:3], bn[3][-5:]) == ("bn", ["", ""], "(n=3)")
    assert (gn[0], gn[2], gn[3]) == ("gn", "1 diverged", "")
    assert at_2.title.endswith("batch_size=2")
    assert at_16.columns == ["without norm.num_groups"]


def test_other_swept_keys_make_tables_of_their_own(tmp_path):
    for lr in (0.1, 0.2):
        for batch_size in (2, 4):
            make_run(tmp_path, lr, optim__lr=lr, batch_size=batch_size)
    study = Study(read(tmp_path))
    by_batch = grids(study, "val/accuracy", "batch_size", None)
    assert [(g.title.rpartition("; ")[2], g.columns) for g in by_batch] == [
        ("optim.lr=0.1", ["batch_size=2", "batch_size=4"]),
        ("optim.lr=0.2", ["batch_size=2", "batch_size=4"]),
    ]
    by_lr = grids(study, "val/accuracy", "optim.lr", None)
    assert [g.columns for g in by_lr] == [["optim.lr=0.1", "optim.lr=0.2"]] * 2
    assert by_lr[0].rows == [["bn", "0.1000 (n=1, no interval)", "0.2000 (n=1, no interval)"]]


def test_the_csv_has_a_row_for_each_cell_and_metric(study):
    table = cells_table(study, ["val/accuracy", "val/loss"], "bn")
    assert len(table) == 2 * len(study.cells)
    row = table[(table["metric"] == "val/loss") & (table["norm"] == "gn") & (table["batch_size"] == 4)].iloc[0]
    [cell] = [c for c in study.cells if c.norm == "gn" and c.values["batch_size"] == 4]
    found, pair = cell.estimate("val/loss"), contrasts(study, "bn")[0].differences("val/loss")[cell]
    assert (row["n"], row["mean"], row["low"], row["high"]) == (2, found.mean, found.low, found.high)
    assert (row["pairs"], row["minus bn"], row["p"], row["p_holm"]) == (2, pair.mean, pair.p, pair.p_holm)
    assert table.loc[table["batch_size"] == 8, "failed"].sum() == 2  # bn's failed seed, at two metrics
    runs = runs_table(study)
    assert len(runs) == len(study.runs)
    assert {"run", "state", "norm", "batch_size", "seed", "val/accuracy", "torch"} <= set(runs)


def test_markdown_shows_names_and_ends_no_column_with_them(tmp_path):
    make_run(tmp_path, norm="<script>|x")
    study = Study(read(tmp_path))
    text = as_markdown(grids(study, "val/accuracy", "batch_size", None)[0])
    assert "| &lt;script>\\|x | 0.5000 (n=1, no interval) |" in text
    assert text.count("\n| ") == 3


def test_markdown_holds_no_tag_link_or_code_of_a_name(tmp_path):
    """Names stand in the title, in tables and in findings."""
    evil = "<script>alert(1)</script>"
    folder = tmp_path / "x<img>[a](http://b)"
    make_run(folder, status="failed", norm=evil, name="a`<script>`", result={"error": f"no\n`{evil}` [a](b)"})
    make_run(folder, name="plain_name", norm=evil, seed=1)
    main([str(folder)])
    text = (folder / "report" / "tables.md").read_text()
    assert "&lt;script>" in text
    assert "<" not in text
    assert "](" not in text.replace("\\]", "")
    assert r"- a\`&lt;script>\`: \`&lt;script>" in text
    study = Study(read(folder))
    assert as_list("1 failed", [study.runs["run"][1]]) == "1 failed\n- `plain_name`\n"


def test_numbers_have_the_places_that_their_size_asks_for():
    shown = [decimals(0.123456), decimals(-1.5), decimals(12.345), decimals(654.321), decimals(3.21, like=654)]
    assert shown == ["0.1235", "-1.5000", "12.35", "654.3", "3.2"]
    assert decimals(math.nan) == "nan"


def test_a_study_of_one_run_has_a_table(tmp_path):
    make_run(tmp_path)
    [grid] = grids(Study(read(tmp_path)), "val/accuracy", "batch_size", None)
    assert (grid.columns, grid.rows) == (["batch_size=4"], [["bn", "0.5000 (n=1, no interval)"]])
    assert isinstance(cells_table(Study(read(tmp_path)), ["val/accuracy"], "bn"), pd.DataFrame)
