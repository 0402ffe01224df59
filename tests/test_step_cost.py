"""What a step keeps and sends, found from shapes, against a step that is run."""

import pytest
import torch

from normlab import data
from normlab.models import build_model
from normlab.norms import convert_norms
from normlab.numerics import Numerics
from normlab.step_cost import StepCost, saved_bytes, step_cost
from tests.runs import SEGMENTATION, TINY, typed

NORMS = ["bn", "syncbn", "gn", "in", "batch_renorm", "switchable", "evonorm_s0"]


def cost_of(*overrides: str, ranks: int = 2) -> StepCost:
    cfg = typed(*TINY, *overrides)
    return step_cost(cfg, data.load(cfg.data), ranks)


def kept_by_a_step(*overrides: str) -> int:
    cfg = typed(*TINY, *overrides)
    numerics = Numerics.of(cfg.precision, torch.device("cpu"), channels_last=cfg.channels_last)
    dataset = data.load(cfg.data)
    model = convert_norms(numerics.module(build_model(cfg.model, len(dataset.classes), seed=0)), cfg.norm).train()
    side = cfg.data.crop_size if cfg.data.task == "segmentation" else 32
    images = torch.randn(cfg.batch_size, 3, side, side, dtype=numerics.dtype)
    images = images.contiguous(memory_format=numerics.memory_format)

    def forward():
        with numerics.autocast:
            return model(images)

    return saved_bytes(forward, [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize(
    "overrides",
    [
        *([f"norm={norm}"] for norm in NORMS),
        *([f"norm={norm}", "precision=bf16"] for norm in ("bn", "gn")),
        ["norm=bn", "precision=fp64"],
        ["norm=bn", "channels_last=true"],
        [*SEGMENTATION, "norm=gn"],
    ],
    ids=" ".join,
)
def test_shapes_alone_tell_what_a_step_keeps(overrides):
    # Under bf16, statistics are float32 in a step that is run, and bf16 where only shapes are known.
    rel = 1e-3 if "precision=bf16" in overrides else 0
    expected = pytest.approx(kept_by_a_step("batch_size=3", *overrides), rel=rel)
    assert cost_of("batch_size=3", *overrides).saved_bytes == expected


def test_virtual_ranks_cost_what_each_of_them_would_as_a_process():
    assert cost_of("norm=syncbn", "virtual_ranks=8", ranks=8) == cost_of("norm=syncbn", ranks=8)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 4), ("fp64", 8)])
def test_syncbn_sends_statistics_and_their_gradients_at_each_layer(precision, size):
    channels = [16] + 2 * [16] + 2 * [32] + 2 * [64]
    cost = cost_of("model=resnet8", "norm=syncbn", f"precision={precision}")
    assert (cost.messages, cost.message_bytes) == (14, size * sum(4 * c + 1 for c in channels))
    assert (cost_of("norm=gn").messages, cost_of("norm=syncbn", ranks=1).messages) == (0, 0)


def test_only_ranks_that_share_statistics_send_them():
    assert cost_of("norm=syncbn", "norm.sync_group_size=2", ranks=8) == cost_of("norm=syncbn", ranks=8)
    assert cost_of("norm=syncbn", "norm.sync_group_size=1", ranks=8).messages == 0
    assert cost_of("norm=ghost_bn").messages == 0


def test_what_a_norm_of_ones_own_sends_to_other_ranks_is_unknown():
    assert cost_of("norm=custom", "norm.target=tests.norms.own_norms:sync").messages is None
    assert cost_of("norm=custom", "norm.target=tests.norms.own_norms:Batch").messages == 0


def test_tf32_keeps_what_fp32_does():
    assert cost_of("norm=gn", "precision=tf32") == cost_of("norm=gn")


def test_of_a_model_that_needs_values_the_memory_stays_unknown(own_module):
    module = own_module(
        """
from torch import nn

class Model(nn.Sequential):
    def forward(self, images):
        return super().forward(images) if images.sum().item() else None

def build(num_classes):
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)]
    return Model(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *pooled)
"""
    )
    cost = cost_of("model=custom", f"model.target={module}:build", "norm=syncbn")
    assert cost == StepCost(None, 2, 4 * (4 * 4 + 1))
