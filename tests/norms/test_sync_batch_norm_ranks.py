"""SyncBatchNorm on real gloo ranks. The oracle: BatchNorm over the concatenated batch, in float64."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from normlab.config.norm import SyncBatchNormConfig
from normlab.norms import SyncBatchNorm, convert_norms, exchange, sync_function, sync_group
from tests.norms.configs import without_bias

EXACT = {"rtol": 1e-11, "atol": 1e-12}
CHANNELS = 5


@pytest.fixture(params=["shared memory", "gloo"])
def on_ranks(ranks, request):
    """The session's ranks, whose layers exchange their statistics in this way."""
    return RanksThatExchangeOver(ranks, request.param)


class RanksThatExchangeOver:
    def __init__(self, ranks, transport):
        self.ranks, self.transport = ranks, transport

    def run(self, function, *args, world_size):
        return self.ranks.run(exchanging_over, self.transport, function, *args, world_size=world_size)


def exchanging_over(rank, transport, function, *args):
    earlier = set(exchange._channels)  # torch.compile may hold groups of tests before this one
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMLAB_SHARED_MEMORY", "1" if transport == "shared memory" else "0")
        seen = function(rank, *args)
    for group, channel in exchange._channels.items():
        assert group in earlier or (channel is not None) == (transport == "shared memory")
    return seen


def batch_norm(dim=4, bias=True, **settings):
    """A BatchNorm in float64 whose affine weights and running statistics are no round numbers."""
    torch.manual_seed(1)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[dim]
    layer = kind(CHANNELS, dtype=torch.float64, **settings)
    if not bias:
        without_bias(layer)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        if tensor is not None:
            torch.nn.init.uniform_(tensor, 0.5, 2)
    return layer


def batch(samples, dim=4):
    torch.manual_seed(2)
    shape = (samples, CHANNELS, *(3, 4, 2)[: dim - 2])
    return torch.randn(shape, dtype=torch.float64) * 3 + 2, torch.randn(shape, dtype=torch.float64)


