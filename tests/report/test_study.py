"""Cells: what is swept, what a mean is over, what is missing or doubtful."""

import os

import pytest

from normlab.config import ConfigError
from normlab.report.findings import findings
from normlab.report.reading import read
from normlab.report.study import Study
from normlab.run import RESULTS_VERSION
from tests.report.made import make_run


def study_of(*roots):
    return Study(*map(read, roots))


def said(study, metric="val/accuracy"):
    return {one.text: one.names for one in findings(study, metric)}


def cell_of(study, norm, **at):
    [cell] = [c for c in study.cells if c.norm == norm and all(c.values.get(k) == v for k, v in at.items())]
    return cell


def test_a_real_studys_cells_are_its_norms_and_batch_sizes(study):
    assert study.axes == ["batch_size"]
    assert [cell.name() for cell in study.cells] == [f"{n} batch_size={b}" for n in ("bn", "gn") for b in (4, 8)]
    cell = cell_of(study, "bn", batch_size=8)
    finals = study.runs[(study.runs["norm"] == "bn") & (study.runs["batch_size"] == 8)]["val/accuracy"].dropna()
    assert (len(finals), cell.estimate("val/accuracy").n) == (2, 2)
    assert cell.estimate("val/accuracy").mean == pytest.approx(finals.mean())
    assert (cell.nbs, cell_of(study, "gn", batch_size=8).nbs) == (8, 1)
    assert cell.states == {"finished": 2, "failed": 1}


def test_every_swept_key_is_found_and_no_other(tmp_path):
    for seed in (0, 1):
        for lr in (0.1, 0.2):
            for groups in (2, 4):
                make_run(tmp_path, norm="gn", norm__num_groups=groups, optim__lr=lr, seed=seed, threads=1 + seed)
            make_run(tmp_path, optim__lr=lr, seed=seed, output_dir=f"somewhere{lr}")
    study = study_of(tmp_path)
    assert study.axes == ["norm.num_groups", "optim.lr"]
    assert {cell.series for cell in study.cells} == {"bn", "gn num_groups=2", "gn num_groups=4"}
    assert all(cell.estimate("val/accuracy").n == 2 for cell in study.cells)
    assert study.missing == []


def test_a_key_that_its_section_decides_is_not_swept_and_one_that_goes_with_the_norm_is_said(tmp_path):
    for norm, lr in (("bn", 0.1), ("frn", 0.05)):
        for model, depth in (("resnet8", 8), ("resnet20", 20)):
            make_run(tmp_path, norm=norm, norm__eps=lr / 1e4, optim__lr=lr, model=model, model__depth=depth)
    study = study_of(tmp_path)
    assert study.axes == ["model"]
    [text] = [text for text in said(study) if "differs between norms" in text]
    assert text.startswith("optim.lr differs between norms")
    assert text.endswith("bn 0.1, frn 0.05")


def test_a_mean_is_over_seeds_alone(tmp_path):
    for seed, accuracy in ((0, 0.4), (1, 0.6)):
        make_run(tmp_path, accuracy, seed=seed, label_smoothing=0.0)
        make_run(tmp_path, accuracy + 0.2, seed=seed, label_smoothing=0.1)
    make_run(tmp_path, 0.0, seed=2, label_smoothing=0.1, result={"results_version": RESULTS_VERSION + 1})
    study = study_of(tmp_path)
    means = {tuple(value for _, value in cell.at): cell.estimate("val/accuracy") for cell in study.cells}
    assert study.axes == ["label_smoothing", "results_version"]
    assert {at: (found.n, found.mean) for at, found in means.items()} == {
        (0, RESULTS_VERSION): (2, pytest.approx(0.5)),
        (0.1, RESULTS_VERSION): (2, pytest.approx(0.7)),
        (0.1, RESULTS_VERSION + 1): (1, 0.0),
    }
    mixed = f"results_version is mixed, {RESULTS_VERSION} (4 runs), {RESULTS_VERSION + 1} (1 runs)"
    assert any(mixed in text for text in said(study))


def test_a_key_that_some_runs_do_not_have_is_said(tmp_path):
    make_run(tmp_path, seed=0, name="older")
    make_run(tmp_path, seed=1, label_smoothing=0.1)
    make_run(tmp_path, seed=1, norm="gn", norm__num_groups=2, label_smoothing=0.1)
    make_run(tmp_path, seed=1, norm="my_norms.MyNorm", norm__args={"groups": 2}, label_smoothing=0.1)
    told = said(study_of(tmp_path))
    assert told["label_smoothing is not in config.yaml of 1 runs, so its value there is unknown"] == ("older",)
    assert not any("groups" in text for text in told)


