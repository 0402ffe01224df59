import pytest
import torch
from torch import nn

from normlab.config import ConfigError
from normlab.config.model import CifarResNetConfig, Stem, TorchvisionConfig
from normlab.config.norm import BatchNormConfig, GroupNormConfig
from normlab.models import build_model
from normlab.norms import convert_norms


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# He et al. 2015, table 6 (in millions): depth 20 0.27, 32 0.46, 44 0.66, 56 0.85, 110 1.7.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_depths_have_the_published_number_of_parameters(depth, millions):
    with torch.device("meta"):
        model = build_model(CifarResNetConfig(depth=depth), 10, seed=0)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)


@pytest.mark.parametrize("depth", [8, 14])
def test_depth_counts_the_weighted_layers(depth):
    model = build_model(CifarResNetConfig(depth=depth), 10, seed=0)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == depth


def test_width_scales_every_stage():
    model = build_model(CifarResNetConfig(depth=8, width=4), 7, seed=0)
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [4, 4, 4, 8, 8, 16, 16]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_block_that_changes_the_shape_takes_every_second_pixel_and_pads_channels():
    block = build_model(CifarResNetConfig(depth=8, width=4), 10, seed=0).blocks[1]
    nn.init.zeros_(block.norm2.weight)  # leaves the shortcut alone
    x = torch.rand(2, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert not y[:, 4:].any()


def test_init_scale_multiplies_the_weights_of_convolutions_alone():
    own, doubled = (build_model(CifarResNetConfig(init_scale=scale), 10, seed=0) for scale in (1, 2))
    for name, layer in own.named_modules():
        if list(layer.parameters(recurse=False)):
            factor = 2 if isinstance(layer, nn.Conv2d) else 1
            for before, after in zip(layer.parameters(), doubled.get_submodule(name).parameters(), strict=True):
                assert torch.equal(after, factor * before), name


def test_init_scale_is_refused_beside_weights_that_would_replace_what_it_scales():
    with pytest.raises(ConfigError, match=r"model\.init_scale=2 scales weights that model\.init_from replaces"):
        CifarResNetConfig(init_scale=2, init_from="weights.pt")


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_model(CifarResNetConfig(), 10, seed=s).conv.weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_torchvision_with_a_cifar_stem_keeps_the_resolution_of_small_images():
    with torch.device("meta"):
        cifar = build_model(TorchvisionConfig(name="resnet18", stem=Stem.cifar), 10, seed=0)
        own = build_model(TorchvisionConfig(name="resnet18", stem=Stem.own), 10, seed=0)
        image = torch.zeros(1, 3, 32, 32)
        sizes = [m.maxpool(m.relu(m.bn1(m.conv1(image)))).shape[-1] for m in (cifar, own)]
    assert sizes == [32, 8]


@pytest.mark.parametrize(("name", "norm"), [("resnet18", BatchNormConfig()), ("resnet50", GroupNormConfig())])
def test_with_zero_init_residual_each_block_begins_as_its_shortcut(name, norm):
    built = build_model(TorchvisionConfig(name=name, zero_init_residual=True), 10, seed=0)
    model = convert_norms(built, norm).eval()
    x = torch.rand(2, model.layer1[0].conv1.in_channels, 8, 8)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            shortcut = x if block.downsample is None else block.downsample(x)
            x = block(x)
            assert torch.equal(x, shortcut.relu())


def test_zero_init_residual_is_refused_for_a_model_without_residual_blocks():
    with pytest.raises(ConfigError, match=r"model\.zero_init_residual=true is for ResNets, and model\.name=vgg11"):
        build_model(TorchvisionConfig(name="vgg11", zero_init_residual=True), 10, seed=0)


def test_a_name_that_torchvision_does_not_have_lists_those_it_has():
    with pytest.raises(ConfigError, match=r"model.name=resnet19 .*resnet18, .*wide_resnet"):
        build_model(TorchvisionConfig(name="resnet19"), 10, seed=0)


def test_building_a_model_leaves_every_generator_as_it_was(monkeypatch):
    def refuse(seed):
        raise AssertionError("a CUDA generator was reseeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    build_model(CifarResNetConfig(name="resnet8", depth=8), 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
