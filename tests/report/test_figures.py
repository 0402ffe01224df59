"""Figures, asked what they draw: no picture is compared."""

import json
import os
import socket

import matplotlib.image
import numpy as np
import pytest
from matplotlib.markers import CARETDOWN, CARETUP

from normlab.config.norm import NORMS
from normlab.report.curves import MOST_POINTS, mean_curve
from normlab.report.figures import against, against_speed, draw, learning_curves, save
from normlab.report.published import GN_PAPER_ERROR_PERCENT
from normlab.report.reading import read
from normlab.report.study import Study
from normlab.report.style import norm_order, style_of
from tests.report.made import make_run


def containers(panel):
    """(x, mean, low or None, high or None, hollow) of each estimate that is drawn."""
    found = []
    for container in panel.containers:
        point, _, bars = container.lines
        (x,), (y,) = point.get_xdata(), point.get_ydata()
        low, high = bars[0].get_segments()[0][:, 1] if bars else (None, None)
        found.append((x, y, low, high, point.get_markerfacecolor() == "white"))
    return found


def test_errors_stand_at_their_batch_size_with_their_intervals(study):
    drawn = against(study, "val/accuracy", "batch_size")
    panel, paper = drawn.figure.axes
    for cell, (x, y, low, high, hollow) in zip(study.cells, containers(panel), strict=True):
        found = cell.estimate("val/accuracy")
        assert y == pytest.approx(100 * (1 - found.mean))
        assert abs(x - np.log2(cell.values["batch_size"])) < 0.2
        assert (low, high) == pytest.approx((100 * (1 - found.high), 100 * (1 - found.low)))
        assert not hollow
    assert panel.get_ylabel() == "test error, %"
    assert [label.get_text() for label in panel.get_xticklabels()] == ["4", "8"]
    assert "arXiv:1803.08494" in drawn.caption
    assert [list(line.get_ydata()) for line in paper.lines] == [
        list(errors.values()) for errors in GN_PAPER_ERROR_PERCENT.values()
    ]
    assert all(line.get_alpha() < 1 for line in paper.lines)


def test_the_second_axis_has_the_normalization_batch_size(study):
    panel = against(study, "val/accuracy", "batch_size").figure.axes[0]
    [top] = panel.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["4\n1", "8\n1"]
    assert any(text.get_text() == "NBS of bn\ngn" for text in panel.texts)


def nbs_rows(panel):
    """{name: normalization batch sizes along the axis} as it is written above a panel."""
    [top] = panel.child_axes
    [names] = [text.get_text() for text in panel.texts if text.get_text().startswith("NBS of ")]
    columns = [label.get_text().split("\n") for label in top.get_xticklabels()]
    return dict(zip(names.removeprefix("NBS of ").split("\n"), zip(*columns, strict=True), strict=True))


def test_sync_groups_of_another_size_have_a_normalization_batch_size_of_their_own(tmp_path):
    for batch_size in (2, 4):
        make_run(tmp_path, batch_size=batch_size)
        for groups in (2, 4):
            make_run(tmp_path, batch_size=batch_size, norm="gn", norm__num_groups=groups)
        for group, nbs in ((4, 4 * batch_size), ("null", 8 * batch_size)):
            result = {"normalization_batch_size": nbs}
            make_run(tmp_path, batch_size=batch_size, norm="syncbn", norm__sync_group_size=group, result=result)
    drawn = against(Study(read(tmp_path)), "val/accuracy", "batch_size")
    assert nbs_rows(drawn.figure.axes[0]) == {
        "bn": ("2", "4"),
        "syncbn sync_group_size=4": ("8", "16"),
        "syncbn sync_group_size=null": ("16", "32"),
        "gn": ("1", "1"),
    }


def arrows(panel):
    return {
        (line.get_marker(), line.get_ydata()[0])
        for line in panel.lines
        if line.get_marker() in (CARETUP, CARETDOWN)
    }