def test_diverged_failed_and_unfinished_runs_are_in_no_mean_and_named(tmp_path):
    make_run(tmp_path, 0.5, seed=0)
    make_run(tmp_path, status="diverged", seed=1, curve={8: 0.9}, name="gone")
    make_run(tmp_path, status="failed", seed=2, result={"error": "rank 1: first\nno memory"}, name="broke")
    make_run(tmp_path, status=None, seed=3, curve={8: 0.9}, name="stopped")
    make_run(tmp_path, None, seed=4, name="mute")
    study = study_of(tmp_path)
    [cell] = study.cells
    assert (cell.estimate("val/accuracy").n, cell.estimate("val/accuracy").mean) == (1, 0.5)
    assert cell.by_seed("images_per_second") == {0: 100.0, 4: 100.0}
    assert cell.states == {"finished": 2, "diverged": 1, "failed": 1, "stale": 1}
    told = said(study)
    assert told["5 runs: 2 finished, 1 diverged, 1 failed, 1 stale"] == ()
    assert told["1 diverged"] == ("gone",)
    assert told["1 failed"] == ("broke: no memory",)
    assert told["1 stale"][0].startswith("stopped")
    assert told["1 finished without val/accuracy"] == ("mute",)


def test_missing_runs_are_those_that_the_grid_has_room_for(tmp_path):
    for norm in ("bn", "gn"):
        for batch_size in (2, 4):
            for seed in (0, 1):
                if (norm, batch_size, seed) not in {("gn", 4, 0), ("gn", 4, 1), ("bn", 2, 1)}:
                    make_run(tmp_path, norm=norm, batch_size=batch_size, seed=seed)
    missing = ["bn batch_size=2 seed=1", "gn batch_size=4 seed=0", "gn batch_size=4 seed=1"]
    study = study_of(tmp_path)
    assert study.missing == missing
    assert said(study)["3 missing from the grid"] == tuple(missing)


def test_missing_runs_are_asked_for_by_their_own_study_alone(tmp_path):
    """bn and gn at two batch sizes here, syncbn at two learning rates there: neither asks for the other's."""
    for norm, batch_size in (("bn", 2), ("bn", 4), ("gn", 2)):
        make_run(tmp_path / "here", norm=norm, batch_size=batch_size)
    for lr in (0.1, 0.2):
        make_run(tmp_path / "there", norm="syncbn", optim__lr=lr, seed=7)
    study = study_of(tmp_path)
    assert study.axes == ["study", "batch_size", "optim.lr"]
    assert study.missing == ["gn study=here batch_size=4 optim.lr=0.1 seed=0"]


def test_a_key_that_each_study_has_once_is_said_and_is_not_swept(tmp_path):
    for name, epochs in (("a", 10), ("b", 20)):
        for batch_size in (2, 4):
            make_run(
                tmp_path / name, epochs=epochs, batch_size=batch_size, norm="gn", norm__num_groups=epochs // 5
            )
    study = study_of(tmp_path / "a", tmp_path / "b")
    assert study.axes == ["study", "batch_size"]
    assert "epochs differs between studies, which may explain their difference: a 10, b 20" in said(study)
    assert "norm.num_groups differs between studies, which may explain their difference: gn: a 2, b 4" in said(
        study
    )


def test_what_all_runs_share_is_said_where_it_is_off_its_default_or_always_wanted(tmp_path):
    for seed in (0, 1):
        settings = {"data__train_samples": 4000, "virtual_ranks": 8, "optim__lr": 0.1, "optim__momentum": 0.5}
        make_run(tmp_path, seed=seed, epochs=3, optim__nesterov=False, threads=3, **settings)
    make_run(tmp_path, status="failed", seed=2, epochs=9)
    [text] = [text for text in said(study_of(tmp_path)) if text.startswith("all have ")]
    always = "model resnet8; data shapes; data.train_samples 4000; epochs 3; batch_size 4; world_size 1"
    assert text.startswith(f"all have {always}; virtual_ranks 8; ")
    assert "optim.momentum 0.5" in text
    assert "optim.lr" not in text  # its default
    assert "threads" not in text  # changes no result


def test_what_no_finished_run_has_is_not_shared(tmp_path):
    make_run(tmp_path, virtual_ranks=None)
    config = next(tmp_path.iterdir()) / "config.yaml"
    config.write_text(config.read_text().replace("virtual_ranks: null\n", ""))
    make_run(tmp_path, status="failed", seed=1)
    [text] = [text for text in said(study_of(tmp_path)) if text.startswith("all have ")]
    assert "virtual_ranks" not in text


