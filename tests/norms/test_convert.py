"""The one place where the norm is chosen: any model built with BatchNorm to any norm."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from normlab.config import ConfigError
from normlab.config.norm import (
    BatchNormConfig,
    BatchStatisticsConfig,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    Nondivisible,
    NormConfig,
    SyncBatchNormConfig,
)
from normlab.norms import NORMS, SyncBatchNorm, convert_norms, to_batch_norm
from normlab.norms.convert import norm_layers
from normlab.norms.docs import definition
from normlab.norms.frozen_batch_norm import FrozenBatchNorm
from normlab.norms.replace import set_up
from normlab.norms.sample_norms import ChannelAffine, GroupNorm, InstanceNorm2d
from tests.norms.configs import ACTIVATING, OF_BATCH, WITH_EPS, config, in_groups, without_bias

LAYERS = {
    "bn": nn.BatchNorm2d,
    "syncbn": SyncBatchNorm,
    "gn": GroupNorm,
    "ln": GroupNorm,
    "in": InstanceNorm2d,
    "none": ChannelAffine,
}
"""Of the norms that others are compared with."""
OTHERS = [name for name in NORMS if name != "frozen_bn"]
"""All but the one that makes buffers of gamma and beta."""


def test_every_norm_is_documented():
    for name, norm in NORMS.items():
        assert norm().made_by().__doc__
        assert name == "none" or "arXiv:" in definition(norm)


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ACTIVATING])
def test_resnet18_on_the_meta_device_keeps_names_and_parameters(name):
    with torch.device("meta"):
        net = torchvision.models.resnet18()
    before = {key: layer for key, layer in net.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    others = {key: layer for key, layer in net.named_modules() if not isinstance(layer, nn.BatchNorm2d)}
    parameters = dict(net.named_parameters())
    assert convert_norms(net, config(name, eps=1e-3)) is net
    assert all(net.get_parameter(key) is p for key, p in parameters.items())
    after = dict(net.named_modules())
    assert after.keys() == before.keys() | others.keys()
    assert all(after[key] is layer for key, layer in others.items())
    assert len(before) == 20
    for key, layer in before.items():
        assert type(after[key]) is LAYERS.get(name, type(after[key]))
        assert name not in WITH_EPS or after[key].eps == 1e-3
        groups = 1 if name == "ln" else in_groups(name, 8).get("num_groups")
        assert getattr(after[key], "num_groups", None) == groups
        if NORMS[name].needs_batch:
            assert after[key].running_var is layer.running_var
    assert net(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("name", OTHERS)
def test_affine_weights_dtype_gradient_and_training_flag_carry_over(name):
    net = nn.Sequential(nn.BatchNorm2d(8, dtype=torch.float64), nn.BatchNorm2d(8, affine=False)).eval()
    nn.init.normal_(net[0].weight).requires_grad_(False)
    weight, bias = net[0].weight, net[0].bias
    convert_norms(net, config(name))
    assert net[0].weight is weight
    assert net[0].bias is bias
    others = [p for key, p in net[0].named_parameters() if key not in ("weight", "bias")]
    assert all(p.dtype == torch.float64 and p.requires_grad for p in others)
    assert not net[0].training
    assert net[1].weight is None
    net = net.train()
    assert net[0](torch.randn(2, 8, 3, 3, dtype=torch.float64)).dtype == torch.float64
    assert net[1](torch.randn(2, 8, 3, 3)).isfinite().all()
    biasless = convert_norms(without_bias(nn.BatchNorm2d(8)), config(name))
    assert biasless.bias is None
    assert biasless(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)


@pytest.mark.parametrize("virtual_ranks", [1, 2])
@pytest.mark.parametrize("name", dict.fromkeys([*WITH_EPS, *OF_BATCH]))
def test_eps_and_momentum_are_each_layers_own_unless_they_are_set(name, virtual_ranks):
    def converted(**settings):
        first, second = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01), nn.BatchNorm2d(8, eps=1e-2, momentum=None)
        net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        return convert_norms(net, config(name, **({"eps": None} | settings)), virtual_ranks)

    own = converted()
    assert (own[0].eps, own[2].eps) == (1e-3, 1e-2)
    if name in WITH_EPS:
        given = converted(eps=0.5)
        assert (given[0].eps, given[2].eps) == (0.5, 0.5)
    if name in OF_BATCH:
        assert (own[0].momentum, own[2].momentum) == (0.01, None)
        given = converted(momentum=0.3)
        assert (given[0].momentum, given[2].momentum) == (0.3, 0.3)
        assert (given[0].eps, given[2].eps) == (1e-3, 1e-2)


def test_a_norm_of_the_batch_that_divides_by_nothing_has_no_eps_to_set():
    layer = set_up(nn.BatchNorm2d(8, eps=1e-3), BatchStatisticsConfig(name="mean_only", momentum=0.3))
    assert (layer.eps, layer.momentum) == (1e-3, 0.3)


def test_bn_is_the_models_own_so_pretrained_weights_keep_their_function():
    net = torchvision.models.mobilenet_v3_small(num_classes=3).eval()
    before = {name: (layer.eps, layer.momentum) for name, layer in norm_layers(net).items()}
    assert set(before.values()) == {(1e-3, 0.01)}
    x_BCHW = torch.randn(2, 3, 32, 32)
    expected = net(x_BCHW)
    for name in ("bn", "syncbn", "frozen_bn"):
        torch.testing.assert_close(
            convert_norms(copy.deepcopy(net), config(name))(x_BCHW), expected, rtol=0, atol=0
        )


def test_frn_has_the_papers_eps():
    assert convert_norms(nn.BatchNorm2d(8, eps=1e-3), config("frn")).eps == 1e-6


def test_frozen_bn_makes_buffers_of_what_the_batch_norm_has():
    net = nn.Sequential(nn.BatchNorm2d(8, eps=1e-3, dtype=torch.float64), nn.BatchNorm1d(8), nn.ReLU())
    state = {key: nn.init.uniform_(t) for key, t in net.state_dict().items() if "num_batches" not in key}
    convert_norms(net, config("frozen_bn"))
    assert [type(layer) for layer in net] == [FrozenBatchNorm, FrozenBatchNorm, nn.ReLU]
    assert (net[0].eps, net[1].eps) == (1e-3, 1e-5)
    assert not list(net.parameters())
    assert {key: t.data_ptr() for key, t in net.state_dict().items()} == {
        key: t.data_ptr() for key, t in state.items()
    }
    assert convert_norms(nn.BatchNorm2d(8), config("frozen_bn", eps=0.1)).eps == 0.1
    assert convert_norms(nn.BatchNorm2d(8, affine=False), config("frozen_bn"))(torch.zeros(1, 8, 1, 1)).sum() == 0
    with pytest.raises(ConfigError, match=r"norm=frozen_bn cannot freeze layer 0 .*no running statistics"):
        convert_norms(nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False)), config("frozen_bn"))


def test_a_model_may_be_a_norm_and_share_one_at_several_places():
    assert type(convert_norms(nn.BatchNorm1d(8), GroupNormConfig())) is GroupNorm
    shared = nn.BatchNorm2d(8)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": shared})
    convert_norms(net, LayerNormConfig())
    assert net["a"] is net["b"][0] is net["c"]
    assert type(net["a"]) is GroupNorm


@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_refuses_one_pixel(training):
    layer = convert_norms(nn.BatchNorm2d(4), InstanceNormConfig()).train(training)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        layer(torch.randn(2, 4, 1, 1))


def test_instance_norm_takes_one_and_three_axes_of_pixels():
    x_BCL = torch.randn(2, 8, 5)
    one = convert_norms(nn.BatchNorm1d(8), InstanceNormConfig())
    torch.testing.assert_close(one(x_BCL), nn.GroupNorm(8, 8)(x_BCL))
    x_BCDHW = torch.randn(2, 8, 2, 3, 4)
    three = convert_norms(nn.BatchNorm3d(8), InstanceNormConfig())
    torch.testing.assert_close(three(x_BCDHW), nn.GroupNorm(8, 8)(x_BCDHW))
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        one(torch.randn(8, 8))  # which torch's own would read as one sample of 8 channels


def test_other_norms_are_left_alone():
    net = nn.Sequential(nn.BatchNorm2d(8), nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.LayerNorm(8))
    rest = list(net)[1:]
    convert_norms(net, LayerNormConfig())
    assert all(a is b for a, b in zip(list(net)[1:], rest, strict=True))


class SplitBatchNorm(nn.BatchNorm2d):
    """Some library's, which does more than its base."""


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        (SplitBatchNorm(8), "SplitBatchNorm"),
        (nn.SyncBatchNorm(8), "SyncBatchNorm"),
        (nn.LazyBatchNorm2d(), "LazyBatchNorm2d"),
    ],
)
@pytest.mark.parametrize("name", OTHERS)
def test_another_subclass_is_refused_by_name_and_nothing_is_changed(layer, word, name):
    net = nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(layer))
    first = net[0]
    with pytest.raises(ConfigError, match=rf"layer 1\.0 \({word}\).*convert that layer before"):
        convert_norms(net, config(name, eps=0.5))
    assert net[0] is first
    assert first.eps == 1e-5


