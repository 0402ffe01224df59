"""What norm layers do, against numpy; and that looking at it changes nothing."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from normlab.config.norm import GroupNormConfig
from normlab.data.order import Stream, permutation
from normlab.norms import NORMS, convert_norms, diagnostics
from normlab.norms.running_stats import RankStatistics, precise_statistics, tracking_layers
from tests.norms.configs import config
from tests.runs import (
    EXACT,
    SEGMENTATION,
    Recorder,
    assert_same_bits,
    build,
    directory_of,
    ranks_here,
    run_training,
)

RUNNING = {"mean_gap", "var_gap", "mean_spread", "var_spread"}
ALWAYS = {"dead_channels", "activation_scale", "gamma_range"}
EPS = 1e-5


def network():
    """Two norm layers whose first has a channel without gamma and one that a ReLU never passes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3), nn.BatchNorm2d(3))
    with torch.no_grad():
        for layer in (model[1], model[4]):
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_()
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
        model[1].weight[2] = 0
        model[1].bias[2] = 3
        model[1].bias[4] = -100
    return model.double()


def seen_by_numpy(model, chunks):
    """(inputs, outputs) of both norm layers, chunk after chunk, each normalised by itself."""
    seen = {1: ([], []), 4: ([], [])}
    for chunk_BCHW in chunks:
        x = chunk_BCHW
        for index, layer in enumerate(model):
            if index not in seen:
                x = layer(x).detach()
                continue
            values = x.numpy()
            mean, var = (f(values, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
            gamma, beta = (p.detach().numpy().reshape(1, -1, 1, 1) for p in (layer.weight, layer.bias))
            y = (values - mean) / np.sqrt(var + EPS) * gamma + beta
            seen[index][0].append(values)
            seen[index][1].append(y)
            x = torch.from_numpy(y)
    return {index: tuple(map(np.concatenate, parts)) for index, parts in seen.items()}


def test_every_quantity_is_its_formula_in_numpy():
    model, images = network(), torch.randn(8, 2, 9, 9, dtype=torch.float64)
    batch = torch.cat([images[::2], images[1::2]])  # of two chunks, sample i is of chunk i % 2
    dealt = torch.stack([batch[:4], batch[4:]], dim=1).flatten(0, 1)
    expected = seen_by_numpy(model, [batch[:4], batch[4:]])
    names, ranks = ["1", "4"], ranks_here(0)
    seen = diagnostics.probe(model, names, [dealt], 4, ranks, autocast=torch.autocast("cpu", enabled=False))
    running = [torch.cat([model[i].get_buffer(name) for i in (1, 4)]) for name in ("running_mean", "running_var")]
    found = diagnostics.gaps(model, tuple(running), seen.precise) | seen.outputs
    found |= diagnostics.gamma_ranges(model, names)
    by_hand = {tag: [] for tag in found}
    for index in (1, 4):
        layer, (x, y) = model[index], expected[index]
        mean, var = (b.numpy() for b in (layer.running_mean, layer.running_var))
        p_mean, p_var = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
        gap, log_ratio = (mean - p_mean) / np.sqrt(var + EPS), np.log((var + EPS) / (p_var + EPS))
        by_hand["mean_gap"].append(np.sqrt(np.mean(gap**2)))
        by_hand["var_gap"].append(np.sqrt(np.mean(log_ratio**2)))
        by_hand["activation_scale"].append(np.sqrt(np.mean(y**2)))
        passed = np.maximum(y, 0)
        by_hand["dead_channels"].append(np.mean(np.ptp(passed, axis=(0, 2, 3)) < 1e-6))
        gamma = layer.weight.detach().numpy()
        by_hand["gamma_range"].append(gamma.max() - gamma.min())
    assert found["dead_channels"] == [0.4, 0.0]
    for tag, values in by_hand.items():
        np.testing.assert_allclose(found[tag], values, rtol=1e-11, err_msg=tag)


def test_the_spread_of_a_layer_is_that_of_its_channels_alone():
    model = network()
    mean_RN, var_RN = torch.rand(2, 3, 8, dtype=torch.float64) + 0.5
    found = diagnostics.spreads(model, RankStatistics(mean_RN, var_RN))
    for layer, (first, last) in enumerate([(0, 5), (5, 8)]):
        mean, var = mean_RN[:, first:last].numpy(), var_RN[:, first:last].numpy()
        scale = var.mean(0) + EPS
        assert found["mean_spread"][layer] == pytest.approx(np.sqrt(np.mean(mean.var(0) / scale)), rel=1e-12)
        assert found["var_spread"][layer] == pytest.approx(np.sqrt(np.mean(var.var(0) / scale**2)), rel=1e-12)


def test_the_network_has_each_tags_mean_and_its_worst_layer():
    scalars = diagnostics.of_network(
        {"a/mean_gap": [1.0, 4.0, 1.0], "b/activation_scale": [0.1, 1.0, 4.0], "c": []}
    )
    assert scalars == pytest.approx(
        {"a/mean_gap": 2, "a/mean_gap_worst": 4, "b/activation_scale": 1.7, "b/activation_scale_worst": 0.1}
    )


def test_layers_of_a_norm_without_running_statistics_have_outputs_only():
    model = convert_norms(network(), GroupNormConfig(num_groups=1))
    images = torch.randn(4, 2, 9, 9, dtype=torch.float64)
    seen = diagnostics.probe(
        model, ["1", "4"], [images], 1, ranks_here(0), autocast=torch.autocast("cpu", enabled=False)
    )
    assert seen.precise is None
    y = model[:2](images).detach()
    assert seen.outputs["activation_scale"][0] == pytest.approx(float(y.square().mean().sqrt()), rel=1e-12)


def everything(model):
    """What could be touched: every tensor (which, its values, what is known of it), every flag, every hook."""

    def of(tensor):
        return None if tensor is None else (id(tensor), tensor.requires_grad, tensor.detach().numpy().tobytes())

    def of_module(module):
        own = {key: value for key, value in vars(module).items() if not isinstance(value, dict)}
        tensors = module._parameters | module._buffers
        hooks = {key: list(value.items()) for key, value in vars(module).items() if "hooks" in key}
        gradients = {name: of(parameter.grad) for name, parameter in module.named_parameters(recurse=False)}
        children = {name: id(child) for name, child in module.named_children()}
        return (
            type(module),
            own,
            {name: of(tensor) for name, tensor in tensors.items()},
            hooks,
            gradients,
            children,
        )

    return {name: (id(module), *of_module(module)) for name, module in model.named_modules()}


def look_at(model, x_BCHW):
    names = list(norm_layers_of(model))
    off = torch.autocast("cpu", enabled=False)
    diagnostics.probe(model, names, [x_BCHW], 2, ranks_here(0), autocast=off)
    if tracking_layers(model):
        precise_statistics(model, [x_BCHW], 2, ranks_here(0), autocast=off)


def norm_layers_of(model):
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "eps")}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("virtual_ranks", [1, 2])
@pytest.mark.parametrize("name", NORMS)
def test_a_model_that_is_looked_at_is_the_same_in_every_tensor_flag_and_hook(name, virtual_ranks, training):
    timm = pytest.importorskip("timm")
    fused = timm.layers.BatchNormAct2d(
        8, drop_layer=nn.Dropout, act_layer=nn.ReLU if NORMS[name].builder_without_activation else nn.PReLU
    )
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Conv2d(8, 8, 3, bias=False), fused, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )
    norm = config(name, weight_standardization=True)
    model = convert_norms(model, norm, virtual_ranks).train(training)
    model[0].requires_grad_(False)
    model[3].train(not training)  # a flag of its own
    model.register_forward_pre_hook(lambda module, args: None)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))  # a gate, too, beyond [0, 1]
    x_BCHW = torch.randn(4, 3, 9, 9)
    before, generator = everything(model), torch.get_rng_state()
    look_at(model, x_BCHW)
    after = everything(model)
    assert after.keys() == before.keys()
    for key, state in before.items():
        assert after[key] == state, key
    assert torch.equal(torch.get_rng_state(), generator)


