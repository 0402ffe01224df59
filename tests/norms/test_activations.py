"""Norms that are activations too: which activation follows which norm, and that it goes."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from normlab.config import ConfigError
from normlab.config.model import CifarResNetConfig
from normlab.config.norm import GroupNormConfig
from normlab.models import build_model, on_meta
from normlab.norms import check_norms, convert_norms
from normlab.norms.activation_norms import FilterResponseNorm, FilterResponseNormTLU
from normlab.norms.activations import find_activations
from normlab.norms.convert import norm_layers
from tests.norms.configs import ACTIVATING, config, in_groups

IMAGES = (2, 3, 16, 16)


class Relus(TorchDispatchMode):
    """Counts the ReLUs that are computed inside it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
        return func(*args, **(kwargs or {}))


def relus_called(model, images):
    with Relus() as relus:
        model(images)
    return relus.count


@pytest.mark.parametrize("norm", ACTIVATING)
def test_in_a_cifar_resnet_the_relu_after_the_sum_stays(norm):
    model = build_model(CifarResNetConfig(), 10, seed=0)
    images = torch.randn(*IMAGES)
    before = {name: type(module) for name, module in model.named_modules()}
    names = list(model.state_dict())
    assert relus_called(model, images) == 7
    convert_norms(model, config(norm))
    assert relus_called(model, images) == 3
    activated = type(convert_norms(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), config(norm))[0])
    linear = type(convert_norms(nn.BatchNorm2d(8), config(norm)))
    assert activated is not linear
    for name, module in model.named_modules():
        if name.endswith("norm2"):
            assert type(module) is linear
        elif "norm" in name:
            assert type(module) is activated
        else:
            assert isinstance(module, before[name])
    assert [name for name in model.state_dict() if name in names] == [
        name for name in names if "running" not in name and "num_batches" not in name
    ]


@pytest.mark.parametrize("norm", ACTIVATING)
def test_the_converted_forward_is_the_model_with_each_pair_replaced(norm):
    """Oracle: a torchvision block, whose one ReLU serves three places, written out by hand."""
    torch.manual_seed(0)
    block = torchvision.models.resnet.Bottleneck(16, 4).double()
    net = convert_norms(nn.Sequential(block), config(norm, **in_groups(norm, 2)))
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)
    y = block.bn2(block.conv2(block.bn1(block.conv1(x))))
    expected = F.relu(block.bn3(block.conv3(y)) + x)
    for net_now in (net, copy.deepcopy(net), net.eval()):
        torch.testing.assert_close(net_now(x), expected, rtol=0, atol=0)
    assert type(block).__name__ == "Bottleneck"
    assert isinstance(block, torchvision.models.resnet.Bottleneck)


@pytest.mark.parametrize(
    ("name", "activated", "linear"),
    [
        ("resnet18", 9, 11),
        ("mobilenet_v2", 35, 17),
        ("densenet121", 121, 0),
        ("googlenet", 57, 0),
        ("efficientnet_b0", 33, 16),
        ("shufflenet_v2_x0_5", 37, 19),
    ],
)
def test_models_of_torchvision_have_so_many_norms_before_an_activation(name, activated, linear):
    """Counted in their definitions: block by block, those before a sum or a gate's product have none."""
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net = on_meta(lambda: torchvision.models.get_model(name, weights=None, **options))
    convert_norms(net, config("frn"))
    kinds = [type(module) for module in net.modules()]
    assert (kinds.count(FilterResponseNormTLU), kinds.count(FilterResponseNorm)) == (activated, linear)
    assert net(torch.zeros(2, 3, 64, 64, device="meta")).shape == (2, 1000)


