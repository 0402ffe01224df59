"""Each norm of the wider zoo against its formula, written out with numpy in float64."""

import pytest
import torch
from torch import nn

from normlab.norms import NORMS, convert_norms
from tests.norms.configs import ACTIVATING, OF_BATCH, OF_SAMPLE, OVER_PIXELS, config, in_groups
from tests.norms.definitions import EPS, FORMULAS, C, H, W

EXACT = {"rtol": 1e-11, "atol": 1e-11}
ZOO = [norm for norm in NORMS if norm not in ("bn", "syncbn", "gn", "ln", "in")]


def made(norm, **settings):
    """A layer, with parameters and running statistics unlike those at the start, followed by no activation
    but where it is one."""
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(C, dtype=torch.float64)
    nn.init.uniform_(layer.running_mean, -1, 1)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    settings = {"eps": EPS} | in_groups(norm, 3) | settings
    layer = convert_norms(nn.Sequential(layer, nn.ReLU()), config(norm, **settings))[0]
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.1, 0.9)
    if norm == "frozen_bn":
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias)
    return layer


def example(samples=4):
    torch.manual_seed(1)
    scale = torch.rand(samples, C, 1, 1, dtype=torch.float64) + 0.5
    return torch.randn(samples, C, H, W, dtype=torch.float64) * scale + 2 * scale


def numpy_of(layer):
    state = {name: tensor.detach().numpy().copy() for name, tensor in layer.state_dict().items()}
    return {name: value[:, None, None] if value.shape == (C,) else value for name, value in state.items()}


def test_every_norm_has_its_formula_here():
    assert FORMULAS.keys() == set(ZOO), "write the formula of the others in tests/norms/definitions.py"


@pytest.mark.parametrize("norm", ZOO)
def test_a_norm_equals_its_formula_in_train_and_in_eval(norm):
    layer, x_BCHW = made(norm), example()
    if norm == "frn":
        assert (layer(x_BCHW) == layer.tau.view(-1, 1, 1)).any()  # the threshold is met
    for train in (True, False):
        expected = FORMULAS[norm](x_BCHW.numpy(), numpy_of(layer), train)
        torch.testing.assert_close(layer.train(train)(x_BCHW), torch.from_numpy(expected), **EXACT)


@pytest.mark.parametrize("norm", ZOO)
def test_gradients_are_those_of_finite_differences(norm):
    layer, x_BCHW = made(norm), example()[..., :2, :2].clone().requires_grad_()
    state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    names, parameters = zip(*layer.named_parameters(), strict=True) if list(layer.parameters()) else ((), ())
    if norm == "batch_renorm":
        layer.r_max, layer.d_max = 1, 0  # r and d are constants to the gradient, and not to the difference

    def y(x, *values):
        buffers = {name: buffer.clone() for name, buffer in state.items()}
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)) | buffers, (x,))

    assert torch.autograd.gradcheck(y, (x_BCHW, *parameters))
    layer.eval()
    assert torch.autograd.gradcheck(y, (x_BCHW, *parameters))


def test_no_gradient_flows_through_the_correction_of_batch_renorm():
    layer, x_BCHW = made("batch_renorm"), example().requires_grad_()
    dy = torch.randn_like(x_BCHW)
    running = layer.running_mean.clone(), layer.running_var.clone()
    layer(x_BCHW).backward(dy)
    x = x_BCHW.detach().clone().requires_grad_()
    mean, std = x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + EPS).sqrt()
    running_std = (running[1] + EPS).sqrt()
    r = (std / running_std).clamp(9 / 11, 11 / 9).detach()
    d = ((mean - running[0]) / running_std).clamp(-1, 1).detach()
    assert 0 < ((r == 9 / 11) | (r == 11 / 9)).sum() < C  # some are clipped, some are not
    column = (1, C, 1, 1)
    xhat = (x - mean.view(column)) / std.view(column) * r.view(column) + d.view(column)
    (xhat * layer.weight.detach().view(column)).backward(dy)
    torch.testing.assert_close(x_BCHW.grad, x.grad, **EXACT)


@pytest.mark.parametrize("norm", [*OF_SAMPLE, "none", "frozen_bn"])
def test_samples_do_not_meet_and_train_is_eval(norm):
    layer, x_BCHW = made(norm), example()
    y_BCHW = layer(x_BCHW)
    torch.testing.assert_close(layer.eval()(x_BCHW), y_BCHW, rtol=0, atol=1e-14)
    torch.testing.assert_close(layer.train()(x_BCHW[1:2]), y_BCHW[1:2], **EXACT)


