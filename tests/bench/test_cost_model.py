"""The formulas against numbers worked out by hand."""

import pytest

from normlab.bench.cost_model import ALGORITHMS, Link, Network, Point, fit
from normlab.bench.links import Training
from normlab.bench.scaling import PREDICTED_RANKS, predict

LINKS = {"all_gather": Link(2.0, 0.5), "all_reduce": Link(3.0, 0.25)}


@pytest.mark.parametrize(
    ("algorithm", "collective", "ranks", "expected"),
    [
        ("ring", "all_gather", 4, (3, 300)),
        ("ring", "all_reduce", 4, (6, 150)),
        ("tree", "all_gather", 8, (3, 700)),
        ("tree", "all_reduce", 8, (6, 175)),
        ("tree", "all_gather", 6, (3, 500)),  # rounds of a tree of 8
        ("ring", "all_gather", 2, (1, 100)),
        ("tree", "all_gather", 2, (1, 100)),
        ("ring", "all_reduce", 2, (2, 100)),
    ],
)
def test_rounds_and_bytes_of_100_bytes_a_rank(algorithm, collective, ranks, expected):
    assert ALGORITHMS[algorithm][collective](ranks, 100) == expected


def test_a_step_of_sync_batch_norm_by_hand():
    """Two layers of 1 and 3 channels on 4 ranks: messages of 12 and 28 bytes forward, 8 and 24 backward."""
    network = Network("two layers", (1, 3), gradient_bytes=400)
    gathers = (3 * 2.0 + 3 * 12 * 0.5) + (3 * 2.0 + 3 * 28 * 0.5)
    reduces = (6 * 3.0 + 1.5 * 8 * 0.25) + (6 * 3.0 + 1.5 * 24 * 0.25)
    assert network.sync_batch_norm_s(LINKS, "ring", 4) == pytest.approx(gathers + reduces)
    assert network.gradients_s(LINKS, "ring", 4) == pytest.approx(6 * 3.0 + 1.5 * 400 * 0.25)
    tree_gathers = (2 * 2.0 + 3 * 12 * 0.5) + (2 * 2.0 + 3 * 28 * 0.5)
    tree_reduces = (4 * 3.0 + 1.5 * 8 * 0.25) + (4 * 3.0 + 1.5 * 24 * 0.25)
    assert network.sync_batch_norm_s(LINKS, "tree", 4) == pytest.approx(tree_gathers + tree_reduces)
    assert network.sync_batch_norm_s(LINKS, "ring", 1) == network.gradients_s(LINKS, "tree", 1) == 0


def test_fit_finds_the_link_that_made_the_points_and_weighs_short_and_long_ones_alike():
    truth = Link(2e-4, 3e-9)
    sizes = [(n, 4**k) for n in (2, 4) for k in range(3, 13)]
    terms = [ALGORITHMS["ring"]["all_reduce"](*size) for size in sizes]
    exact = [Point("all_reduce", *size, truth.seconds(t)) for size, t in zip(sizes, terms, strict=True)]
    found = fit(exact)
    assert found.alpha_s == pytest.approx(truth.alpha_s, rel=1e-9)
    assert found.beta_s_per_byte == pytest.approx(truth.beta_s_per_byte, rel=1e-9)
    # Every point twice, once three times too long and once three times too short: the same link.
    noisy = [Point(p.collective, p.ranks, p.message_bytes, p.seconds * f) for p in exact for f in (3, 1 / 3)]
    assert fit(noisy).alpha_s == pytest.approx(truth.alpha_s, rel=1e-6)


def test_points_without_latency_fit_a_link_without():
    points = [Point("all_gather", 2, size, size * 1e-9) for size in (10, 1000, 100_000)]
    link = fit(points)
    assert link.alpha_s < 1e-12
    assert link.beta_s_per_byte == pytest.approx(1e-9, rel=1e-3)


def test_resnet20_sends_what_its_layers_and_parameters_are():
    network = Training("resnet20", 8, 32).network()
    assert network.norm_channels == (16,) * 7 + (32,) * 6 + (64,) * 6
    assert network.gradient_bytes == 4 * 269_722  # 0.27 M parameters, He et al. 2015, table 6; head of 10


def test_predictions_are_the_formulas_and_groups_of_a_node_stop_growing():
    network = Network("two layers", (1, 3), gradient_bytes=400)
    rows = predict(network, LINKS, compute_s=100.0)
    assert [(r["algorithm"], r["ranks"]) for r in rows] == [(a, n) for a in ALGORITHMS for n in PREDICTED_RANKS]
    at = {(r["algorithm"], r["ranks"]): r for r in rows}
    four, eight, last = at["ring", 4], at["ring", 8], at["ring", 1024]
    sync_s, gradients_s = network.sync_batch_norm_s(LINKS, "ring", 4), network.gradients_s(LINKS, "ring", 4)
    assert four["step_s"] == 100 + sync_s + gradients_s
    assert four["sync_batch_norm_share"] == pytest.approx(sync_s / four["step_s"])
    assert last["sync_batch_norm_in_groups_s"] == eight["sync_batch_norm_s"] < last["sync_batch_norm_s"]
    assert {r["step_s"] for r in predict(network, LINKS, None)} == {None}
