"""The dtypes of norms under autocast: the same on CPU and CUDA."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from normlab.models import build_model
from normlab.norms import NORMS, convert_norms
from tests.fake_cuda import fake_cuda
from tests.norms.configs import OF_BATCH, config
from tests.runs import typed

BF16, FP32 = torch.bfloat16, torch.float32
SHAPE = (4, 8, 5, 5)


def made(norm, *, affine=True, device="cpu"):
    layer = nn.BatchNorm2d(SHAPE[1], affine=affine, device=device)
    return convert_norms(nn.Sequential(layer, nn.ReLU()), config(norm))[0]


def test_cudas_autocast_would_hand_on_float32_and_the_cpus_would_not():
    """What the norms must not depend on; if this fails, torch's rules have changed."""

    def dtypes(device):
        x = torch.zeros(SHAPE, dtype=BF16, device=device)
        last = x.movedim(1, -1)
        return {F.group_norm(x, 2).dtype, F.layer_norm(last, SHAPE[1:2]).dtype, F.rms_norm(last, SHAPE[1:2]).dtype}

    with torch.autocast("cpu", dtype=BF16):
        assert dtypes("cpu") == {BF16}
    with fake_cuda(autocast=BF16):
        assert dtypes("cuda") == {FP32}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_under_autocast_the_output_has_the_inputs_dtype_on_cpu_and_cuda(norm, affine):
    layer = made(norm, affine=affine)
    with torch.autocast("cpu", dtype=BF16):
        for training, dtype in product((True, False), (BF16, torch.float16, FP32)):
            assert layer.train(training)(torch.randn(SHAPE).to(dtype)).dtype == dtype
    with fake_cuda(autocast=BF16):
        layer = made(norm, affine=affine, device="cuda")
        for training, dtype in product((True, False), (BF16, torch.float16, FP32)):
            y_BCHW = layer.train(training)(torch.zeros(SHAPE, dtype=dtype, device="cuda"))
            assert (y_BCHW.dtype, y_BCHW.device.type) == (dtype, "cuda")


@pytest.mark.parametrize("norm", OF_BATCH)
def test_without_running_statistics_too(norm):
    layer = convert_norms(nn.BatchNorm2d(SHAPE[1], track_running_stats=False), config(norm))
    for training, dtype in product((True, False), (BF16, torch.float16, FP32)):
        assert layer.train(training)(torch.randn(SHAPE).to(dtype)).dtype == dtype


class KernelDtypes(TorchDispatchMode):
    """Inside the block, `seen` collects the dtypes of what kernels with statistics of their own are given."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("native_group_norm", "native_layer_norm", "var_mean", "rms_norm")):
            self.seen |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", NORMS)
def test_on_cuda_statistics_are_computed_in_float32_which_its_kernels_would_not_do_by_themselves(norm):
    with fake_cuda():
        layer, x_BCHW = made(norm, device="cuda"), torch.zeros(SHAPE, dtype=BF16, device="cuda")
        with KernelDtypes() as kernels:
            assert layer(x_BCHW).dtype == BF16
        assert kernels.seen <= {FP32}
        assert kernels.seen or norm not in ("gn", "ln", "ln2d", "switchable")  # else it was not looked at


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_under_bfloat16_the_output_is_the_exact_one_rounded_once(norm, affine):
    """So neither statistics nor parameters were rounded to bfloat16."""
    torch.manual_seed(0)
    x_BCHW = (torch.randn(8, 8, 16, 16) + 0.7).to(BF16)
    layer = made(norm, affine=affine)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.3, 0.9)
    if affine and norm == "frozen_bn":
        nn.init.uniform_(layer.weight, 0.3, 0.9)
    exact = made(norm, affine=affine).double()
    exact.load_state_dict(layer.state_dict())
    expected = exact(x_BCHW.double())
    with torch.autocast("cpu", dtype=BF16):
        y_BCHW = layer(x_BCHW)
    # Half a unit in the last of bfloat16's 8 bits, and float32's own error.
    torch.testing.assert_close(y_BCHW.double(), expected, rtol=2**-8, atol=1e-5)


def dtypes_of_outputs(model, images_BCHW):
    """(module, the dtype of what it hands on), in the order of the forward."""
    seen = []

    def note(name):
        return lambda module, args, output: seen.append((name, output.dtype))

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    model(images_BCHW)
    return seen


@pytest.mark.parametrize("norm", NORMS)
def test_under_bf16_each_part_of_a_network_hands_on_one_dtype_on_cpu_and_cuda(norm):
    cfg, shape = typed("model=resnet8", f"norm={norm}"), (8, 3, 16, 16)

    def network(device):
        with torch.device(device):
            return convert_norms(build_model(cfg.model, 10, seed=0), cfg.norm)

    with torch.autocast("cpu", dtype=BF16):
        on_cpu = dtypes_of_outputs(network("cpu"), torch.zeros(shape))
    with fake_cuda(autocast=BF16):
        on_cuda = dtypes_of_outputs(network("cuda"), torch.zeros(shape, device="cuda"))
    assert on_cpu == on_cuda
    assert {dtype for _, dtype in on_cpu} == {BF16}


def test_upsampled_logits_of_segmentation_are_the_one_place_where_the_devices_differ():
    """docs/training.md says so: CUDA's rules interpolate in float32, the CPU's do not."""
    cfg = typed("data=shapes_seg", "model=fcn_resnet8", "norm=gn")
    with torch.autocast("cpu", dtype=BF16):
        assert build_model(cfg.model, 4, seed=0)(torch.zeros(2, 3, 32, 32))["out"].dtype == BF16
    with fake_cuda(autocast=BF16), torch.device("cuda"):
        assert build_model(cfg.model, 4, seed=0)(torch.zeros(2, 3, 32, 32))["out"].dtype == FP32
