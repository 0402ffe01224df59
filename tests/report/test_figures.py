"""Figures, asked what they draw: no picture is compared."""

import matplotlib.image
import numpy as np
import pytest

from normlab.report.curves import MOST_POINTS, mean_curve
from normlab.report.figures import against, draw, learning_curves, save
from normlab.report.published import GN_PAPER_ERROR_PERCENT
from normlab.report.reading import read
from normlab.report.study import Study
from normlab.report.style import NORMS, norm_order, style_of
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


def test_one_seed_is_hollow_and_without_an_interval_and_diverged_runs_are_counted_above(tmp_path):
    make_run(tmp_path, 0.5, batch_size=2)
    for seed in (0, 1):
        make_run(tmp_path, status="diverged", batch_size=4, seed=seed)
    panel = against(Study(read(tmp_path)), "val/accuracy", "batch_size").figure.axes[0]
    assert [point[1:] for point in containers(panel)] == [(50.0, None, None, True)]
    crosses = [line for line in panel.lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [2.0]
    assert "2" in [text.get_text() for text in panel.texts]


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
    assert len(set(looks)) == len(looks)
    core = [style_of(norm) for norm in ("bn", "syncbn", "gn", "ln", "in")]
    assert len({style.colour for style in core}) == len({style.marker for style in core}) == 5
    assert style_of("mynorm") == style_of("mynorm")
    assert sorted(["zzz", "in", "aaa", "bn"], key=norm_order) == ["bn", "in", "aaa", "zzz"]
