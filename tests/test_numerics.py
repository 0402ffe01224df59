"""What a model computes with."""

import os

import pytest
import torch
from torch import nn

from normlab.config import ConfigError
from normlab.config.config import Precision
from normlab.numerics import Numerics

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"),
    [
        (Precision.fp64, torch.float64, 1e-12),
        (Precision.fp32, torch.float32, 1e-5),
        (Precision.bf16, torch.float32, 1e-5),
    ],
)
def test_images_are_normalised_by_the_formula_in_the_format_of_the_model(
    precision, dtype, tolerance, channels_last
):
    images_BHWC = torch.randint(
        0, 256, (4, 5, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    before = images_BHWC.clone()
    mean_C = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    std_C = torch.tensor([0.2, 0.3, 0.25], dtype=torch.float64)
    numerics = Numerics.of(precision, CPU, channels_last=channels_last)
    found = numerics.images(images_BHWC, mean_C, std_C)
    expected = ((images_BHWC.double() / 255 - mean_C) / std_C).permute(0, 3, 1, 2)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(images_BHWC, before)


def test_a_module_has_the_dtype_and_format_of_its_images():
    layer = Numerics.of(Precision.fp64, CPU, channels_last=True).module(nn.Conv2d(4, 4, 3))
    assert layer.weight.dtype == torch.float64
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("precision", "dtype"), [(Precision.bf16, torch.bfloat16), (Precision.fp32, torch.float32)]
)
def test_bf16_computes_under_autocast_alone(precision, dtype):
    numerics = Numerics.of(precision, CPU)
    layer = numerics.module(nn.Linear(2, 2))
    with numerics.autocast:
        assert layer(torch.zeros(1, 2)).dtype == dtype
    assert layer.weight.dtype == torch.float32


@pytest.fixture
def tf32_as_it_was():
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


@pytest.mark.parametrize("precision", Precision)
def test_tf32_is_used_where_it_is_asked_for_and_nowhere_else(precision, tf32_as_it_was):
    torch.backends.cudnn.allow_tf32 = precision is not Precision.tf32
    torch.backends.cuda.matmul.allow_tf32 = precision is not Precision.tf32
    Numerics.of(precision, torch.device("meta"))
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
        for kernels in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul):
            assert (kernels.fp32_precision == "tf32") == (precision is Precision.tf32)
    else:
        for kernels in (torch.backends.cudnn, torch.backends.cuda.matmul):
            assert kernels.allow_tf32 == (precision is Precision.tf32)
    torch.backends.cuda.matmul.allow_tf32  # noqa: B018  inductor reads it; it raises where both APIs were used


@pytest.fixture
def algorithms_as_they_were(monkeypatch):
    kept = torch.backends.cudnn.benchmark
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.backends.cudnn.benchmark = kept
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("device", "deterministic", "one_size", "expected"),
    [
        ("cuda", False, True, (True, False, None)),
        ("cuda", False, False, (False, False, None)),
        ("cuda", True, True, (False, True, ":4096:8")),
        ("cpu", True, True, (False, False, None)),
    ],
)
def test_cuda_tries_algorithms_or_takes_deterministic_ones(
    device, deterministic, one_size, expected, algorithms_as_they_were, tf32_as_it_was
):
    device = torch.device(device)
    Numerics.of(Precision.fp32, device, deterministic=deterministic, one_size=one_size)
    found = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    assert (*found, os.environ.get("CUBLAS_WORKSPACE_CONFIG")) == expected
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_a_cpu_has_no_tf32():
    with pytest.raises(ConfigError, match=r"precision=tf32 exists on CUDA alone.*set precision=fp32"):
        Numerics.of(Precision.tf32, CPU)
