"""What is subtracted from what, and the family of differences that p-values are adjusted for."""

import pytest

from normlab.report.contrasts import contrasts
from normlab.report.findings import findings
from normlab.report.reading import read
from normlab.report.statistics import holm
from normlab.report.study import Study
from tests.report.made import make_run


def make_cell(root, values, **settings):
    for seed, accuracy in enumerate(values):
        make_run(root, accuracy, seed=seed, **settings)


@pytest.fixture
def study(tmp_path):
    accuracies = {("bn", 2): [0.1, 0.3], ("gn", 2): [0.2, 0.5], ("bn", 4): [0.6, 0.6], ("gn", 4): [0.5, 0.4]}
    for (norm, batch_size), values in accuracies.items():
        make_cell(tmp_path, values, norm=norm, batch_size=batch_size)
    make_run(tmp_path, 0.9, norm="gn", batch_size=2, seed=7)
    return Study(read(tmp_path))


def test_differences_are_paired_by_seed_within_the_same_other_keys(study):
    [to_bn] = contrasts(study, "bn")
    found = {cell.values["batch_size"]: e for cell, e in to_bn.differences("val/accuracy").items()}
    assert {batch: (e.n, round(e.mean, 12)) for batch, e in found.items()} == {2: (2, 0.15), 4: (2, -0.15)}
    assert (study.baseline(None), study.baseline("gn")) == ("bn", "gn")
    assert contrasts(study, None) == []


def test_the_family_is_every_difference_of_the_metric(study):
    [to_bn] = contrasts(study, "bn")
    found = list(to_bn.differences("val/accuracy").values())
    assert [one.p_holm for one in found] == holm([one.p for one in found])
    assert "p adjusted by Holm for 2 differences" in to_bn.title("val/accuracy")
    [text] = [one.text for one in findings(study, "val/accuracy", "bn") if "minus bn" in one.text]
    assert "over all 2 differences to bn" in text
    assert "not corrected for how many there are" in text


def test_a_swept_option_of_one_norm_leaves_the_baseline_for_all_its_values(tmp_path):
    make_cell(tmp_path, [0.5, 0.7])
    for groups in (4, 8):
        make_cell(tmp_path, [0.6, 0.75], norm="gn", norm__num_groups=groups)
    [to_bn] = contrasts(Study(read(tmp_path)), "bn")
    assert {cell.series: to.series for cell, to in to_bn.pairs.items()} == {
        "gn num_groups=4": "bn",
        "gn num_groups=8": "bn",
    }


def test_two_studies_have_the_difference_of_the_first_to_the_second_cell_by_cell(tmp_path):
    """They differ in a key that each has once, which stands in the way of no pair."""
    for name, shift, epochs in (("a", 0.1, 10), ("b", 0.0, 20)):
        for batch_size in (2, 4):
            make_cell(tmp_path / name, [0.5 + shift, 0.6 + 2 * shift], batch_size=batch_size, epochs=epochs)
    make_cell(tmp_path / "a", [0.5, 0.5], norm="gn", batch_size=2, epochs=10)  # b has none
    study = Study(read(tmp_path / "a"), read(tmp_path / "b"))
    to_bn, between = contrasts(study, "bn")
    assert (to_bn.label, between.label) == ("minus bn", "a minus b")
    found = {(c.norm, c.values["batch_size"]): e.mean for c, e in between.differences("val/accuracy").items()}
    assert found == {("bn", 2): pytest.approx(0.15), ("bn", 4): pytest.approx(0.15)}
    assert {cell.values["study"] for cell in between.pairs} == {"a"}
