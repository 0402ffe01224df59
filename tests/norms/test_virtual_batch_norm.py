"""VirtualBatchNorm. The oracle: torch's BatchNorm on each rank's samples, one after the other, in float64."""

import copy

import pytest
import torch
from torch import nn

from normlab.config import ConfigError
from normlab.config.norm import BatchNormConfig, SyncBatchNormConfig
from normlab.norms import SyncBatchNorm, VirtualBatchNorm, check_norms, convert_norms
from tests.norms.configs import without_bias

EXACT = {"rtol": 1e-12, "atol": 1e-12}
CHANNELS = 5
LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def batch_norm(dim=4, bias=True, **settings):
    torch.manual_seed(1)
    layer = LAYERS[dim](CHANNELS, dtype=torch.float64, **settings)
    if not bias:
        without_bias(layer)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 2)
    return layer


def batch(samples, dim=4, dtype=torch.float64):
    torch.manual_seed(2)
    shape = (samples, CHANNELS, *(3, 4, 2)[: dim - 2])
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2 + torch.arange(samples).view(-1, *[1] * (dim - 1))
    return x.to(dtype), torch.randn(shape, dtype=torch.float64).to(dtype)


def step(layer, x, dy):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(dy)
    return y.detach(), x.grad


def samples_of_groups(samples, virtual_ranks, size):
    """The samples of each sync group of contiguous virtual ranks; sample i is of rank i % virtual_ranks."""
    return [
        [i for i in range(samples) if i % virtual_ranks // size == group] for group in range(virtual_ranks // size)
    ]


def assert_equals_each_group_by_itself(layer, virtual_ranks, size=1, dim=4, layout=None, steps=1):
    x, dy = batch(3 * virtual_ranks, dim)
    if layout is not None:
        x, dy = x.to(memory_format=layout), dy.to(memory_format=layout)
    virtual = VirtualBatchNorm.from_batch_norm(copy.deepcopy(layer), virtual_ranks, size)
    groups = samples_of_groups(len(x), virtual_ranks, size)
    alone = [copy.deepcopy(layer) for _ in groups]
    for _ in range(steps):
        virtual.zero_grad()
        y, dx = step(virtual, x, dy)
        for real, samples in zip(alone, groups, strict=True):
            real.zero_grad()
            expected_y, expected_dx = step(real, x[samples], dy[samples])
            torch.testing.assert_close(y[samples], expected_y, **EXACT)
            torch.testing.assert_close(dx[samples], expected_dx, **EXACT)
    if layout is not None:
        assert y.is_contiguous(memory_format=layout)
    for name, parameter in virtual.named_parameters():
        torch.testing.assert_close(parameter.grad, sum(real.get_parameter(name).grad for real in alone), **EXACT)
    if virtual.running_mean is not None:
        assert virtual.num_batches_tracked == steps
        for name in ("running_mean", "running_var"):
            expected = torch.stack([real.get_buffer(name) for real in alone])
            rows_GC = virtual.get_buffer(name).view(-1, CHANNELS)  # (C,) where there is one
            torch.testing.assert_close(rows_GC, expected, **EXACT)
    virtual.eval()
    real = alone[0].eval()
    if layer.running_mean is not None:
        torch.testing.assert_close(virtual(x[:5]), real(x[:5]), **EXACT)


@pytest.mark.parametrize("dim", LAYERS)
@pytest.mark.parametrize(("virtual_ranks", "size"), [(1, 1), (2, 1), (8, 1), (4, 2), (6, 2), (6, 3)])
def test_each_group_is_normalised_by_itself(virtual_ranks, size, dim):
    assert_equals_each_group_by_itself(batch_norm(dim), virtual_ranks, size, dim)


@pytest.mark.parametrize("dim", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2])
def test_channels_last_is_kept(size, dim):
    assert_equals_each_group_by_itself(batch_norm(dim), 4, size, dim, LAYOUTS[dim])


