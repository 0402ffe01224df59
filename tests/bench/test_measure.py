"""What a layer keeps and sends, against cases known by hand."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normlab.bench.measure import (
    Case,
    Collective,
    LayerStep,
    Traffic,
    examine,
    norm_config,
    time_steps,
)
from normlab.bench.page import NETWORKS, network_rows
from normlab.models import build_model
from normlab.norms import NORMS, convert_norms
from normlab.norms.exchange import over_backend
from normlab.older_torch import NO_BUFFER_SYNC
from normlab.step_cost import saved_bytes

SHAPE = (4, 16, 5, 7)
VALUES = 4 * 16 * 5 * 7


def kept_by(norm, dtype="fp32", memory_format="contiguous"):
    step = LayerStep(Case(norm, SHAPE, dtype, memory_format, 1), "cpu")
    return saved_bytes(step.forward, [*step.layer.parameters(), *step.layer.buffers()])


@pytest.mark.parametrize(
    ("norm", "dtype", "expected"),
    [
        ("bn", "fp32", 4 * VALUES + 2 * 16 * 4),  # x, and each channel's mean and inverse deviation
        ("bn", "fp64", 8 * VALUES + 2 * 16 * 8),
        ("bn", "bf16", 2 * VALUES + 2 * 16 * 4),  # statistics stay in float32
        ("gn", "fp32", 4 * VALUES + 2 * 4 * 8 * 4),  # of each sample and group, of which there are 8
        ("ln", "fp32", 4 * VALUES + 2 * 4 * 4),
    ],
)
def test_a_norm_keeps_its_input_and_its_statistics(norm, dtype, expected):
    assert kept_by(norm, dtype) == expected


def test_channels_last_is_kept_without_a_copy():
    assert kept_by("bn", memory_format="channels_last") == kept_by("bn")


def test_a_storage_counts_once_and_whole_and_what_is_owned_not_at_all():
    base = torch.randn(10, 10, requires_grad=True)
    weight = torch.randn(5, requires_grad=True)

    def forward():
        view = base.detach()[:, :5].requires_grad_()
        return view.square() + (view * weight).square()

    # The view's storage, of 100 floats, is saved twice; of the product there are 50; the weight is owned.
    assert saved_bytes(forward, [weight]) == 4 * (100 + 50)


def traffic_of_a_layer(rank, channels, world_size):
    cases = [Case(norm, (2, channels, 3, 3), "fp32", "contiguous", world_size) for norm in ("bn", "syncbn")]
    for times in time_steps(rank, [(case, 2) for case in cases], "cpu"):
        assert min(times) > 0
    return [facts.collectives for facts in examine(rank, cases, "cpu")]


@pytest.mark.parametrize("world_size", [2, 4])
def test_sync_batch_norm_sends_what_it_says_one_all_gather_and_one_all_reduce(ranks, world_size):
    channels = 6
    for bn, syncbn in ranks.run(traffic_of_a_layer, channels, world_size, world_size=world_size):
        assert bn == []
        assert syncbn == [
            Collective("all_gather", 4 * (2 * channels + 1)),
            Collective("all_reduce", 4 * 2 * channels),
        ]


def traffic_of_training(rank, norm):
    _, config, num_classes = NETWORKS[0]
    model = convert_norms(build_model(config, num_classes, seed=0), norm_config(norm)).train()
    model = DistributedDataParallel(model, **NO_BUFFER_SYNC)

    def step():
        model(torch.randn(2, 3, 32, 32)).sum().backward()

    for _ in range(2):  # DDP orders its buckets anew after its first
        step()
    with over_backend(), Traffic() as traffic:
        step()
    return traffic.calls


def test_a_training_step_sends_what_the_page_says_of_its_network(ranks):
    _, *numbers = network_rows()[0]
    layers, calls, gathered, reduced, gradients = (int(number.replace(",", "")) for number in numbers)
    assert layers == 19
    assert gradients == 4 * 269_722  # 0.27 M parameters, He et al. 2015, table 6; head of 10

    def sent(calls, name):
        return [call.message_bytes for call in calls if call.name == name]

    for bn in ranks.run(traffic_of_training, "bn", world_size=2):
        assert sent(bn, "all_gather") == []
        assert sum(sent(bn, "all_reduce")) == gradients
        buckets = len(bn)
    for syncbn in ranks.run(traffic_of_training, "syncbn", world_size=2):
        assert len(syncbn) == calls + buckets
        widths = [16] * 7 + [32] * 6 + [64] * 6
        assert sent(syncbn, "all_gather") == [4 * (2 * channels + 1) for channels in widths]
        assert sum(sent(syncbn, "all_gather")) == gathered
        assert sum(sent(syncbn, "all_reduce")) == reduced + gradients


def any_collective(rank):
    with Traffic() as traffic:
        dist.all_gather([torch.empty(3), torch.empty(3)], torch.zeros(3))
        dist.all_reduce(torch.zeros(5, dtype=torch.float64))
        dist.broadcast(torch.zeros(2), src=0)
    return traffic.calls


def test_traffic_counts_what_a_rank_hands_in(ranks):
    for calls in ranks.run(any_collective, world_size=2):
        expected = [("all_gather", 12), ("all_reduce", 40), ("broadcast", 8)]
        assert calls == [Collective(*call) for call in expected]


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_can_be_measured(norm):
    step = LayerStep(Case(norm, (8, 16, 8, 8), "fp32", "contiguous", 1), "cpu")
    assert isinstance(step.layer, nn.Module)
    forward_s, backward_s = step.times(2)
    assert min(forward_s, backward_s) > 0
