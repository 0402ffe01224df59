"""What cannot train is refused before any rank starts."""

import pytest
import torch
import torchvision
from torch import nn

from normlab.config import ConfigError
from normlab.config.norm import (
    BatchNormConfig,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    Nondivisible,
    RunningStatistics,
    SyncBatchNormConfig,
)
from normlab.norms import NORMS, check_norms
from tests.norms.configs import config


def resnet18():
    """Its last stage sees a 32x32 image as one pixel."""
    with torch.device("meta"):
        return torchvision.models.resnet18()


def one_channel():
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 1, 4), nn.BatchNorm2d(1))


@pytest.mark.parametrize(
    ("model", "batch_size", "ranks", "norm", "words"),
    [
        (resnet18, 1, 4, BatchNormConfig(), ["norm=bn", "batch_size=1", "layer4.0.bn1", "1x1", "syncbn", "gn"]),
        (resnet18, 1, 1, SyncBatchNormConfig(), ["norm=syncbn", "1 rank ", "layer4.0.bn1", "more ranks"]),
        (resnet18, 1, 4, SyncBatchNormConfig(sync_group_size=1), ["layer4.0.bn1", "norm.sync_group_size"]),
        (resnet18, 8, 1, InstanceNormConfig(), ["norm=in", "layer4.0.bn1", "channel of a sample", "norm=gn"]),
        (resnet18, 8, 1, GroupNormConfig(channels_per_group=1), ["norm=gn", "layer4.0.bn1", "fewer groups"]),
        (one_channel, 8, 1, LayerNormConfig(), ["norm=ln", "layer 1 ", "per sample"]),
        (resnet18, 8, 1, GroupNormConfig(num_groups=48), ["norm.num_groups=48", "64 channels", "bn1"]),
        (
            resnet18,
            8,
            4,
            SyncBatchNormConfig(sync_group_size=3),
            ["norm.sync_group_size=3", "4 ranks", "[1, 2, 4]"],
        ),
        (lambda: nn.Conv2d(3, 1, 4), 8, 4, BatchNormConfig(), ["Conv2d", "BatchNorm"]),
    ],
)
def test_a_refusal_is_one_line_that_names_the_layer_and_the_fix(model, batch_size, ranks, norm, words):
    size = 4 if model is one_channel else 32
    with pytest.raises(ConfigError) as caught:
        check_norms(model(), (3, size, size), batch_size, ranks, norm)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("virtual_ranks", [1, 4])
@pytest.mark.parametrize("name", NORMS)
def test_layers_without_running_statistics_are_refused_by_norms_that_are_evaluated_with_them(name, virtual_ranks):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)
    )
    given = (model, (3, 16, 16), 4, virtual_ranks, config(name), virtual_ranks)
    if NORMS[name].running_statistics is RunningStatistics.none:
        check_norms(*given)
        return
    with pytest.raises(ConfigError) as caught:
        check_norms(*given)
    for word in (f"norm={name}", "layer 3 (BatchNorm2d)", "track_running_stats=True", "norm=gn"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "batch_size", "ranks", "norm"),
    [
        (32, 2, 1, BatchNormConfig()),
        (33, 1, 1, BatchNormConfig()),  # 2x2 pixels at the end
        (32, 1, 2, SyncBatchNormConfig()),
        (32, 1, 4, SyncBatchNormConfig(sync_group_size=2)),
        (32, 1, 1, GroupNormConfig()),
        (32, 1, 1, GroupNormConfig(num_groups=48, nondivisible=Nondivisible.nearest)),
        (32, 1, 1, LayerNormConfig()),
        (33, 1, 1, InstanceNormConfig()),
    ],
)
def test_what_can_train_passes(size, batch_size, ranks, norm):
    check_norms(resnet18(), (3, size, size), batch_size, ranks, norm)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_model_is_left_as_it_was(batch_size):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4), nn.Dropout())
    model[2].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    try:
        check_norms(model, (3, 4, 4), batch_size, 1, BatchNormConfig())
    except ConfigError:
        assert batch_size == 1
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert not model[1]._forward_pre_hooks
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
