"""Any model that torchvision or timm ships takes any norm."""

import pytest
import torch
import torchvision
from torch import nn

from normlab.config import ConfigError
from normlab.config.model import TimmConfig, TorchvisionConfig
from normlab.config.norm import GroupNormConfig, Nondivisible
from normlab.models import build_model, on_meta
from normlab.models.by_name import torchvision_model, without_dropout
from normlab.norms import NORMS, VirtualBatchNorm, check_norms, convert_norms, format_report
from normlab.norms.replace import BATCH_NORMS
from normlab.norms.running_stats import precise_statistics, tracking_layers
from tests.norms import configs
from tests.norms.configs import ACTIVATING

CLASSIFICATION = torchvision.models.list_models(module=torchvision.models)
SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
WITHOUT_BATCH_NORM = ("alexnet", "convnext", "squeezenet", "swin", "vit_")
FAMILIES = {  # the smallest of each, and the images that suit it
    "mnasnet0_5": 33,
    "mobilenet_v2": 33,
    "mobilenet_v3_small": 33,
    "regnet_y_400mf": 33,
    "resnet18": 33,
    "shufflenet_v2_x0_5": 33,
    "lraspp_mobilenet_v3_large": 33,
}
SLOWER_FAMILIES = {
    "densenet121": 65,
    "efficientnet_b0": 33,
    "efficientnet_v2_s": 33,
    "fcn_resnet50": 33,
    "googlenet": 65,
    "inception_v3": 107,
    "maxvit_t": 224,
    "regnet_x_400mf": 33,
    "resnext50_32x4d": 33,
    "vgg11_bn": 64,
    "wide_resnet50_2": 33,
}


def torchvision_net(name):
    if name in SEGMENTATION:
        build = torchvision.models.get_model
        return without_dropout(build(name, weights=None, weights_backbone=None, num_classes=5))
    return torchvision_model(TorchvisionConfig(name=name), 5)


def config(norm):
    nearest = {"nondivisible": Nondivisible.nearest} if configs.in_groups(norm, 8) else {}
    return configs.config(norm, **nearest)


def assert_all_converted(net, norm, report):
    batch_norms = [row for row in report if row.was.startswith("BatchNorm")]
    modules = dict(net.named_modules())
    assert all(type(modules[row.name]).__name__ == row.now for row in batch_norms)
    assert all(row.now == "left alone" for row in report if row not in batch_norms)
    left = [layer for layer in modules.values() if isinstance(layer, BATCH_NORMS)]
    assert len(left) == (len(batch_norms) if norm == "bn" else 0)
    assert batch_norms


@pytest.mark.parametrize("name", CLASSIFICATION + SEGMENTATION)
def test_every_model_of_torchvision_converts_or_says_that_it_has_no_batch_norm(name):
    net, report = on_meta(lambda: torchvision_net(name)), []
    parameters = [id(p) for p in net.parameters()]
    if name.startswith(WITHOUT_BATCH_NORM) or (name.startswith("vgg") and not name.endswith("_bn")):
        with pytest.raises(ConfigError, match="has no BatchNorm layer"):
            convert_norms(net, config("gn"))
        return
    convert_norms(net, config("gn"), report=report)
    assert_all_converted(net, "gn", report)
    assert [id(p) for p in net.parameters()] == parameters


def train_once(net, size):
    net.train()
    out = net(torch.randn(4, 3, size, size))
    logits = out["out"] if isinstance(out, dict) else out
    logits.square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


FIVE = ["bn", "syncbn", "gn", "ln", "in"]
OTHERS = [norm for norm in NORMS if norm not in FIVE]


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, norm) for name in FAMILIES for norm in FIVE] + [("resnet18", norm) for norm in OTHERS],
)
def test_a_small_model_of_each_family_trains(name, norm):
    train_once(convert_norms(torchvision_net(name), config(norm)), FAMILIES[name])


@pytest.mark.parametrize("norm", OTHERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_model_of_each_family_has_a_forward_with_every_other_norm(name, norm):
    net, report = on_meta(lambda: torchvision_net(name)), []
    batch_norms = [key for key, layer in net.named_modules() if isinstance(layer, BATCH_NORMS)]
    convert_norms(net, config(norm), report=report)
    assert_all_converted(net, norm, report)
    assert len(batch_norms) == sum(row.was.startswith("BatchNorm") for row in report)
    net.train()(torch.zeros(4, 3, FAMILIES[name], FAMILIES[name], device="meta"))


@pytest.mark.full
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FAMILIES | SLOWER_FAMILIES)
def test_every_family_trains_with_every_norm(name, norm):
    train_once(convert_norms(torchvision_net(name), config(norm)), (FAMILIES | SLOWER_FAMILIES)[name])


def test_a_pooled_branch_has_one_value_per_instance_and_that_is_refused():
    net = on_meta(lambda: torchvision_net("deeplabv3_resnet50"))
    with pytest.raises(ConfigError, match=r"norm=in .*classifier\.0\.convs\.4\.2 one value per channel"):
        check_norms(net, (3, 65, 65), 4, 1, config("in"))


def test_a_model_that_cannot_take_the_images_is_refused():
    net = on_meta(lambda: torchvision_net("inception_v3"))
    with pytest.raises(ConfigError, match=r"Inception3 cannot take images of 32x32 \(.*larger images") as caught:
        check_norms(net, (3, 32, 32), 4, 1, config("bn"))
    assert "\n" not in str(caught.value)


