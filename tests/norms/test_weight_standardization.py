"""Convolutions with standardised weights, against numpy on each filter and torch's convolution."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normlab.config import ConfigError
from normlab.config.model import CifarResNetConfig
from normlab.models import build_model
from normlab.norms import NORMS, check_norms, convert_norms
from normlab.norms.weight_standardization import StandardisedConv, StandardisedConv2d, standardise
from tests.norms.configs import config

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def standardised(net, norm="gn", **settings):
    return convert_norms(net, config(norm, weight_standardization=True, **settings))


def by_hand(weight):
    filters = weight.detach().numpy().reshape(len(weight), -1)
    mean, var = filters.mean(1, keepdims=True), filters.var(1, keepdims=True)
    return torch.from_numpy(((filters - mean) / np.sqrt(var + 1e-5)).reshape(weight.shape))


@pytest.mark.parametrize(
    ("kind", "norm", "function", "shape"),
    [
        (nn.Conv1d, nn.BatchNorm1d, F.conv1d, (2, 8, 9)),
        (nn.Conv2d, nn.BatchNorm2d, F.conv2d, (2, 8, 9, 7)),
        (nn.Conv3d, nn.BatchNorm3d, F.conv3d, (2, 8, 9, 7, 5)),
    ],
)
def test_a_convolution_equals_its_formula_in_train_and_eval(kind, norm, function, shape):
    settings = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
    net = nn.Sequential(kind(8, 16, 3, bias=False, **settings), norm(16)).double()
    weight = net[0].weight
    standardised(net)
    assert net[0].weight is weight
    x = torch.randn(shape, dtype=torch.float64)
    expected = function(x, by_hand(weight), **settings)
    torch.testing.assert_close(net[0](x), expected, **EXACT)
    torch.testing.assert_close(net.eval()[0](x), expected, **EXACT)


@pytest.mark.parametrize(
    "add",
    [lambda conv: conv.register_forward_hook(print), torch.nn.utils.spectral_norm],
    ids=["own", "spectral_norm"],
)
def test_a_convolution_with_hooks_is_refused_and_nothing_is_changed(add):
    net = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8))
    add(net[0])
    for refused in (
        lambda: standardised(net),
        lambda: check_norms(net, (4, 6, 6), 2, 1, config("gn", weight_standardization=True)),
    ):
        with pytest.raises(ConfigError, match=r"layer 0 \(Conv2d\) has hooks \(_forward"):
            refused()
    assert [type(layer) for layer in net] == [nn.Conv2d, nn.BatchNorm2d]


def test_its_gradient_is_that_of_finite_differences():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(standardise, weight)


def test_other_settings_of_a_convolution_carry_over():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", padding_mode="circular", bias=False), nn.BatchNorm2d(8))
    net.eval()
    plain = copy.deepcopy(net[0])
    standardised(net)
    plain.weight.data = standardise(plain.weight.data)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(net[0](x), plain(x))
    assert not net[0].training


@pytest.mark.parametrize("norm", NORMS)
def test_with_every_norm_it_keeps_names_and_trains(norm):
    net = build_model(CifarResNetConfig(), 5, seed=0).double()
    names = {name: parameter for name, parameter in net.named_parameters() if "conv" in name}
    standardised(net, norm)
    assert all(net.get_parameter(name) is parameter for name, parameter in names.items())
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert {type(layer) for layer in convolutions} == {StandardisedConv2d}
    net(torch.randn(4, 3, 16, 16, dtype=torch.float64)).mean().backward()
    gradient = net.conv.weight.grad
    assert gradient.abs().max() > 0
    # A filter's mean changes nothing, so its gradient has no part along it.
    assert gradient.sum((1, 2, 3)).abs().max() < 1e-10 * gradient.abs().sum((1, 2, 3)).max()
    again = standardised(build_model(CifarResNetConfig(), 5, seed=1).double(), norm)
    again.load_state_dict(net.state_dict())


def test_what_has_a_bias_or_a_single_weight_to_a_filter_stays():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1, groups=4, bias=False),  # of one weight, which would be 0
        nn.Conv2d(4, 4, 3),  # a gate, or predicts
        nn.ConvTranspose2d(4, 4, 2, bias=False),
    )
    standardised(net, "ln")
    assert [isinstance(layer, StandardisedConv) for layer in net] == [True, False, False, False, False]


def test_a_model_without_such_convolutions_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    for refused in (
        lambda: standardised(net),
        lambda: check_norms(net, (3, 8, 8), 2, 1, config("gn", weight_standardization=True)),
    ):
        with pytest.raises(ConfigError, match=r"norm.weight_standardization=true, but Sequential has no convol"):
            refused()
    assert type(net[1]) is nn.BatchNorm2d


def test_the_filters_order_of_axes_is_kept():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    standardised(net)
    assert standardise(net[0].weight).is_contiguous(memory_format=torch.channels_last)
    y = net(torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