def diagnosed(rank, overrides):
    trainer, recorder = build(rank, overrides), Recorder()
    trainer.train(recorder, lambda: 0)
    generator, before = torch.get_rng_state(), {n: b.clone() for n, b in trainer.module.named_buffers()}
    scalars, of_layers = trainer.evaluator.diagnose(trainer.evaluated)
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_bits(dict(trainer.module.named_buffers()), before)
    assert trainer.module.training
    return scalars, of_layers, trainer.norms


SPLITS = [(4, 1), (2, 2), (1, 4)]


@pytest.mark.parametrize("norm", ["bn", "syncbn", "gn"])
def test_the_same_numbers_at_any_split_and_nothing_is_touched(norm, ranks, tmp_path):
    overrides = [*EXACT, f"output_dir={tmp_path}", f"norm={norm}", "batch_size=2", "epochs=1", "max_samples=16"]
    results = []
    for world_size, virtual_ranks in SPLITS:
        seen = ranks.run(diagnosed, [*overrides, f"virtual_ranks={virtual_ranks}"], world_size=world_size)
        assert all(own[:2] == seen[0][:2] for own in seen)  # on every rank
        results.append(seen[0])
    scalars, of_layers, norms = results[0]
    tags = {f"norm/{tag}" for tag in ALWAYS} | {f"running_stats/{t}" for t in RUNNING if norm != "gn"}
    assert of_layers.keys() == tags
    assert all(len(values) == len(norms) == 7 for values in of_layers.values())
    assert scalars.keys() == tags | {f"{tag}_worst" for tag in tags} | {"val/train_mode_gap"}
    for others, _, _ in results[1:]:
        assert others == pytest.approx(scalars, rel=1e-9, abs=1e-10)
    if norm == "gn":
        assert scalars["val/train_mode_gap"] == 0


