import math

import pytest
import torch
from torch import nn

from normlab.config.optim import AdamWConfig, LrScaling, Schedule, SgdConfig
from normlab.config.section import SCHEMAS
from normlab.norms import NORMS, convert_norms
from normlab.optimizer import LearningRate, build_optimizer, scaled_lr
from tests.norms.configs import config
from tests.norms.definitions import OWN_PARAMETERS


@pytest.mark.parametrize(("scaling", "expected"), [("none", 0.1), ("linear", 0.2), ("sqrt", 0.1 * math.sqrt(2))])
def test_the_rate_follows_the_global_batch(scaling, expected):
    cfg = SgdConfig(lr=0.1, lr_reference_batch=128, lr_scaling=LrScaling[scaling])
    assert scaled_lr(cfg, 256) == pytest.approx(expected, rel=1e-15)


def rate(schedule, warmup_epochs=0.0):
    cfg = SgdConfig(lr=1.0, lr_scaling=LrScaling.none, schedule=schedule, warmup_epochs=warmup_epochs)
    return LearningRate.from_config(cfg, global_batch_size=64, steps_per_epoch=10, total_steps=100)


def test_cosine_falls_from_the_peak_to_zero():
    lr = rate(Schedule.cosine)
    assert [lr(0), lr(50), lr(25)] == pytest.approx([1.0, 0.5, (1 + math.sqrt(0.5)) / 2])
    assert lr(99) == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)


def test_step_is_a_tenth_after_each_milestone():
    lr = rate(Schedule.step)
    assert [lr(t) for t in (0, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_poly_falls_from_the_peak_to_zero_by_its_power():
    lr = rate(Schedule.poly)
    assert [lr(0), lr(50), lr(99)] == pytest.approx([1.0, 0.5**0.9, 0.01**0.9])


def test_the_head_has_a_rate_of_its_own():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = build_optimizer(model, SgdConfig(head_lr_factor=10.0), {"3.weight", "3.bias"}).param_groups
    factors = {id(p): g["lr_factor"] for g in groups for p in g["params"]}
    assert [factors[id(p)] for p in model.parameters()] == [1, 1, 1, 1, 10, 10]
    assert {g["lr_factor"] for g in build_optimizer(model, SgdConfig()).param_groups} == {1}


def test_warm_up_rises_linearly_to_the_peak_and_the_schedule_takes_what_is_left():
    lr = rate(Schedule.cosine, warmup_epochs=2)
    assert [lr(0), lr(9), lr(19), lr(20)] == pytest.approx([0.05, 0.5, 1.0, 1.0])
    assert lr(60) == pytest.approx(0.5)
    assert rate(Schedule.constant, warmup_epochs=2)(99) == 1.0


@pytest.mark.parametrize(("decay", "expected"), [(None, 0.3), (0.0, 0.0), (0.1, 0.1)])
def test_norm_parameters_and_biases_decay_by_their_own_setting(decay, expected):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = build_optimizer(model, SgdConfig(weight_decay=0.3, norm_weight_decay=decay))
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert decays.pop(id(p)) == (0.3 if name in ("0.weight", "3.weight") else expected), name
    assert not decays


def decays(model, cfg):
    groups = build_optimizer(model, cfg).param_groups
    return {id(p): group["weight_decay"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("name", NORMS)
def test_what_a_layer_declares_does_not_decay_and_gamma_and_beta_do_as_norm_parameters(name):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    layer = convert_norms(net, config(name))[1]
    found = decays(net, SgdConfig(weight_decay=0.3, norm_weight_decay=0.1))
    own = {key: found[id(p)] for key, p in layer.named_parameters()}
    affine = {} if name == "frozen_bn" else {"weight": 0.1, "bias": 0.1}
    assert own == affine | dict.fromkeys(OWN_PARAMETERS.get(name, set()), 0.0)
    assert found[id(net[0].weight)] == 0.3


@pytest.mark.parametrize("wrap", [torch.compile, lambda net: nn.ModuleDict({"module": net})])
def test_no_wrapper_hides_what_must_not_decay(wrap):
    net = convert_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), config("batch_instance"))
    assert decays(wrap(net), SgdConfig(weight_decay=0.3))[id(net[1].gate)] == 0.0
    layer = convert_norms(nn.BatchNorm2d(8), config("batch_instance"))
    assert decays(wrap(layer), SgdConfig(weight_decay=0.3))[id(layer.gate)] == 0.0


def test_a_gate_that_nothing_moves_stays_where_it_is():
    net = convert_norms(nn.Sequential(nn.BatchNorm2d(4)), config("batch_instance"))
    with torch.no_grad():
        net[0].gate.fill_(0.7)
    optimizer = build_optimizer(net, SgdConfig(lr=0.1, weight_decay=0.5))
    for _ in range(3):
        (net(torch.randn(2, 4, 3, 3)) * 0).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (net[0].gate == torch.full((4,), 0.7)).all()


def test_what_timms_models_exempt_from_decay_does_not():
    timm = pytest.importorskip("timm")
    net = timm.create_model("levit_128s", num_classes=3)
    found = decays(net, SgdConfig(weight_decay=0.3))
    biases = {key: p for key, p in net.named_parameters() if "attention_biases" in key}
    assert biases
    assert {found[id(p)] for p in biases.values()} == {0.0}


STEPS = [
    (SgdConfig(lr=0.1, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
    (SgdConfig(lr=0.1, nesterov=True, weight_decay=0), lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True)),
    (
        AdamWConfig(lr=0.1, beta2=0.99, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.1, (0.9, 0.99), 1e-8, 0.01),
    ),
]


def test_every_optimizer_has_its_steps_here():
    assert {type(cfg) for cfg, _ in STEPS} == set(SCHEMAS["optim"].values()), "add the others to STEPS"


@pytest.mark.parametrize(("cfg", "oracle"), STEPS)
def test_three_steps_are_those_of_torch(cfg, oracle):
    ours, theirs = (nn.Linear(5, 3).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5, dtype=torch.float64)
    for model, optimizer in [(ours, build_optimizer(ours, cfg)), (theirs, oracle(theirs.parameters()))]:
        for _ in range(3):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-12, atol=1e-12)
