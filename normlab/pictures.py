"""Pictures of what a segmentation model does: its predictions, and which classes it confuses."""

import math
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

IGNORED_COLOUR = (255, 255, 255)
LEGEND_COLUMNS = 6
PLAIN_TEXT: dict[Any, Any] = {"text.parse_math": False}
"""A dollar sign in a class name does not start a formula."""


@matplotlib.rc_context(PLAIN_TEXT)
def predictions(
    samples: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], palette_K3: torch.Tensor, classes: list[str]
) -> np.ndarray:
    """Picture, truth and prediction side by side, one row per sample, over a legend: (H, W, 3) uint8.

    Each sample is a picture (H, W, 3) uint8, and the true and predicted class of each pixel (H, W). Ignored pixels
    are white in the truth.
    """
    legend_rows = math.ceil(len(classes) / LEGEND_COLUMNS)
    figure = Figure(figsize=(9, 2.3 * len(samples) + 0.22 * legend_rows + 0.4), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, (image_HWC, truth_HW, predicted_HW) in zip(axes, samples, strict=True):
        row[0].imshow(image_HWC.numpy())
        row[1].imshow(_coloured(truth_HW, palette_K3))
        row[2].imshow(_coloured(predicted_HW, palette_K3))
    for axis, title in zip(axes[0], ("picture", "truth", "prediction"), strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    patches = [
        Patch(facecolor=colour, label=name) for colour, name in zip(palette_K3.numpy() / 255, classes, strict=True)
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small", frameon=False
    )
    return _pixels(figure)


def _coloured(labels_HW: torch.Tensor, palette_K3: torch.Tensor) -> np.ndarray:
    colours = torch.cat([palette_K3, torch.tensor([IGNORED_COLOUR], dtype=torch.uint8)])
    return colours[labels_HW.clamp(max=len(palette_K3))].numpy()


@matplotlib.rc_context(PLAIN_TEXT)
def confusion(confusion_KK: torch.Tensor, classes: list[str]) -> np.ndarray:
    """For each class (row), the percentage of its pixels taken for each class (column): (H, W, 3) uint8."""
    share_KK = (100 * confusion_KK / confusion_KK.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = 2.5 + 0.42 * len(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(share_KK, vmin=0, vmax=100, cmap="Blues")
    axis.set_xticks(range(len(classes)), classes, rotation=90)
    axis.set_yticks(range(len(classes)), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title("% of the pixels of a class")
    if len(classes) <= 30:
        for row, shares in enumerate(share_KK.tolist()):
            for column, share in enumerate(shares):
                if share >= 0.5:
                    colour = "white" if share > 55 else "black"
                    axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return _pixels(figure)


def _pixels(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
