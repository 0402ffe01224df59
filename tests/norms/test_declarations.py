"""What a norm declares is what its layer does; the worked example of the docs is right."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from normlab.config.norm import BatchStatisticsConfig, RunningStatistics
from normlab.norms import NORMS, convert_norms, drawing
from normlab.norms.drawing import CHANNELS, PIXELS, RANKS, SAMPLES, drawn_config, statistics_of
from tests.norms.configs import OF_BATCH, OF_SAMPLE, config
from tests.norms.definitions import AXES, OWN, OWN_PARAMETERS, RANK, SAMPLE


def test_every_norm_has_its_axes_and_its_parameters_in_the_definitions():
    assert AXES.keys() == NORMS.keys(), "add what is missing to AXES in tests/norms/definitions.py"
    for norm in NORMS:
        layer = convert_norms(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), config(norm))[0]
        own = {name for name, _ in layer.named_parameters()} - {"weight", "bias"}
        assert own == OWN_PARAMETERS.get(norm, set()), f"{norm}: OWN_PARAMETERS in tests/norms/definitions.py"


@pytest.mark.parametrize("norm", NORMS)
def test_statistics_are_over_the_axes_of_the_definition_and_the_declaration(norm):
    used = statistics_of(norm)
    assert torch.equal(used, AXES[norm])
    assert NORMS[norm].needs_ranks == bool(used[~RANK].any())
    assert NORMS[norm].needs_batch == bool(used[RANK & ~SAMPLE].any())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 2), (6, 2), (4, 3)])
def test_as_many_samples_share_statistics_as_the_config_says(norm, batch_size, world_size, monkeypatch):
    monkeypatch.setattr(drawing, "SAMPLES", batch_size * world_size)
    monkeypatch.setattr(drawing, "RANKS", world_size)
    sharing = int(statistics_of(norm).flatten(1).any(1).sum())  # measured on the layer
    assert drawn_config(norm).normalization_batch_size(batch_size, world_size) == sharing


@pytest.mark.parametrize("norm", NORMS)
def test_running_statistics_are_kept_where_it_is_declared(norm):
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(8)
    nn.init.uniform_(layer.running_var)
    net = convert_norms(nn.Sequential(layer, nn.ReLU()), config(norm))
    before = {name: buffer.clone() for name, buffer in net.named_buffers() if "running" in name}
    x = torch.randn(4, 8, 3, 3) + 1
    y = net(x)
    moved = any(not torch.equal(net.get_buffer(name), buffer) for name, buffer in before.items())
    declared = NORMS[norm].running_statistics
    assert (bool(before), moved) == {
        RunningStatistics.none: (False, False),
        RunningStatistics.fixed: (True, False),
        RunningStatistics.kept: (True, True),
    }[declared]
    assert torch.allclose(net.eval()(x), y, atol=1e-5) == (declared is not RunningStatistics.kept)
    # Only norms that keep them have a policy for them.
    assert isinstance(config(norm), BatchStatisticsConfig) == (declared is RunningStatistics.kept)


@pytest.mark.parametrize("norm", NORMS)
def test_a_replaced_activation_is_declared(norm):
    net = convert_norms(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), config(norm))
    assert (type(net[1]) is nn.Identity) == bool(NORMS[norm].builder_without_activation)


@pytest.mark.parametrize("norm", [*OF_BATCH, *OF_SAMPLE])
def test_the_number_of_values_is_the_size_of_what_is_drawn(norm):
    """Of switchable and batch_instance, those of the part over the batch."""
    used = AXES[norm] if norm != "switchable" else RANK & OWN
    cfg = drawn_config(norm)
    shape = (SAMPLES // RANKS, CHANNELS, PIXELS, PIXELS)
    assert cfg.statistic_size(shape, RANKS) == used.sum()


# --- docs/norms.md --------------------------------------------------------------------------------------


def numbers(text, row):
    [cells] = re.findall(rf"^\| {row} \| ([-\d. ]+) \|", text, re.MULTILINE)
    return [float(number) for number in cells.split()]


def test_the_worked_example_is_right_to_the_printed_digits():
    """The numbers as they are printed elsewhere, and each from the ones before it, by hand."""
    page = (Path(__file__).parents[2] / "docs/norms.md").read_text()
    expected = {
        "input, channel 0": [0.3367, 0.1288, 0.2345, 0.2303],
        "input, channel 1": [-1.1229, -0.1863, 2.2082, -0.6380],
        "batch mean": [0.2326, 0.0653],
        "biased variance": [0.0054, 1.6404],
        "unbiased variance": [0.0072, 2.1872],
        "output, channel 0": [1.4150, -1.4102, 0.0257, -0.0305],
        "output, channel 1": [-0.9276, -0.1964, 1.6731, -0.5491],
        "running_mean": [1.8233, 1.8065],
        "running_var": [0.9007, 1.1187],
    }
    assert {row: numbers(page, row) for row in expected} == expected
    torch.manual_seed(42)
    for channel, pixels in enumerate(torch.randn((1, 2, 2, 2)).double().flatten(2)[0].tolist()):
        mean = math.fsum(pixels) / 4
        squares = math.fsum((pixel - mean) ** 2 for pixel in pixels)
        by_hand = {
            "batch mean": mean,
            "biased variance": squares / 4,
            "unbiased variance": squares / 3,
            "running_mean": 0.9 * 2 + 0.1 * mean,
            "running_var": 0.9 * 1 + 0.1 * squares / 3,
        }
        assert {row: round(value, 4) for row, value in by_hand.items()} == {
            row: expected[row][channel] for row in by_hand
        }
        output = [round((pixel - mean) / math.sqrt(squares / 4 + 1e-5), 4) for pixel in pixels]
        assert output == expected[f"output, channel {channel}"]
