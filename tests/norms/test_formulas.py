"""Each norm against its formula, written out with numpy in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab.config.norm import (
    BatchNormConfig,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    SyncBatchNormConfig,
)
from normlab.norms import convert_norms

B, C, H, W = 3, 6, 4, 5
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def example(norm):
    """A norm layer with affine weights unlike 1 and 0, and its input."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(C, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return convert_norms(layer, norm), torch.randn(B, C, H, W, dtype=torch.float64) * 3 + 2


def by_hand(x_BCHW, layer, eps, axes, shape=(B, C, H, W)):
    x = x_BCHW.numpy().reshape(shape)
    mean = x.mean(axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axes, keepdims=True)
    xhat = ((x - mean) / np.sqrt(variance + eps)).reshape(B, C, H, W)
    gamma, beta = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return torch.from_numpy(np.einsum("bchw,c->bchw", xhat, gamma) + beta[:, None, None])


@pytest.mark.parametrize(
    ("norm", "axes", "shape"),
    [
        (BatchNormConfig(eps=1e-3), (0, 2, 3), (B, C, H, W)),
        (SyncBatchNormConfig(eps=1e-3), (0, 2, 3), (B, C, H, W)),
        (GroupNormConfig(eps=1e-3, num_groups=3), (2, 3, 4), (B, 3, C // 3, H, W)),
        (GroupNormConfig(eps=1e-3, channels_per_group=3), (2, 3, 4), (B, 2, 3, H, W)),
        (LayerNormConfig(eps=1e-3), (1, 2, 3), (B, C, H, W)),
        (InstanceNormConfig(eps=1e-3), (2, 3), (B, C, H, W)),
    ],
    ids=["bn", "syncbn", "gn-groups", "gn-channels", "ln", "in"],
)
def test_a_norm_equals_its_formula(norm, axes, shape):
    layer, x_BCHW = example(norm)
    expected = by_hand(x_BCHW, layer, 1e-3, axes, shape)
    torch.testing.assert_close(layer(x_BCHW), expected, **EXACT)
    if norm.name in ("gn", "ln", "in"):  # train and eval are identical, and samples do not meet
        torch.testing.assert_close(layer.eval()(x_BCHW), expected, rtol=0, atol=1e-14)
        torch.testing.assert_close(layer(x_BCHW[1:2]), expected[1:2], **EXACT)


@pytest.mark.parametrize("norm", [BatchNormConfig(momentum=0.3), SyncBatchNormConfig(momentum=0.3)])
def test_batch_norm_keeps_the_unbiased_variance_and_evaluates_with_it(norm):
    layer, x_BCHW = example(norm)
    layer(x_BCHW)
    x = x_BCHW.numpy()
    mean, variance = 0.3 * x.mean((0, 2, 3)), 0.7 + 0.3 * x.var((0, 2, 3), ddof=1)
    torch.testing.assert_close(layer.running_mean, torch.from_numpy(mean), **EXACT)
    torch.testing.assert_close(layer.running_var, torch.from_numpy(variance), **EXACT)
    xhat = (x - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    expected = np.einsum("bchw,c->bchw", xhat, layer.weight.detach()) + layer.bias.detach().numpy()[:, None, None]
    torch.testing.assert_close(layer.eval()(x_BCHW), torch.from_numpy(expected), **EXACT)


@pytest.mark.parametrize(
    ("groups", "same"), [(1, LayerNormConfig()), (C, InstanceNormConfig())], ids=["1-is-ln", "C-is-in"]
)
def test_the_extremes_of_group_norm(groups, same):
    layer, x_BCHW = example(GroupNormConfig(num_groups=groups))
    other, _ = example(same)
    torch.testing.assert_close(layer(x_BCHW), other(x_BCHW), **EXACT)


@pytest.mark.parametrize("norm", [BatchNormConfig(), SyncBatchNormConfig()], ids=["bn", "syncbn"])
def test_the_worked_example_number_by_number(norm):
    torch.manual_seed(42)
    x_BCHW = torch.randn((1, 2, 2, 2))
    layer = convert_norms(nn.BatchNorm2d(2), norm)
    layer.running_mean.fill_(2)
    y_BCHW = layer(x_BCHW)

    def printed(*numbers):
        return torch.tensor(numbers)

    def close(actual, expected):
        torch.testing.assert_close(actual.detach().flatten(), expected, rtol=0, atol=5.1e-5)

    close(x_BCHW, printed(0.3367, 0.1288, 0.2345, 0.2303, -1.1229, -0.1863, 2.2082, -0.6380))
    close(x_BCHW.mean((0, 2, 3)), printed(0.2326, 0.0653))
    biased = x_BCHW.var((0, 2, 3), correction=0)  # this one normalises
    unbiased = x_BCHW.var((0, 2, 3), correction=1)  # this one enters running_var
    close(biased, printed(0.0054, 1.6404))
    close(unbiased, printed(0.0072, 2.1872))
    close(y_BCHW, printed(1.4150, -1.4102, 0.0257, -0.0305, -0.9276, -0.1964, 1.6731, -0.5491))
    close(layer.running_mean, printed(1.8233, 1.8065))
    close(layer.running_var, printed(0.9007, 1.1187))
    column = (1, 2, 1, 1)
    by_biased = (x_BCHW - x_BCHW.mean((0, 2, 3)).view(column)) / (biased.view(column) + 1e-5).sqrt()
    torch.testing.assert_close(y_BCHW, by_biased)
    torch.testing.assert_close(layer.running_var, 0.9 * torch.ones(2) + 0.1 * unbiased)