def train_step(layer, x, dy):
    """What a step leaves: output, input gradient, parameter gradients, buffers."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    y.backward(dy)
    grads = [None if p is None else p.grad for p in (layer.weight, layer.bias)]
    return [y.detach(), x.grad, *grads, *(b.clone() for b in layer.buffers())]


def on_a_rank(rank, layer, parts, steps=1, group_size=None):
    layer = SyncBatchNorm.convert_sync_batchnorm(layer, sync_group(group_size))
    assert type(layer) is SyncBatchNorm
    for _ in range(steps):
        layer.zero_grad()
        seen = train_step(layer, *parts[rank])
    return seen


def assert_equals_the_union(ranks, layer, splits, dim=4, steps=1, groups=1):
    """Every quantity of `sum(splits)` samples on one BatchNorm, and split over ranks on SyncBatchNorm."""
    parts = list(zip(*(t.split(splits) for t in batch(sum(splits), dim)), strict=True))
    size = len(splits) // groups
    group_size = None if groups == 1 else size
    seen = ranks.run(on_a_rank, layer, parts, steps, group_size, world_size=len(splits))
    for first in range(0, len(splits), size):
        union = [torch.cat(ts) for ts in zip(*parts[first : first + size], strict=True)]
        reference = copy.deepcopy(layer)
        for _ in range(steps):
            reference.zero_grad()
            y, dx, *rest = train_step(reference, *union)
        mine = seen[first : first + size]
        torch.testing.assert_close(torch.cat([s[0] for s in mine]), y, **EXACT)
        torch.testing.assert_close(torch.cat([s[1] for s in mine]), dx, **EXACT)
        for i, expected in enumerate(rest[:2], start=2):  # weight and bias gradients
            if expected is not None:
                torch.testing.assert_close(sum(s[i] for s in mine), expected, **EXACT)
        for s in mine:
            torch.testing.assert_close(s[4:], rest[2:], **EXACT)


@pytest.mark.parametrize(
    "splits",
    [[4, 4], [3, 5], [0, 6], [2, 2, 2, 2], [1, 4, 0, 3], [1, 1, 0, 0]],
    ids=lambda splits: "+".join(map(str, splits)),
)
def test_sync_batch_norm_equals_batch_norm_on_the_ranks_union(on_ranks, splits):
    assert_equals_the_union(on_ranks, batch_norm(), splits)


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_the_other_numbers_of_axes(on_ranks, dim):
    assert_equals_the_union(on_ranks, batch_norm(dim), [3, 2], dim)


@pytest.mark.parametrize(
    "settings",
    [{"momentum": None}, {"momentum": 0.6}, {"affine": False}, {"bias": False}, {"track_running_stats": False}],
    ids=str,
)
def test_each_setting_over_two_steps(on_ranks, settings):
    assert_equals_the_union(on_ranks, batch_norm(**settings), [3, 2], steps=2)


def test_two_groups_of_two_ranks_share_within_and_not_across(on_ranks):
    assert_equals_the_union(on_ranks, batch_norm(), [2, 3, 4, 1], groups=2)


def layout_and_precision(rank):
    seen = {}
    torch.manual_seed(rank)
    for name, layout in [("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)]:
        x = torch.randn(3 + rank, 4, 5, 6).to(memory_format=layout).requires_grad_()
        y = SyncBatchNorm(4)(x)
        y.sum().backward()  # the gradient that arrives is an expanded scalar
        seen[name] = all(t.is_contiguous(memory_format=layout) for t in (y, x.grad))
    x = torch.randn(2, 4, 2, 3, 3).to(memory_format=torch.channels_last_3d)
    seen["channels_last_3d"] = SyncBatchNorm(4)(x).is_contiguous(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 4, 6, 5)[:, :, ::2].transpose(2, 3)  # neither
    seen["strided"] = torch.equal(SyncBatchNorm(4)(x), SyncBatchNorm(4)(x.contiguous()))

    dtypes = []
    sent, summed = sync_function.gather_statistics, sync_function.sum_gradients

    def watch(send):
        def watched(tensor, group):
            dtypes.append(tensor.dtype)
            return send(tensor, group)

        return watched

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync_function, "gather_statistics", watch(sent))
        patch.setattr(sync_function, "sum_gradients", watch(summed))
        model = nn.Sequential(nn.Conv2d(3, 4, 3), SyncBatchNorm(4), nn.Conv2d(4, 2, 1))
        with torch.autocast("cpu", torch.bfloat16):
            out = model(torch.randn(2 * rank, 3, 8, 8))
        out.float().square().sum().backward()
        seen["autocast"] = (out.dtype, set(dtypes), model[1].running_var.dtype, model[1].weight.grad.dtype)
        dtypes.clear()
        half = SyncBatchNorm(4, dtype=torch.bfloat16)
        x = torch.randn(3, 4, 5, 5, dtype=torch.bfloat16, requires_grad=True)
        y = half(x)
        y.sum().backward()
        seen["bfloat16"] = (y.dtype, x.grad.dtype, half.weight.grad.dtype, set(dtypes))
    return seen


def test_memory_format_is_kept_and_statistics_are_float32_under_bfloat16(on_ranks):
    for seen in on_ranks.run(layout_and_precision, world_size=2):
        bf16, fp32 = torch.bfloat16, torch.float32
        assert seen == {
            "channels_last": True,
            "contiguous": True,
            "channels_last_3d": True,
            "strided": True,
            "autocast": (bf16, {fp32}, fp32, fp32),
            "bfloat16": (bf16, bf16, bf16, {fp32}),
        }


def bfloat16_step(rank, layer, parts, values_at_a_time):
    layer = SyncBatchNorm.convert_sync_batchnorm(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync_function, "VALUES_AT_A_TIME", values_at_a_time)
        return [t.double() for t in train_step(layer, *parts[rank])[:4]]


@pytest.mark.parametrize("values_at_a_time", [1, 1 << 16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_bfloat16_is_as_close_to_float64_as_batch_norm_is(on_ranks, layout, values_at_a_time):
    layer = nn.BatchNorm2d(CHANNELS)
    layer.load_state_dict(batch_norm().state_dict())
    x, dy = (t.bfloat16().to(memory_format=layout) for t in batch(8))
    exact = train_step(copy.deepcopy(layer).double(), x.double(), dy.double())
    plain = train_step(copy.deepcopy(layer), x, dy)
    parts = [(x[:3], dy[:3]), (x[3:], dy[3:])]
    first, second = on_ranks.run(bfloat16_step, layer, parts, values_at_a_time, world_size=2)
    joined = [torch.cat([first[i], second[i]]) if i < 2 else first[i] + second[i] for i in range(4)]
    for ours, theirs, truth in zip(joined, plain[:4], exact[:4], strict=True):
        # Output and input gradient are rounded once, as BatchNorm's are: twice would be 1.4 times the error.
        assert (ours - truth).norm() <= 1.02 * (theirs.double() - truth).norm() + 1e-6 * truth.norm()


def collectives(rank):
    calls = []
    gather, reduce = sync_function.gather_statistics, sync_function.sum_gradients

    def counted(name, call):
        return lambda values, group: (calls.append((name, group is dist.group.WORLD)), call(values, group))[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync_function, "gather_statistics", counted("gather", gather))
        patch.setattr(sync_function, "sum_gradients", counted("reduce", reduce))
        layer = SyncBatchNorm(3)
        seen = {}
        for name, input_grad, affine_grad in [("both", 1, 1), ("input", 1, 0), ("affine", 0, 1), ("none", 0, 0)]:
            calls.clear()
            layer.zero_grad()
            x = torch.randn(2, 3, 4, 4, requires_grad=bool(input_grad))
            layer.requires_grad_(bool(affine_grad))
            y = layer(x)
            if y.requires_grad:
                y.sum().backward()
            assert (x.grad is not None) == bool(input_grad)
            assert (layer.weight.grad is not None) == (layer.bias.grad is not None) == bool(affine_grad)
            seen[name] = [call for call, _ in calls]
            assert all(everyone for _, everyone in calls)
        calls.clear()
        layer.eval()(torch.randn(1 + rank, 3, 4, 4))
        SyncBatchNorm(3, track_running_stats=False).eval()(torch.randn(2, 3, 4, 4))
        seen["eval"] = list(calls)
    return seen


def test_one_all_gather_forward_and_one_all_reduce_backward(on_ranks):
    for seen in on_ranks.run(collectives, world_size=2):
        assert seen == {
            "both": ["gather", "reduce"],
            "input": ["gather", "reduce"],
            "affine": ["gather"],
            "none": ["gather"],
            "eval": [],
        }


def single_values(rank):
    """One value per channel in all; on one rank of several; none at all."""
    layer = SyncBatchNorm(3)
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*2 ranks") as caught:
        layer(torch.randn(rank, 3, 1, 1))
    assert str((rank, 3, 1, 1)) in str(caught.value)
    assert layer(torch.randn(1, 3, 1, 1)).isfinite().all()
    before = layer.running_var.clone()
    assert layer(torch.randn(0, 3, 1, 1)).shape == (0, 3, 1, 1)
    assert torch.equal(layer.running_var, before)
    lonely = SyncBatchNorm(3, process_group=sync_group(1))  # groups of one rank are plain BatchNorm
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        lonely(torch.randn(1, 3))
    with pytest.raises(ValueError, match=r"norm.sync_group_size=3 .* 2 ranks.*\[1, 2\]"):
        sync_group(3)
    return True


def test_too_few_values_for_a_variance(on_ranks):
    assert on_ranks.run(single_values, world_size=2) == [True, True]


def sub_groups_and_ddp(rank):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))
    net = convert_norms(net.double(), SyncBatchNormConfig(sync_group_size=2, eps=1e-4, momentum=0.2))
    assert (net[1].eps, net[1].momentum) == (1e-4, 0.2)
    members = dist.get_process_group_ranks(net[1].process_group)
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    alone = nn.Sequential(net[0], nn.BatchNorm2d(8, eps=1e-4, dtype=torch.float64), net[2], net[3])
    halves = [alone(half).square().sum() for half in images.split(4)]
    expected = [g / 4 for g in torch.autograd.grad(sum(halves), list(net[0].parameters()))]
    ddp = nn.parallel.DistributedDataParallel(net)
    ddp(images[2 * rank : 2 * rank + 2]).square().sum().backward()
    for parameter, gradient in zip(net[0].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, **EXACT)
    return members


def test_sync_groups_are_contiguous_and_train_under_ddp(on_ranks):
    assert on_ranks.run(sub_groups_and_ddp, world_size=4) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def groups_on(rank, backend):
    """The ranks of the group that a model's layers have, whether it is one group, and not that of DDP."""
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_backend", lambda *args: backend)
        convert_norms(net, SyncBatchNormConfig())
    one, other = (layer.process_group for layer in net)
    if one is None:
        return other
    net(torch.randn(2, 2, 3, 3, requires_grad=True)).square().sum().backward()
    return dist.get_process_group_ranks(one), one is other, one is not dist.group.WORLD


def test_on_nccl_all_ranks_have_a_group_apart_from_the_one_of_ddps_buckets(on_ranks):
    assert on_ranks.run(groups_on, "nccl", world_size=2) == [([0, 1], True, True)] * 2
    assert on_ranks.run(groups_on, "gloo", world_size=2) == [None, None]