@pytest.mark.parametrize(
    "settings",
    [{"momentum": None}, {"momentum": 0.6}, {"affine": False}, {"bias": False}, {"track_running_stats": False}],
    ids=str,
)
def test_each_setting_over_two_steps(settings):
    assert_equals_each_group_by_itself(batch_norm(**settings), 4, steps=2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_under_bfloat16_statistics_and_gradients_of_gamma_are_float32(layout):
    x, dy = (t.to(memory_format=layout) for t in batch(8, dtype=torch.bfloat16))
    layer = nn.BatchNorm2d(CHANNELS)
    virtual = VirtualBatchNorm.from_batch_norm(copy.deepcopy(layer), 4)
    y, dx = step(virtual, x, dy)
    assert (y.dtype, dx.dtype, virtual.running_var.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    for rank in range(4):
        real = copy.deepcopy(layer)
        expected_y, expected_dx = step(real, x[rank::4], dy[rank::4])
        torch.testing.assert_close(y[rank::4], expected_y, rtol=8e-3, atol=8e-3)
        torch.testing.assert_close(dx[rank::4], expected_dx, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(virtual.running_var[rank], real.running_var)


def test_a_view_does_where_samples_are_dealt_like_cards():
    """No copy of the activations: what a contiguous batch allocates is the output, as for BatchNorm."""
    x, _ = batch(16)
    with torch.profiler.profile(profile_memory=True) as profile:
        VirtualBatchNorm(CHANNELS, 8, dtype=torch.float64)(x)
    allocated = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert sum(size >= x.nbytes for size in allocated) == 1


def test_constructed_and_converted_layers_have_the_same_state():
    made, converted = VirtualBatchNorm(3, 4, 2), VirtualBatchNorm.from_batch_norm(nn.BatchNorm2d(3), 4, 2)
    assert made.running_mean.shape == (2, 3)
    converted.load_state_dict(made.state_dict())
    assert "virtual_ranks=4, sync_group_size=2" in repr(made)


def test_statistics_of_any_source_stand_in_at_evaluation():
    x, _ = batch(5)
    virtual, plain = VirtualBatchNorm(CHANNELS, 8, dtype=torch.float64).eval(), batch_norm().eval()
    stand_in = {name: plain.state_dict()[name] for name in plain.state_dict()}
    torch.testing.assert_close(torch.func.functional_call(virtual, stand_in, (x,)), plain(x))


def test_samples_that_the_ranks_do_not_divide_and_single_values_are_errors():
    with pytest.raises(ValueError, match="7 samples cannot be split over 2 virtual ranks"):
        VirtualBatchNorm(3, 2)(torch.randn(7, 3, 4, 4))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        VirtualBatchNorm(3, 2)(torch.randn(2, 3, 1, 1))
    with pytest.raises(ValueError, match="at least 2D"):
        VirtualBatchNorm(3, 2)(torch.randn(4))


@pytest.mark.parametrize(
    ("norm", "kind", "groups"),
    [
        (BatchNormConfig(eps=1e-3, momentum=0.3), VirtualBatchNorm, 4),
        (SyncBatchNormConfig(eps=1e-3, momentum=0.3), SyncBatchNorm, 1),
        (SyncBatchNormConfig(eps=1e-3, momentum=0.3, sync_group_size=4), SyncBatchNorm, 1),
        (SyncBatchNormConfig(eps=1e-3, momentum=0.3, sync_group_size=2), VirtualBatchNorm, 2),
        (SyncBatchNormConfig(eps=1e-3, momentum=0.3, sync_group_size=1), VirtualBatchNorm, 4),
    ],
)
def test_a_conversion_knows_of_virtual_ranks(norm, kind, groups):
    layer = convert_norms(nn.BatchNorm2d(3).eval(), norm, virtual_ranks=4)
    assert type(layer) is kind
    assert (layer.eps, layer.momentum, layer.training) == (1e-3, 0.3, False)
    assert layer.running_mean.numel() == 3 * groups


@pytest.mark.parametrize(
    ("size", "ranks", "virtual_ranks", "words"),
    [
        (3, 12, 4, ["sync_group_size=3", "virtual_ranks=4", "within a process", "[1, 2, 4, 12]"]),
        (6, 12, 4, ["sync_group_size=6", "virtual_ranks=4", "[1, 2, 4, 12]"]),
        (5, 12, 4, ["sync_group_size=5", "does not divide the 12 ranks", "[1, 2, 4, 12]"]),
    ],
)
def test_a_sync_group_is_within_a_process_or_of_whole_ones(size, ranks, virtual_ranks, words):
    net, norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), SyncBatchNormConfig(sync_group_size=size)
    with pytest.raises(ConfigError) as caught:
        check_norms(net, (3, 4, 4), 2, ranks, norm, virtual_ranks)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    for fitting in (1, 2, 4, 12):
        check_norms(net, (3, 4, 4), 2, ranks, SyncBatchNormConfig(sync_group_size=fitting), virtual_ranks)