def test_the_report_is_a_table_of_what_was_done():
    report = []
    net = nn.Sequential(nn.BatchNorm2d(16), nn.LayerNorm(8), nn.ReLU(), nn.BatchNorm1d(12))
    convert_norms(net, GroupNormConfig(num_groups=4), report=report)
    assert format_report(report) == (
        "| layer | from | to | channels | groups |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| 0 | BatchNorm2d | GroupNorm | 16 | 4 |\n"
        "| 1 | LayerNorm | left alone |  |  |\n"
        "| 3 | BatchNorm1d | GroupNorm | 12 | 4 |\n"
    )


# --- timm -----------------------------------------------------------------------------------------------


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


def fused(timm, **options):
    torch.manual_seed(0)
    layer = timm.layers.BatchNormAct2d(6, act_layer=nn.PReLU, inplace=False, **options)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("virtual_ranks", [1, 2])
def test_timms_fused_layer_keeps_its_activation_and_its_names(timm, norm, virtual_ranks):
    layer = fused(timm)
    names = set(layer.state_dict())
    cfg = configs.config(norm, **configs.in_groups(norm, 3))
    plain = nn.BatchNorm2d(6)
    plain.weight, plain.bias = layer.weight, layer.bias
    activate = nn.Identity() if norm in ACTIVATING else layer.act  # part of the norm
    expected = convert_norms(nn.Sequential(plain, nn.ReLU()), cfg, virtual_ranks)[0]
    report = []
    net = convert_norms(nn.Sequential(layer), cfg, virtual_ranks, report)
    x = torch.randn(4, 6, 3, 3)
    torch.testing.assert_close(net(x), activate(expected(x)))
    torch.testing.assert_close(net.eval()(x), activate(expected.eval()(x)))
    if norm in FIVE:
        assert {key.removeprefix("0.") for key in net.state_dict()} <= names
    assert {"0.weight", "0.bias"} <= set(net.state_dict())
    assert ("0.act.weight" in net.state_dict()) == (norm not in ACTIVATING)
    assert report[0].was == "BatchNormAct2d + PReLU"
    if norm != "bn":
        with pytest.raises(ConfigError, match=r"no BatchNorm|convert that layer before"):
            convert_norms(net, cfg)  # a second time


@pytest.mark.parametrize("virtual_ranks", [1, 2])
def test_precise_statistics_see_timms_activation(timm, virtual_ranks):
    from normlab.distributed import Ranks

    last = nn.BatchNorm2d(6)
    net = convert_norms(nn.Sequential(fused(timm), last), config("bn"), virtual_ranks)
    x = torch.randn(8, 6, 3, 3)
    alone = Ranks(0, 1, 1, torch.device("cpu"))
    mean_N, _ = precise_statistics(net, [x], 8, alone, autocast=torch.autocast("cpu", enabled=False))
    act = net[0].act
    y = act(nn.functional.batch_norm(x, None, None, net[0].weight, net[0].bias, True))
    torch.testing.assert_close(mean_N[6:].float(), y.detach().mean((0, 2, 3)))


def test_what_timm_fuses_beyond_that_is_refused_by_name(timm):
    net = nn.Sequential(timm.layers.SyncBatchNormAct(4))
    with pytest.raises(ConfigError, match=r"layer 0 \(SyncBatchNormAct\).*convert that layer before"):
        convert_norms(net, config("gn"))


TRAINED = ["resnet10t", "mobilenetv3_small_050", "efficientvit_m0", "ghostnet_050"]


@pytest.mark.parametrize(
    ("norm", "name"),
    [(norm, name) for norm in ("syncbn", "gn") for name in TRAINED]
    + [("evonorm_s0", name) for name in TRAINED if name != "efficientvit_m0"],
)
def test_models_of_timm_train(timm, norm, name):
    net = build_model(TimmConfig(name=name), 5, seed=0)
    report = []
    convert_norms(net, config(norm), report=report)
    assert_all_converted(net, norm, report)
    train_once(net, 224 if name == "efficientvit_m0" else 64)


def test_a_model_that_cannot_be_traced_is_refused_by_norms_that_replace_the_activation(timm):
    net = build_model(TimmConfig(name="efficientvit_m0"), 5, seed=0)
    with pytest.raises(ConfigError, match=r"EfficientVitMsra cannot be traced .*choose a norm that replaces no"):
        convert_norms(net, config("evonorm_s0"))


def test_virtual_ranks_in_a_model_of_timm(timm):
    net = convert_norms(build_model(TimmConfig(name="resnet10t"), 5, seed=0), config("bn"), 2)
    assert {type(layer) for layer in tracking_layers(net).values()} == {VirtualBatchNorm}
    train_once(net, 32)


@pytest.mark.full
def test_every_model_of_timm_converts_or_says_that_it_has_no_batch_norm(timm):
    converted = 0
    for name in timm.list_models():
        net, report = on_meta(lambda name=name: build_model(TimmConfig(name=name), 5, seed=0)), []
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in net.modules()):
            convert_norms(net, config("gn"), report=report)
            assert_all_converted(net, "gn", report)
            converted += 1
        else:
            with pytest.raises(ConfigError, match="has no BatchNorm layer"):
                convert_norms(net, config("gn"))
    assert converted > 600


def test_a_model_that_timm_does_not_have_names_near_ones(timm):
    with pytest.raises(ConfigError, match=r"model.name=resnet19 is not a model of timm; .*resnet18"):
        build_model(TimmConfig(name="resnet19"), 5, seed=0)