def test_an_interval_of_two_unlike_seeds_is_cut_with_arrows_and_the_others_can_be_read(tmp_path):
    """0.95 and 0.65: 0.80 ± 1.91, of an accuracy. The others are within 0.78 and 0.84."""
    for batch_size, accuracies in ((2, (0.80, 0.81, 0.82)), (4, (0.80, 0.82, 0.81)), (8, (0.95, 0.65))):
        for seed, accuracy in enumerate(accuracies):
            make_run(tmp_path, accuracy, batch_size=batch_size, seed=seed)
    panel = against(Study(read(tmp_path)), "val/accuracy", "batch_size").figure.axes[0]
    low, high = panel.get_ylim()
    assert 10 < low < 17
    assert 22 < high < 30
    assert arrows(panel) == {(CARETDOWN, low), (CARETUP, high)}


def test_an_axis_ends_where_values_do(tmp_path):
    for seed, error in enumerate((0.01, 0.10)):  # 5.5 ± 57 percent
        make_run(tmp_path, seed=seed, result={"metrics": {"val/accuracy": 1 - error, "val/loss": error}})
    study = Study(read(tmp_path))
    panel = against(study, "val/accuracy", "batch_size").figure.axes[0]
    assert panel.get_ylim()[0] == 0
    assert panel.get_ylim()[1] < 100
    assert {marker for marker, _ in arrows(panel)} == {CARETDOWN}
    assert against(study, "val/loss", "batch_size").figure.axes[0].get_ylim()[0] == 0


def test_intervals_of_a_like_length_are_drawn_whole(tmp_path):
    for batch_size in (2, 4):
        for seed, accuracy in enumerate((0.4, 0.5, 0.6)):
            make_run(tmp_path, accuracy, batch_size=batch_size, seed=seed)
    study = Study(read(tmp_path))
    panel = against(study, "val/accuracy", "batch_size").figure.axes[0]
    found = study.cells[0].estimate("val/accuracy")
    assert arrows(panel) == set()
    assert panel.get_ylim()[0] < 100 * (1 - found.high)
    assert panel.get_ylim()[1] > 100 * (1 - found.low)


def test_a_run_that_diverged_does_not_stretch_the_curves(tmp_path):
    make_run(tmp_path, curve={10: 0.5, 20: 0.6})
    make_run(tmp_path, seed=1, status="diverged", curve={10: 0.5, 20: 1e6})
    panel = learning_curves(Study(read(tmp_path)), "val/accuracy").figure.axes[0]
    assert panel.get_ylim() == pytest.approx((39.5, 50.5))
    assert [panel.xaxis.get_major_formatter()(at, 0) for at in (0, 15, 2500)] == ["0", "15", "2.5k"]


def test_figures_begin_with_what_was_swept_and_the_paper_stands_beside_the_batch_size_alone(tmp_path):
    for world_size in (1, 2):
        make_run(tmp_path / "ranks", world_size=world_size)
        make_run(tmp_path / "batch", batch_size=4 * world_size)
    names = {
        folder: [one.name for one in draw(Study(read(tmp_path / folder)), "val/accuracy")]
        for folder in ("ranks", "batch")
    }
    assert names["ranks"][0] == "val_accuracy_vs_world_size"
    assert "val_accuracy_vs_batch_size" not in names["ranks"]

    def panels(folder, **options):
        return len(next(draw(Study(read(tmp_path / folder)), "val/accuracy", **options)).figure.axes)

    assert (panels("ranks"), panels("batch"), panels("batch", paper=False)) == (1, 2, 1)


def test_a_single_batch_size_is_drawn_at_its_number_without_the_paper(tmp_path):
    make_run(tmp_path, batch_size=16)
    [panel] = against(Study(read(tmp_path)), "val/accuracy", "batch_size").figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["16"]


