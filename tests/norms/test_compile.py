"""torch.compile takes a training step of each norm as one graph, and it computes what eager PyTorch does."""

import copy

import pytest
import torch
from torch import nn

from normlab.norms import NORMS, SyncBatchNorm, convert_norms
from tests.norms.configs import config


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def a_step(net, x, *, compiled):
    """What a training step and an evaluation leave. Raises: where there is more than one graph."""
    net = copy.deepcopy(net)
    # aot_eager traces forward and backward, and runs them without a compiler.
    forward = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
    x = x.detach().requires_grad_()
    y = forward(x)
    y.backward(y.detach().cos())
    left = [y.detach(), x.grad, *(p.grad for p in net.parameters()), *(b.clone() for b in net.buffers())]
    net.eval()
    return [*left, forward(x).detach()]


def net_of(*settings):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return convert_norms(nn.Sequential(*layers).double(), *settings)


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("norm", "virtual_ranks"), [*((norm, 1) for norm in NORMS), ("bn", 4), ("syncbn", 4)])
def test_a_step_of_each_norm_is_one_graph(norm, virtual_ranks):
    net = net_of(config(norm), virtual_ranks)
    x = torch.randn(8, 3, 7, 7, dtype=torch.float64)
    assert_same(a_step(net, x, compiled=True), a_step(net, x, compiled=False))


def steps_on_a_rank(rank, dtype, memory_format):
    torch._dynamo.reset()
    net = SyncBatchNorm.convert_sync_batchnorm(net_of(config("bn"))).to(dtype).to(memory_format=memory_format)
    torch.manual_seed(rank)
    x = torch.randn(2 + rank, 3, 7, 7, dtype=dtype).contiguous(memory_format=memory_format) + rank
    try:
        return [a_step(net, x, compiled=compiled) for compiled in (True, False)]
    finally:
        torch._dynamo.reset()  # what is compiled holds the process group


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_step_of_sync_batch_norm_is_one_graph_on_each_rank(dtype, memory_format, ranks):
    for ours, theirs in ranks.run(steps_on_a_rank, dtype, memory_format, world_size=2):
        assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
