"""What a layer keeps and sends, against cases known by hand."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from normlab.bench.links import Training, prepare_step
from normlab.bench.measure import Case, Collective, LayerStep, Traffic, examine, saved_bytes, time_steps
from normlab.config import Precision
from normlab.norms import NORMS
from tests.runs import ranks_here

SHAPE = (4, 16, 5, 7)
VALUES = 4 * 16 * 5 * 7
CPU = torch.device("cpu")


def kept_by(norm, precision=Precision.fp32, channels_last=False):
    step = LayerStep(Case(norm, SHAPE, precision, channels_last, 1), CPU)
    return saved_bytes(step.forward, [*step.layer.parameters(), *step.layer.buffers()])


@pytest.mark.parametrize(
    ("norm", "precision", "expected"),
    [
        ("bn", Precision.fp32, 4 * VALUES + 2 * 16 * 4),  # x, and each channel's mean and inverse deviation
        ("bn", Precision.fp64, 8 * VALUES + 2 * 16 * 8),
        ("bn", Precision.bf16, 2 * VALUES + 2 * 16 * 4),  # statistics stay in float32
        ("gn", Precision.fp32, 4 * VALUES + 2 * 4 * 8 * 4),  # of each sample and group, of which there are 8
        ("ln", Precision.fp32, 4 * VALUES + 2 * 4 * 4),
    ],
)
def test_a_norm_keeps_its_input_and_its_statistics(norm, precision, expected):
    assert kept_by(norm, precision) == expected


def test_channels_last_is_kept_as_it_came():
    assert kept_by("bn", channels_last=True) == kept_by("bn")


def test_a_storage_counts_once_and_whole_and_what_is_owned_not_at_all():
    base = torch.randn(10, 10, requires_grad=True)
    weight = torch.randn(5, requires_grad=True)

    def forward():
        view = base.detach()[:, :5].requires_grad_()
        return view.square() + (view * weight).square()

    # The view's storage, of 100 floats, is saved twice; of the product there are 50; the weight is owned.
    assert saved_bytes(forward, [weight]) == 4 * (100 + 50)


def traffic_of_a_layer(rank, channels):
    ranks, kept = ranks_here(rank), {}
    seen = {}
    for norm in ("bn", "syncbn"):
        case = Case(norm, (2, channels, 3, 3), Precision.fp32, False, ranks.world_size)
        facts = examine(ranks, kept, case)
        forward_s, backward_s = time_steps(ranks, kept, case, 2)
        assert forward_s > 0
        assert backward_s > 0
        seen[norm] = facts.collectives
    return seen


@pytest.mark.parametrize("world_size", [2, 4])
def test_sync_batch_norm_sends_what_it_says_one_all_gather_and_one_all_reduce(ranks, world_size):
    channels = 6
    for seen in ranks.run(traffic_of_a_layer, channels, world_size=world_size):
        assert seen["bn"] == []
        assert seen["syncbn"] == [
            Collective("all_gather", 4 * (2 * channels + 1)),
            Collective("all_reduce", 4 * 2 * channels),
        ]


def traffic_of_training(rank):
    ranks, kept, training = ranks_here(rank), {}, Training("resnet20", 2, 32)
    return {v: prepare_step(ranks, kept, training, v) for v in ("alone", "bn", "syncbn")}


def test_a_training_step_sends_what_the_model_on_paper_says(ranks):
    network = Training("resnet20", 2, 32).network()
    for seen in ranks.run(traffic_of_training, world_size=2):
        assert seen["alone"] == []
        assert {call.name for call in seen["bn"]} == {"all_reduce"}
        assert sum(call.message_bytes for call in seen["bn"]) == network.gradient_bytes
        gathers = [call.message_bytes for call in seen["syncbn"] if call.name == "all_gather"]
        assert gathers == [4 * (2 * channels + 1) for channels in network.norm_channels]
        reduced = sum(call.message_bytes for call in seen["syncbn"] if call.name == "all_reduce")
        assert reduced == network.gradient_bytes + 4 * sum(2 * channels for channels in network.norm_channels)


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
    step = LayerStep(Case(norm, (8, 16, 8, 8), Precision.fp32, False, 1), CPU)
    assert isinstance(step.layer, nn.Module)
    forward_s, backward_s = step.times(2)
    assert min(forward_s, backward_s) > 0