def test_two_runs_of_one_cell_and_seed_are_named_and_the_last_is_counted(tmp_path):
    for name, accuracy, written in (("old", 0.1, 1000), ("new", 0.9, 2000)):
        directory = make_run(tmp_path, accuracy, name=name)
        os.utime(directory / "result.json", (written, written))
    study = study_of(tmp_path)
    assert study.cells[0].by_seed("val/accuracy") == {0: 0.9}
    assert study.duplicates == ["new and old: new is counted"]
    assert any("pairs of runs of one cell and seed" in text for text in said(study))


def test_runs_whose_place_is_not_known_are_named(tmp_path):
    make_run(tmp_path, optim__lr=0.1)
    make_run(tmp_path, optim__lr=0.2)
    lost = make_run(tmp_path, seed=1, name="lost")
    (lost / "config.yaml").write_text("norm: {name: bn}\nseed: 1\n")
    study = study_of(tmp_path)
    assert study.unplaced == ["lost"]
    assert any("1 runs that belong to no cell" in text for text in said(study))


def test_metrics_come_from_results_from_measurements_and_from_the_last_point(study, tmp_path):
    assert {"val/accuracy", "images_per_second", "train/loss", "grad_norm"} <= set(study.metrics)
    cell = study.cells[0]
    run = cell.runs[0]["run"]
    last = study.points[study.points["run"] == run]["train/loss"].dropna().iloc[-1]
    assert cell.by_seed("train/loss")[cell.runs[0]["seed"]] == last
    assert study.default_metric() == "val/accuracy"
    for seed in (0, 1):
        make_run(tmp_path, result={"metrics": {"val/miou": 0.4, "val/iou/cat": 0.2}}, seed=seed)
    segmentation = study_of(tmp_path)
    assert segmentation.default_metric() == "val/miou"
    assert segmentation.cells[0].estimate("val/iou/cat").n == 2


def test_what_is_not_there_is_answered_with_what_is(study):
    with pytest.raises(ConfigError, match=r"metric=val/acc is not .*; they have .*val/accuracy"):
        study.check_metric("val/acc")
    with pytest.raises(ConfigError, match=r"baseline=ln is not .*; they have bn, gn"):
        study.baseline("ln")
    with pytest.raises(ConfigError, match=r"x=optim.lr is not swept .* swept are batch_size"):
        study.check_axis("optim.lr")


def test_studies_that_are_compared_keep_their_runs_apart(tmp_path):
    for name, accuracy in (("a", 0.4), ("b", 0.7)):
        for seed in (0, 1):
            make_run(tmp_path / name, accuracy, seed=seed, name=f"same{seed}", curve={8: accuracy})
    study = study_of(tmp_path / "a", tmp_path / "b")
    assert study.axes == ["study"]
    assert study.title == "a against b"
    assert {c.values["study"]: c.estimate("val/accuracy").mean for c in study.cells} == {"a": 0.4, "b": 0.7}
    assert study.curve("b/same1", "val/accuracy").tolist() == [0.7]
    assert study.duplicates == []


def test_a_rate_that_is_chosen_for_each_norm_and_batch_size_keeps_norms_in_one_place(tmp_path):
    rates = {("bn", 2): 0.1, ("bn", 8): 0.2, ("gn", 2): 0.2, ("gn", 8): 0.4}
    for (norm, batch_size), lr in rates.items():
        for seed in (0, 1):
            keys = {"norm": norm, "batch_size": batch_size, "optim__lr": lr, "seed": seed}
            make_run(tmp_path, 0.5, **keys, norm__weight_standardization=False)
    study = study_of(tmp_path)
    assert study.axes == ["batch_size"]
    assert study.missing == []
    assert any(text.startswith("optim.lr differs between norms") for text in said(study))
    make_run(tmp_path, 0.5, norm="gn", batch_size=2, optim__lr=0.05, norm__weight_standardization=True)
    study = study_of(tmp_path)
    assert study.axes == ["batch_size", "norm.weight_standardization"]
    series = ["bn", "gn weight_standardization=false", "gn weight_standardization=true"]
    assert list(dict.fromkeys(cell.series for cell in study.cells)) == series, (
        "bn has one value, which names no line"
    )
    assert {cell.value("norm.weight_standardization") for cell in study.cells if cell.norm == "bn"} == {False}
    make_run(tmp_path, 0.5, norm="gn", batch_size=8, optim__lr=0.8, norm__weight_standardization=False)
    assert study_of(tmp_path).axes == ["batch_size", "norm.weight_standardization", "optim.lr"]