def test_hooks_are_refused_where_the_layer_is_replaced():
    net = nn.Sequential(nn.BatchNorm2d(8))
    net[0].register_forward_pre_hook(lambda *args: None)
    with pytest.raises(ConfigError, match=r"layer 0 \(BatchNorm2d\) has hooks \(_forward_pre_hooks\)"):
        convert_norms(net, GroupNormConfig())
    convert_norms(net, BatchNormConfig())


def test_a_model_without_batch_norm_and_an_unknown_norm_are_errors():
    with pytest.raises(ConfigError, match="Linear has no BatchNorm"):
        convert_norms(nn.Linear(2, 2), LayerNormConfig())
    with pytest.raises(ConfigError, match=r"norm=ghost is unknown; choose one of bn, syncbn, .*gn, ln, in, "):
        convert_norms(nn.BatchNorm2d(8), NormConfig(name="ghost"))


def test_sync_groups_need_their_ranks():
    with pytest.raises(ConfigError, match=r"norm.sync_group_size=2 does not divide the 1 rank"):
        convert_norms(nn.BatchNorm2d(8), SyncBatchNormConfig(sync_group_size=2))


@pytest.mark.parametrize(
    ("channels", "wish", "groups"),
    [
        (24, {"num_groups": 8}, 8),
        (20, {"num_groups": 8}, 10),  # 5 and 10 are its neighbours
        (18, {"num_groups": 8}, 9),
        (15, {"num_groups": 4}, 5),  # 3 and 5 are as near: the larger
        (4, {"num_groups": 32}, 4),
        (32, {"channels_per_group": 16}, 2),
        (24, {"channels_per_group": 16}, 2),  # 12 channels in each
        (8, {"channels_per_group": 16}, 1),
    ],
)
def test_the_nearest_divisor(channels, wish, groups):
    assert GroupNormConfig(**wish, nondivisible=Nondivisible.nearest).groups_of(channels) == groups
    if channels % next(iter(wish.values())):
        with pytest.raises(ConfigError):
            GroupNormConfig(**wish).groups_of(channels)