@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_of_one_sample_of_several_pixels_is_defined(norm):
    layer, x_BCHW = made(norm, **({"ghost_batch_size": 1} if norm == "ghost_bn" else {})), example(1)
    x_BCHW.requires_grad_()
    layer(x_BCHW).square().sum().backward()
    assert x_BCHW.grad.isfinite().all()
    assert all(tensor.isfinite().all() for tensor in layer.state_dict().values())
    assert layer.eval()(x_BCHW).isfinite().all()


@pytest.mark.parametrize("norm", OF_BATCH)
def test_one_value_per_channel_is_an_error_in_training_and_none_in_evaluation(norm):
    layer, x_BC11 = made(norm, **({"ghost_batch_size": 1} if norm == "ghost_bn" else {})), example(1)[..., :1, :1]
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(x_BC11)
    assert layer.eval()(x_BC11).isfinite().all()


@pytest.mark.parametrize("norm", OVER_PIXELS)
def test_norms_over_pixels_take_pixels(norm):
    layer = convert_norms(nn.Sequential(nn.BatchNorm1d(8), nn.ReLU()), config(norm))
    with pytest.raises(ValueError, match=r"\(2, 8\)"):
        layer(torch.randn(2, 8))


@pytest.mark.parametrize("norm", ZOO)
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_other_numbers_of_axes_are_pixels_in_a_row(norm, dim):
    """(B, C, D, H, W) is what (B, C, D*H, W) is; (B, C) is (B, C, 1, 1)."""
    if dim == 2 and norm in OVER_PIXELS:
        return
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}[dim]
    shape = {2: (8, C), 3: (8, C, 12), 5: (8, C, 2, 3, 2)}[dim]
    torch.manual_seed(0)
    cfg = config(norm, **in_groups(norm, 3))
    layer = convert_norms(nn.Sequential(kind(C).double(), nn.ReLU()), cfg)[0]
    other = convert_norms(nn.Sequential(nn.BatchNorm2d(C).double(), nn.ReLU()), cfg)[0]
    x = torch.randn(shape, dtype=torch.float64)
    pixels = x.reshape(8, C, -1, shape[-1] if dim > 2 else 1)
    for train in (True, False):
        y, expected = layer.train(train)(x), other.train(train)(pixels)
        torch.testing.assert_close(y, expected.view(shape), **EXACT)


@pytest.mark.parametrize("norm", ZOO)
@pytest.mark.parametrize("train", [True, False])
def test_channels_last_gives_the_same_values_and_gradients(norm, train):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = made(norm).train(train)
        x_BCHW = example().to(memory_format=layout).requires_grad_()
        y_BCHW = layer(x_BCHW)
        y_BCHW.square().sum().backward()
        results.append([y_BCHW.detach(), x_BCHW.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize("norm", ZOO)
def test_under_bfloat16_the_output_is_bfloat16_and_statistics_are_float32(norm):
    layer, x_BCHW = made(norm).float(), example().bfloat16().requires_grad_()
    exact = made(norm)(x_BCHW.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_BCHW = layer(x_BCHW)
    assert y_BCHW.dtype == torch.bfloat16
    torch.testing.assert_close(y_BCHW.double(), exact, rtol=2e-2, atol=2e-2)
    y_BCHW.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
    assert all(b.dtype in (torch.float32, torch.int64) for b in layer.buffers())


@pytest.mark.parametrize("norm", ACTIVATING)
def test_timms_layer_is_the_same_in_float32(norm):
    layers = pytest.importorskip("timm.layers")
    layer, x_BCHW = made(norm).float(), example().float()
    if norm == "frn":
        peer = layers.FilterResponseNormTlu2d(C, eps=EPS)
    else:
        peer = layers.EvoNorm2dS0(C, groups=3, eps=EPS)
    peer.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x_BCHW), peer(x_BCHW), rtol=1e-5, atol=1e-5)


def test_the_frozen_layer_is_torchvisions():
    from torchvision.ops import FrozenBatchNorm2d

    layer, x_BCHW = made("frozen_bn"), example()
    peer = FrozenBatchNorm2d(C, eps=EPS).double()
    peer.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x_BCHW), peer(x_BCHW), **EXACT)
