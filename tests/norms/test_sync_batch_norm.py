"""SyncBatchNorm as a drop-in: signature, state dict, conversion, one process."""

import copy
import inspect

import pytest
import torch
from torch import nn

from normlab.norms import SyncBatchNorm
from normlab.norms.exchange import merge_statistics
from tests.norms.configs import without_bias

convert = SyncBatchNorm.convert_sync_batchnorm


def test_its_signatures_and_attributes_are_torchs():
    def shape(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.default, p.kind) for p in parameters]

    theirs = shape(nn.SyncBatchNorm)  # which knows no `bias` before torch 2.15
    assert [p for p in shape(SyncBatchNorm) if p in theirs or p[0] != "bias"] == theirs
    assert shape(convert) == shape(nn.SyncBatchNorm.convert_sync_batchnorm)
    ours, theirs = SyncBatchNorm(4), nn.SyncBatchNorm(4)
    assert vars(ours).keys() == vars(theirs).keys()
    assert repr(ours) == repr(theirs)
    assert not isinstance(ours, nn.SyncBatchNorm), "DDP refuses those on CPU"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_without_a_process_group_it_is_batch_norm(settings, training):
    x = torch.randn(4, 3, 5, 5)
    plain = nn.BatchNorm2d(3, **settings).train(training)
    ours = SyncBatchNorm(3, **settings).train(training)
    for _ in range(2):
        assert torch.equal(ours(x), plain(x))
    for key, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


def test_bad_inputs_are_refused_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        SyncBatchNorm(3)(torch.randn(1, 3))
    with pytest.raises(ValueError, match="at least 2D"):
        SyncBatchNorm(3)(torch.randn(3))
    with pytest.raises(ValueError, match="non-zero"):
        SyncBatchNorm(0)(torch.randn(2, 0))


def test_a_state_dict_loads_into_batch_norm_and_back():
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    plain(torch.randn(5, 3, 4, 4))
    ours = convert(copy.deepcopy(plain))
    assert ours.state_dict().keys() == plain.state_dict().keys()
    ours(torch.randn(5, 3, 4, 4))
    plain.load_state_dict(ours.state_dict())
    fresh = nn.Sequential(nn.Conv2d(3, 4, 1), SyncBatchNorm(4))
    fresh.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(fresh.eval()(x), plain.eval()(x))
    assert torch.equal(ours.eval()(x), plain(x))


def test_convert_keeps_every_object_and_setting():
    layer = nn.BatchNorm3d(4, eps=1e-3, momentum=None, dtype=torch.float64).eval()
    layer.weight.requires_grad_(False)
    new = convert(layer, "a group")
    assert type(new) is SyncBatchNorm
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(new, name) is getattr(layer, name)
    assert (new.eps, new.momentum, new.training, new.process_group) == (1e-3, None, False, "a group")
    bare = convert(nn.BatchNorm1d(4, affine=False, track_running_stats=False))
    assert bare.weight is bare.bias is bare.running_mean is bare.num_batches_tracked is None
    half = convert(without_bias(nn.BatchNorm2d(4)))
    assert half.weight is not None
    assert half.bias is None
    assert convert(nn.BatchNorm2d(4, device="meta")).running_var.device.type == "meta"


def test_convert_takes_known_types_and_shared_layers_once():
    shared = nn.BatchNorm2d(4)
    inner = nn.Sequential(shared, nn.SyncBatchNorm(4), SyncBatchNorm(4))
    net = nn.ModuleDict({"a": shared, "b": shared, "in": inner, "instance": nn.InstanceNorm2d(4, affine=True)})
    instance = net["instance"]
    assert convert(net) is net
    assert net["a"] is net["b"] is net["in"][0]
    assert [type(layer) for layer in net["in"]] == [SyncBatchNorm] * 3
    assert net["instance"] is instance
    plain = nn.Linear(2, 2)
    assert convert(plain) is plain


class BatchNormAct2d(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_convert_refuses_what_it_would_break_and_changes_nothing():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4)))
    with pytest.raises(TypeError, match=r"1\.0 \(BatchNormAct2d\)"):
        convert(net)
    with pytest.raises(TypeError, match="LazyBatchNorm2d"):
        convert(nn.LazyBatchNorm2d())
    net[1] = nn.BatchNorm2d(4)
    net[1].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r"layer 1 \(BatchNorm2d\) has hooks"):
        convert(net)
    assert type(net[0]) is nn.BatchNorm2d


def test_merged_statistics_are_those_of_the_union():
    x_NC = torch.randn(9, 4, dtype=torch.float64) + torch.arange(9, dtype=torch.float64)[:, None]
    parts = x_NC.split([2, 0, 7])
    rows = [
        torch.cat([p.mean(0), p.var(0, correction=0), torch.tensor([len(p)])]).nan_to_num(0.0)
        for p in parts
        if len(p)
    ]
    mean, var, count = merge_statistics(torch.stack([rows[0], torch.zeros(9, dtype=torch.float64), rows[1]]))
    torch.testing.assert_close(mean, x_NC.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(var, x_NC.var(0, correction=0), rtol=1e-13, atol=1e-13)
    assert count == 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_torchs_own_does_the_work(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x = torch.randn(4, 3, 5, 5, device="cuda")
        ours, theirs = SyncBatchNorm(3, device="cuda"), nn.SyncBatchNorm(3, device="cuda")
        assert torch.equal(ours(x), theirs(x))
        assert torch.equal(ours.running_var, theirs.running_var)
    finally:
        dist.destroy_process_group()