def test_against_a_norms_own_key_the_others_are_lines_across(tmp_path):
    make_run(tmp_path, 0.75)
    for groups in (2, 4):
        make_run(tmp_path, 0.5, norm="gn", norm__num_groups=groups)
    drawn = against(Study(read(tmp_path)), "val/accuracy", "norm.num_groups")
    [panel] = drawn.figure.axes
    across = [line.get_ydata()[0] for line in panel.lines if list(line.get_xdata()) == [0, 1]]
    assert across == [25.0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["2", "4"]
    assert [text.get_text() for text in drawn.figure.legends[0].get_texts()] == ["bn", "gn"]


def test_one_seed_is_hollow_and_without_an_interval_and_diverged_runs_are_counted_above(tmp_path):
    make_run(tmp_path, 0.5, batch_size=2)
    for seed in (0, 1):
        make_run(tmp_path, status="diverged", batch_size=4, seed=seed)
    panel = against(Study(read(tmp_path)), "val/accuracy", "batch_size").figure.axes[0]
    assert [point[1:] for point in containers(panel)] == [(50.0, None, None, True)]
    crosses = [line for line in panel.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [2.0]
    assert "2" in [text.get_text() for text in panel.texts]


def test_a_diverged_run_is_counted_above_the_estimate_of_its_own_cell(tmp_path):
    for norm in ("bn", "gn", "ln"):
        for batch_size in (2, 4):
            make_run(tmp_path, 0.5, norm=norm, batch_size=batch_size)
            make_run(tmp_path, status="diverged", norm=norm, batch_size=batch_size, seed=1)
    panel = against(Study(read(tmp_path)), "val/accuracy", "batch_size").figure.axes[0]
    crosses = [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "x"]
    assert sorted(crosses) == sorted(x for x, *_ in containers(panel))


def test_a_dollar_in_a_setting_is_no_formula(tmp_path):
    for lr in (r"$\frac$", "b"):
        for seed in (0, 1):
            make_run(tmp_path / "study", 0.5, seed=seed, optim__lr=lr, curve={1: 0.1, 2: 0.2})
    for drawn in draw(Study(read(tmp_path / "study")), "val/accuracy"):
        save(drawn, tmp_path / "figures")
    assert len(list((tmp_path / "figures").iterdir())) >= 6


def test_a_cell_whose_speed_is_not_known_is_in_no_figure_of_speeds(tmp_path):
    make_run(tmp_path, 0.5, batch_size=2)
    make_run(tmp_path, 0.6, batch_size=4, result={"images_per_second": None})
    panel = against_speed(Study(read(tmp_path)), "val/accuracy").figure.axes[0]
    assert [list(line.get_xdata()) for line in panel.lines] == [[100.0]]
    assert [text.get_text() for text in panel.texts] == ["2"]


def test_other_metrics_are_drawn_as_they_are_and_without_the_paper(study):
    drawn = against(study, "val/loss", "batch_size")
    [panel] = drawn.figure.axes
    assert panel.get_ylabel() == "val/loss"
    means = {round(cell.estimate("val/loss").mean, 9) for cell in study.cells}
    assert {round(y, 9) for _, y, *_ in containers(panel)} == means


def test_a_curve_is_the_mean_at_equal_samples_seen_within_its_seeds(tmp_path):
    make_run(tmp_path, seed=0, curve={10: 0.1, 20: 0.3, 30: 0.5})
    make_run(tmp_path, seed=1, curve={10: 0.3, 20: 0.5, 30: 0.9})
    make_run(tmp_path, seed=2, status="diverged", curve={10: 0.8, 20: 0.0})
    study = Study(read(tmp_path))
    curve = mean_curve(study, study.cells[0], "val/accuracy")
    np.testing.assert_allclose(curve.samples_seen, [10, 20, 30])
    np.testing.assert_allclose(curve.mean, [0.2, 0.4, 0.7])
    np.testing.assert_allclose([curve.low, curve.high], [[0.1, 0.3, 0.5], [0.3, 0.5, 0.9]])
    panel = learning_curves(study, "val/accuracy").figure.axes[0]
    assert [line.get_linestyle() for line in panel.lines] == ["-", ":"]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), [80, 60, 30])
    np.testing.assert_allclose(panel.lines[1].get_ydata(), [20, 100])