def test_groups_that_do_not_divide_name_the_layer_its_channels_and_the_choices():
    net = nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(nn.BatchNorm2d(12)))
    with pytest.raises(ConfigError) as caught:
        convert_norms(net, GroupNormConfig(num_groups=8))
    assert str(caught.value) == (
        "norm.num_groups=8 does not divide the 12 channels of layer 1.0; choose one of [1, 2, 3, 4, 6, 12], "
        "or set norm.nondivisible=nearest (here 6)."
    )
    assert type(net[0]) is nn.BatchNorm2d
    with pytest.raises(ConfigError, match=r"norm.channels_per_group=16 .* 8 channels of layer 0"):
        convert_norms(net, GroupNormConfig(channels_per_group=16))


# --- and back -------------------------------------------------------------------------------------------


def trained(net):
    """With running statistics that are no round numbers, other ones on each virtual rank."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and ("running" in name or name.endswith(("weight", "bias"))):
            nn.init.uniform_(tensor, 0.5, 2)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "virtual_ranks"),
    [("syncbn", 1), ("syncbn", 4), ("bn", 4), ("ghost_bn", 1), ("ghost_bn", 2), ("batch_renorm", 1)],
)
def test_a_model_goes_back_to_the_batch_norm_that_it_was_built_with(name, virtual_ranks):
    net = trained(convert_norms(torchvision.models.resnet18(num_classes=3), config(name), virtual_ranks))
    x = torch.randn(2, 3, 32, 32)
    before, parameters = net(x), dict(net.named_parameters())
    assert to_batch_norm(net) is net
    assert torch.equal(net(x), before)
    assert all(net.get_parameter(key) is p for key, p in parameters.items())
    assert not any(layer.training for layer in net.modules())
    plain = torchvision.models.resnet18(num_classes=3)
    assert [type(layer) for layer in net.modules()] == [type(layer) for layer in plain.modules()]
    plain.load_state_dict(net.state_dict())
    assert torch.equal(plain.eval()(x), before)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_torchs_sync_batch_norm_goes_back_to_any_kind_with_its_settings(kind):
    axes = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[kind]
    layer = kind(4, eps=1e-3, momentum=None, track_running_stats=False).requires_grad_(False).double()
    (back,) = to_batch_norm(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layer)), kind)
    assert type(back) is kind
    assert (back.eps, back.momentum, back.running_mean, back.training) == (1e-3, None, None, True)
    assert not back.weight.requires_grad
    x = torch.randn(5, 4, *[3] * axes, dtype=torch.float64)
    assert torch.equal(back(x), layer(x))


def test_other_norms_stay_and_a_layer_may_be_the_model():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8))
    assert [*to_batch_norm(net)] == [*net]
    assert type(to_batch_norm(SyncBatchNorm(3))) is nn.BatchNorm2d


def test_timms_activation_goes_back_too():
    timm_layers = pytest.importorskip("timm.layers")
    net = nn.Sequential(timm_layers.BatchNormAct2d(4, act_layer=nn.GELU))
    net = trained(convert_norms(net, SyncBatchNormConfig()))
    x = torch.randn(2, 4, 3, 3)
    before = net(x)
    for convert in (SyncBatchNorm.convert_sync_batchnorm, to_batch_norm, SyncBatchNorm.convert_sync_batchnorm):
        convert(net)
        assert torch.equal(net(x), before)
    assert type(to_batch_norm(net)[0]) is nn.BatchNorm2d


def test_a_layer_with_hooks_of_ones_own_does_not_go_back():
    net = nn.Sequential(SyncBatchNorm(3), SyncBatchNorm(3))
    net[1].register_forward_hook(print)
    with pytest.raises(ConfigError, match=r"layer 1 \(SyncBatchNorm\) has hooks \(_forward_hooks\)"):
        to_batch_norm(net)
    assert type(net[0]) is SyncBatchNorm
