"""Ghost batches, batch renormalization and the mixtures: running statistics, schedules, virtual ranks."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from normlab.config import ConfigError
from normlab.config.norm import GhostBatchNormConfig
from normlab.norms import check_norms, convert_norms
from tests.norms.configs import OF_BATCH, OF_RANK, config, without_bias
from tests.norms.definitions import RUNNING, running_moments

EXACT = {"rtol": 1e-12, "atol": 1e-12}
C = 5


def batch_norm(bias=True, **settings):
    torch.manual_seed(1)
    layer = nn.BatchNorm2d(C, dtype=torch.float64, **settings)
    if not bias:
        without_bias(layer)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 2)
    return layer


def batch(samples, seed=2):
    torch.manual_seed(seed)
    x = torch.randn(samples, C, 3, 4, dtype=torch.float64) * 3 + torch.arange(samples).view(-1, 1, 1, 1)
    return x, torch.randn_like(x)


def step(layer, x, dy):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad


@pytest.mark.parametrize("norm", OF_RANK)
@pytest.mark.parametrize("virtual_ranks", [2, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}], ids=str
)
def test_each_virtual_rank_is_normalised_as_a_rank_by_itself(norm, virtual_ranks, settings):
    layer = batch_norm(**settings)
    virtual = convert_norms(copy.deepcopy(layer), config(norm, momentum=0.3), virtual_ranks)
    real = [convert_norms(copy.deepcopy(layer), config(norm, momentum=0.3)) for _ in range(virtual_ranks)]
    x, dy = batch(4 * virtual_ranks)
    for _ in range(3):  # batch_renorm's limits widen from one to the next
        y, dx = step(virtual, x, dy)
        for rank, alone in enumerate(real):
            expected_y, expected_dx = step(alone, x[rank::virtual_ranks], dy[rank::virtual_ranks])
            torch.testing.assert_close(y[rank::virtual_ranks], expected_y, **EXACT)
            torch.testing.assert_close(dx[rank::virtual_ranks], expected_dx, **EXACT)
    for name, parameter in virtual.named_parameters():
        torch.testing.assert_close(parameter.grad, sum(alone.get_parameter(name).grad for alone in real), **EXACT)
    for name, buffer in virtual.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, torch.stack([alone.get_buffer(name) for alone in real]), **EXACT)
    if virtual.running_mean is not None:
        torch.testing.assert_close(virtual.eval()(x[:5]), real[0].eval()(x[:5]), **EXACT)


@pytest.mark.parametrize("norm", OF_BATCH)
@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_move_once_per_batch_as_defined(norm, momentum):
    layer = batch_norm()
    layer.momentum = momentum  # None: the mean over all batches
    layer = convert_norms(layer, config(norm))
    running = np.array([layer.running_mean.numpy(), layer.running_var.numpy()])
    for seed in range(3):
        x, _ = batch(4, seed)
        layer(x)
        share = momentum or 1 / (1 + seed)
        running = (1 - share) * running + share * RUNNING.get(norm, running_moments)(x.numpy())
    torch.testing.assert_close(layer.running_mean, torch.from_numpy(running[0]), **EXACT)
    torch.testing.assert_close(layer.running_var, torch.from_numpy(running[1]), **EXACT)
    assert layer.num_batches_tracked == 3


def test_a_ghost_batch_of_the_whole_batch_is_batch_norm():
    bn, layer = batch_norm(), convert_norms(batch_norm(), config("ghost_bn", ghost_batch_size=4))
    for ours, theirs in zip(step(layer, *batch(4)), step(bn, *batch(4)), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(layer.state_dict(), bn.state_dict(), **EXACT)


def test_a_ghost_batch_has_to_divide_the_batch():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ConfigError) as caught:
        check_norms(net, (3, 4, 4), 12, 1, GhostBatchNormConfig())
    assert str(caught.value) == (
        "norm.ghost_batch_size=8 does not divide batch_size=12; choose one of [1, 2, 3, 4, 6, 12]."
    )
    check_norms(net, (3, 4, 4), 16, 2, GhostBatchNormConfig())
    with pytest.raises(ConfigError, match=r"one value per channel of a ghost batch.*larger norm.ghost_batch_size"):
        check_norms(net, (3, 1, 1), 12, 1, GhostBatchNormConfig(ghost_batch_size=1))
    with pytest.raises(ValueError, match="12 samples on 2 virtual ranks cannot be split into parts of 4"):
        convert_norms(batch_norm(), config("ghost_bn", ghost_batch_size=4), 2)(batch(12)[0])


# --- batch renormalization ------------------------------------------------------------------------------


def test_the_limits_of_batch_renorm_widen_with_the_batches():
    layer = convert_norms(batch_norm(), config("batch_renorm", bn_batches=2, d_max_batches=4, r_max_batches=6))
    limits = [[float(limit) for limit in layer.limits(torch.tensor(batches))] for batches in range(9)]
    r, d = zip(*limits, strict=True)
    assert r == pytest.approx([1, 1, 1.4, 1.8, 2.2, 2.6, 3, 3, 3])
    assert d == pytest.approx([0, 0, 5 / 3, 10 / 3, 5, 5, 5, 5, 5])


def test_batch_renorm_is_batch_norm_at_first():
    bn, layer = batch_norm(), convert_norms(batch_norm(), config("batch_renorm", bn_batches=3))
    for seed in range(3):
        for ours, theirs in zip(step(layer, *batch(4, seed)), step(bn, *batch(4, seed)), strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)
    assert not torch.allclose(layer(batch(4, 3)[0]), bn(batch(4, 3)[0]))


def test_batch_renorm_within_its_limits_trains_with_what_it_evaluates_with():
    settings = {"r_max": 1e6, "d_max": 1e6, "d_max_batches": 0, "r_max_batches": 0}
    layer = convert_norms(batch_norm(), config("batch_renorm", **settings))
    x, _ = batch(4)
    expected = copy.deepcopy(layer).eval()(x)  # the statistics of the batches before
    torch.testing.assert_close(layer(x), expected, **EXACT)


def test_the_state_of_batch_renorm_is_batch_norms():
    bn, layer = batch_norm(), convert_norms(batch_norm(), config("batch_renorm"))
    assert layer.state_dict().keys() == bn.state_dict().keys()


# --- mixtures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "peer"),
    [((50.0, 0.0, 0.0), "in"), ((0.0, 50.0, 0.0), "ln"), ((0.0, 0.0, 50.0), "bn")],
    ids=["in", "ln", "bn"],
)
def test_the_extremes_of_the_switch(logits, peer):
    layer, other = (convert_norms(batch_norm(), config(norm)) for norm in ("switchable", peer))
    for weight in (layer.mean_weight, layer.var_weight):
        weight.data = torch.tensor(logits, dtype=torch.float64)
    x, dy = batch(4)
    for train in (True, False):
        for ours, theirs in zip(step(layer.train(train), x, dy), step(other.train(train), x, dy), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("gate", "peer"), [(1.0, "bn"), (0.0, "in")])
def test_the_extremes_of_the_gate(gate, peer):
    layer, other = (convert_norms(batch_norm(), config(norm)) for norm in ("batch_instance", peer))
    assert (layer.gate == 1).all()
    layer.gate.data.fill_(gate)
    for ours, theirs in zip(step(layer, *batch(4)), step(other, *batch(4)), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_gate_takes_the_steps_of_one_that_is_clipped_after_each(optimizer):
    """Ten steps that push it over both ends and back: the paper's procedure on one side."""
    ours = convert_norms(batch_norm(), config("batch_instance"))
    theirs = copy.deepcopy(ours)
    steps = [optimizer(layer.parameters(), lr=0.3) for layer in (ours, theirs)]
    gates = []
    for seed in range(10):
        x, dy = batch(4, seed)
        for layer, optim in zip((ours, theirs), steps, strict=True):
            optim.zero_grad()
            layer(x).backward(dy * (-1) ** (seed // 3))
            optim.step()
        gates.append(theirs.gate.detach().clone())
        theirs.gate.data.clamp_(0, 1)
        torch.testing.assert_close(ours.gate.detach().clamp(0, 1), theirs.gate.detach(), rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(ours).eval()(x), copy.deepcopy(theirs).eval()(x), **EXACT)
    assert torch.stack(gates).min() < 0
    assert torch.stack(gates).max() > 1


def test_a_gated_layer_may_stand_at_several_places():
    layer = convert_norms(batch_norm(), config("batch_instance"))
    layer.gate.data.fill_(1.5)
    x, _ = batch(4)
    layer(layer(x.requires_grad_())).sum().backward()
    assert (layer.gate == 1).all()
    assert x.grad.isfinite().all()