def test_train_mode_gap_is_batch_statistics_less_running_ones_on_the_same_samples(tmp_path):
    trainer = build(0, [*EXACT, f"output_dir={tmp_path}", "batch_size=4", "epochs=3", "norm.momentum=0.001"])
    recorder = Recorder()
    trainer.train(recorder, lambda: 0)
    val, module = trainer.dataset.val, copy.deepcopy(trainer.module)
    index_B = permutation(len(val), seed=0, epoch=0, stream=Stream.precise)[:20]
    images_BHWC, labels_B = val.take(index_B)
    x_BCHW = trainer.numerics.images(images_BHWC, trainer.dataset.mean_C, trainer.dataset.std_C)
    with torch.no_grad():
        eval_mode = (module.eval()(x_BCHW).argmax(1) == labels_B).double().mean()
        module.train()
        train_mode = torch.cat([module(chunk).argmax(1) for chunk in x_BCHW.split(4)]) == labels_B
    gap = float(train_mode.double().mean() - eval_mode)
    assert gap != 0
    assert recorder.points[-1]["val/train_mode_gap"] == pytest.approx(gap, abs=1e-12)


def test_without_diagnostics_the_run_is_the_same_bit_for_bit_and_has_the_same_name(tmp_path):
    overrides = [*EXACT, "batch_size=16", "epochs=2"]
    runs = {
        value: run_training(0, [*overrides, f"output_dir={tmp_path}/{value}", f"diagnostics={value}"])
        for value in ("true", "false")
    }
    assert_same_bits(runs["true"]["state"], runs["false"]["state"])
    assert runs["true"]["run"].hash == runs["false"]["run"].hash
    extra = runs["true"]["points"][-1].keys() - runs["false"]["points"][-1].keys()
    assert {"val/train_mode_gap", "norm/dead_channels", "running_stats/mean_gap_worst"} <= extra
    assert {"running_stats/mean_spread"} <= runs["false"]["points"][-1].keys()
    assert runs["true"]["outcome"].metrics == runs["false"]["outcome"].metrics
    assert directory_of([*overrides, "diagnostics_samples=5"], 1).hash == runs["true"]["run"].hash


def test_segmentation_is_judged_by_its_own_metric(tmp_path):
    small = [*SEGMENTATION, "data.crop_size=32", "model.width=8", "batch_size=8", "epochs=1"]
    recorder = Recorder()
    trainer = build(0, [*EXACT, *small, f"output_dir={tmp_path}"])
    trainer.train(recorder, lambda: 0)
    point = recorder.points[-1]
    assert -1 <= point["val/train_mode_gap"] <= 1
    assert math.isfinite(point["running_stats/mean_gap"])
    layers = {name: values for _, name, values in recorder.histograms}
    assert len(layers["layers/norm/activation_scale"]) == len(trainer.norms)
