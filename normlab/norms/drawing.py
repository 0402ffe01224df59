"""A small picture of the values behind a norm's statistics, drawn from its layer's derivative."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from normlab.config.norm import NORMS, NormConfig
from normlab.norms.convert import convert_norms

SAMPLES, RANKS, CHANNELS, PIXELS = 8, 2, 6, 2
VALUE = (2, 2, 0, 1)
"""The value that a picture explains: sample (the second of rank 0), channel, row, column."""

_SETTINGS: dict[str, Any] = {"num_groups": 3, "ghost_batch_size": 2}
"""The settings that norms with these keys are drawn with, so that there are several groups and parts."""

_PIXEL, _CELL, _LEFT, _TOP, _RANK_GAP = 8, 20, 46, 16, 10


def drawn_config(norm: str) -> NormConfig:
    schema = NORMS[norm]
    keys = {spec.name for spec in fields(schema)}
    return schema(**{key: value for key, value in _SETTINGS.items() if key in keys})


def statistics_of(norm: str) -> Tensor:
    """(B, C, H, W) bool: which values of the input the output at VALUE depends on, in training.

    Sample i belongs to rank i % RANKS. The answer is read from the derivative of the norm's own layer.
    """
    generator = torch.Generator().manual_seed(0)
    pair = nn.Sequential(nn.BatchNorm2d(CHANNELS, dtype=torch.float64), nn.ReLU())
    layer = convert_norms(pair, drawn_config(norm), virtual_ranks=RANKS)[0]  # type: ignore[index]
    for name, parameter in layer.named_parameters():
        # A threshold hides what lies below it, and a gate at 1 or a gain of 0 hides the rest.
        parameter.data.fill_(-100.0 if name == "tau" else 0.9)
    x = torch.randn(SAMPLES, CHANNELS, PIXELS, PIXELS, dtype=torch.float64, generator=generator)
    layer(x.requires_grad_())[VALUE].backward()
    assert x.grad is not None
    return x.grad != 0


def draw(norm: str) -> str:
    """SVG: samples downwards, rank by rank; channels to the right, each of 2x2 pixels."""
    used = statistics_of(norm)
    squares: dict[bool, list[str]] = {False: [], True: []}
    for sample in range(SAMPLES):
        for channel in range(CHANNELS):
            for row in range(PIXELS):
                for column in range(PIXELS):
                    x, y = _position(sample, channel, row, column)
                    squares[bool(used[sample, channel, row, column])].append(f"M{x} {y}h7v7h-7z")
    x, y = _position(*VALUE)
    width = _LEFT + CHANNELS * _CELL
    height = _TOP + SAMPLES * _CELL + _RANK_GAP
    labels = [(_LEFT, 11, "channels")]
    labels += [(2, _position(rank, 0, 0, 0)[1] + 12, f"rank {rank}") for rank in range(RANKS)]
    text = "".join(f'<text x="{left}" y="{base}">{words}</text>\n' for left, base, words in labels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
        f"<title>{norm}: what its statistics are made of</title>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{text}'
        f'<path fill="#d8dce2" d="{"".join(squares[False])}"/>\n'
        f'<path fill="#2f6fb7" d="{"".join(squares[True])}"/>\n'
        f'<rect x="{x}" y="{y}" width="7" height="7" fill="#f2a900" stroke="#000" stroke-width="1.5"/>\n</svg>\n'
    )


def _position(sample: int, channel: int, row: int, column: int) -> tuple[int, int]:
    rank, of_rank = sample % RANKS, sample // RANKS
    down = (rank * (SAMPLES // RANKS) + of_rank) * _CELL + rank * _RANK_GAP
    return _LEFT + channel * _CELL + column * _PIXEL, _TOP + down + row * _PIXEL