def test_a_run_that_has_begun_has_a_dotted_curve_while_it_waits_to_go_on(tmp_path):
    begun = make_run(tmp_path, status=None, curve={10: 0.1, 20: 0.3})
    here = {"launcher": "local", "host": socket.gethostname(), "pid": os.getpid()}
    (begun / "launch.json").write_text(json.dumps(here))
    study = Study(read(tmp_path))
    assert list(study.runs["state"]) == ["queued"]
    [curve] = learning_curves(study, "val/accuracy").figure.axes[0].lines
    assert curve.get_linestyle() == ":"


def test_seeds_that_logged_elsewhere_are_interpolated_where_both_have_been(tmp_path):
    make_run(tmp_path, seed=0, curve={10: 0.0, 30: 1.0})
    make_run(tmp_path, seed=1, curve={20: 0.5, 40: 0.5})
    study = Study(read(tmp_path))
    curve = mean_curve(study, study.cells[0], "val/accuracy")
    np.testing.assert_allclose(curve.samples_seen, [20, 30])
    np.testing.assert_allclose(curve.mean, [0.5, 0.75])


def test_a_long_curve_is_drawn_as_means_over_stretches(tmp_path):
    values = np.sin(np.arange(1000))
    make_run(tmp_path, curve=dict(enumerate(values.tolist(), start=1)))
    study = Study(read(tmp_path))
    curve = mean_curve(study, study.cells[0], "val/accuracy")
    assert len(curve.mean) == MOST_POINTS
    np.testing.assert_allclose(curve.mean[0], values[: 1000 // MOST_POINTS + 1].mean(), atol=1e-12)
    edges = [float(curve.samples_seen[0]), float(curve.samples_seen[-1])]
    assert edges == pytest.approx([9, 992], abs=2)


def test_every_figure_of_a_study_is_written_as_png_and_svg(study, tmp_path):
    names = []
    for drawn in draw(study, "val/accuracy"):
        save(drawn, tmp_path)
        names.append(drawn.name)
        picture = matplotlib.image.imread(tmp_path / f"{drawn.name}.png")
        assert picture.shape[:2] == tuple((drawn.figure.get_size_inches()[::-1] * 150).astype(int))
        assert (picture[..., :3] < 0.9).mean() > 0.005  # something is drawn
        dark = np.nonzero((picture[..., :3] < 0.5).all(-1))  # and it fills the picture, not a corner of it
        assert all(np.ptp(axis) > 0.75 * size for axis, size in zip(dark, picture.shape[:2], strict=True))
        assert "samples" in (tmp_path / f"{drawn.name}.svg").read_text() or "curves" not in drawn.name
    assert names == [
        "val_accuracy_vs_batch_size",
        "val_accuracy_curves",
        "train_loss_curves",
        "val_accuracy_vs_images_per_second",
    ]
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".svg"}


def test_each_norm_has_a_look_of_its_own_and_an_unknown_one_always_the_same():
    looks = [(style_of(norm).colour, style_of(norm).marker) for norm in NORMS]
    alike = [norm for norm, look in zip(NORMS, looks, strict=True) if looks.count(look) > 1]
    assert alike == [], "give one of them another colour or marker in normlab/config/norm.py"
    core = [style_of(norm) for norm in ("bn", "syncbn", "gn", "ln", "in")]
    assert len({style.colour for style in core}) == len({style.marker for style in core}) == 5
    assert style_of("my_norms.MyNorm") == style_of("my_norms.MyNorm")
    of_others = [style_of(f"my_norms.Norm{number}") for number in range(200)]
    assert {(style.colour, style.marker) for style in of_others}.isdisjoint(looks)
    assert {style.colour for style in of_others}.isdisjoint(style.colour for style in core)
    assert len(set(of_others)) > 25
    assert sorted(["zzz", "in", "aaa", "bn"], key=norm_order) == ["bn", "in", "aaa", "zzz"]