class Functional(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.norm, self.after = nn.BatchNorm2d(8), after

    def forward(self, x):
        return self.after(self.norm(x))


@pytest.mark.parametrize(
    ("after", "label"),
    [
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (lambda y: y.relu_(), "relu_"),
        (lambda y: F.leaky_relu(y, 0.1), "leaky_relu"),
        (torch.sigmoid, None),
        (lambda y: y + 1, None),
        (lambda y: F.relu(y + 1), None),
    ],
    ids=["F", "torch", "method", "leaky", "sigmoid", "none", "sum"],
)
def test_activations_that_are_calls_are_found_and_taken_out(after, label):
    net = Functional(after)
    assert find_activations(net, norm_layers(net)).of_norm == {"norm": label}
    report = []
    assert convert_norms(net, config("frn"), report=report) is net
    assert report[0].was == "BatchNorm2d" + (f" + {label}" if label else "")
    assert report[0].now == ("FilterResponseNormTLU" if label else "FilterResponseNorm")
    x = torch.randn(2, 8, 3, 3)
    expected = net.norm(x) if label else after(net.norm(x))
    torch.testing.assert_close(net(x), expected)


def test_a_module_of_its_own_becomes_identity_and_one_that_serves_others_stays_for_them():
    relu, own = nn.ReLU(), nn.ReLU6()
    net = nn.Sequential(nn.BatchNorm2d(8), relu, nn.Conv2d(8, 8, 1), relu, nn.BatchNorm2d(8), nn.Identity(), own)
    convert_norms(net, config("frn"))
    assert type(net[6]) is nn.Identity
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(net(x), net[4](F.relu(net[2](net[0](x)))))


class Sliced(nn.Module):
    """As CifarFcnTrunk: parts of a Sequential one after the other, and a call of its own."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        return F.relu(self.parts[2:](self.parts[:2](x)))


def test_parts_of_a_sequential():
    net = Sliced()
    convert_norms(net, config("frn"))
    x = torch.randn(2, 8, 3, 3)
    assert type(net.parts[1]) is nn.Identity
    torch.testing.assert_close(net(x), net.parts[3](net.parts[2](net.parts[0](x))))
    assert {type(layer) for layer in net.parts[::3]} == {FilterResponseNormTLU}


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.norm(x)
        return F.relu(y) + y


class ByValue(Both):
    def forward(self, x):
        return F.relu(self.norm(x)) if x.sum() > 0 else x


class Unused(Both):
    def forward(self, x):
        return x


class Twice(Both):
    def forward(self, x):
        return self.norm(F.relu(self.norm(x)))


class InEval(Both):
    def forward(self, x):
        y = self.norm(x)
        return y if self.training else F.relu(y)


class ByFlag(Both):
    def forward(self, x):
        y = F.relu(self.norm(x))
        return F.relu(y + 1) if self.training else y


@pytest.mark.parametrize("norm", ACTIVATING)
def test_an_activation_of_the_eval_mode_alone_is_refused(norm):
    with pytest.raises(ConfigError, match="forward of InEval uses its activations differently"):
        convert_norms(InEval().eval(), config(norm))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Both, "layer norm .BatchNorm2d. gives its output to an activation and to something else"),
        (ByValue, "ByValue cannot be traced by torch.fx"),
        (Unused, "layer norm .BatchNorm2d. is not reached"),
        (Twice, "layer norm .BatchNorm2d. is followed by different things"),
        (ByFlag, "forward of ByFlag uses its activations differently"),
    ],
)
@pytest.mark.parametrize("norm", ACTIVATING)
def test_what_cannot_be_known_is_refused_by_name_and_nothing_is_changed(model, words, norm):
    net = model()
    first = net.norm
    for refused in (
        lambda: convert_norms(net, config(norm)),
        lambda: check_norms(net, (8, 4, 4), 2, 1, config(norm)),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            refused()
        assert "\n" not in str(caught.value)
        assert "choose a norm that replaces no activation, or another model" in str(caught.value)
    assert net.norm is first
    assert type(net) is model
    assert net.training
    convert_norms(net, GroupNormConfig())  # others do not ask
