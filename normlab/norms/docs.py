"""docs/norms.md and its drawings, made from the code by `python -m normlab.docs`."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normlab.config.norm import NORMS, NormConfig
from normlab.config.schema import summary
from normlab.config.section import imported
from normlab.markdown import markdown_table
from normlab.norms import activations, weight_standardization
from normlab.norms.drawing import draw

BATCH_SIZE, RANKS = 32, 8

_INTRODUCTION = """\
# The norms

Made from the code by `python -m normlab.docs`; the texts are the docstrings of `normlab/norms`.

x has the shape (B, C, H, W): samples, channels, pixels. Every norm has a gain gamma and an offset beta per
channel, taken from the BatchNorm that it replaces. Variances are biased where they normalise.

```
python train.py norm=syncbn batch_size=4 world_size=2
python train.py norm=gn norm.num_groups=4
python train.py norm=ghost_bn norm.ghost_batch_size=8 batch_size=32
python train.py norm=evonorm_s0 norm.num_groups=4
python train.py norm=gn norm.weight_standardization=true
python train.py norm=frozen_bn model.init_from=runs/default/bn-b32-w1-resnet8-shapes-s0-...
```

`norm.eps` and `norm.momentum` are null by default: each layer keeps the model's own (mobilenet_v3: 1e-3 and
0.01), so pretrained weights keep their function. A number sets all layers. `frn` has the eps of its paper,
1e-6. [Every key](keys.md#norm) lists the options of each norm. `norm=custom` is
[a norm of your own](extending.md#your-own-norm).

"""
_COLUMNS = [
    "`norm=`",
    "what it is",
    "needs the batch",
    "needs other ranks",
    "running statistics",
    "NBS",
    "replaces the activation",
    "one sample of one pixel",
]

_LEGEND = f"""
- needs the batch: in training, a sample's output depends on the other samples of its rank.
- needs other ranks: it also depends on samples of other ranks, which costs one collective in each forward and
  one in each backward.
- running statistics: `yes`, updated in training and used in evaluation; `fixed`, never updated. With several
  ranks, `norm.running_stats` chooses [which
  rank's](virtual_ranks.md#which-running-statistics-an-evaluation-uses).
- NBS: the normalization batch size, the number of samples that share statistics; here with
  batch_size={BATCH_SIZE} on {RANKS} ranks and other keys at their defaults.
- one sample of one pixel: whether a layer can train on it (`ghost_bn` with ghost_batch_size=1). If not, such a
  run is refused before it starts, with the layer's name and the fix.

The drawings show eight samples on two ranks from top to bottom, and six channels of 2x2 pixels from left to
right. In training, the output at the yellow value depends on the blue values. The drawings are computed from
the derivatives of the layers themselves.
"""


def pages() -> dict[Path, str]:
    """Path under the repository -> text of each file that is made."""
    files = {Path(f"docs/norms/{name}.svg"): draw(name) for name in NORMS}
    table = markdown_table(_COLUMNS, [_cells(name, norm) for name, norm in NORMS.items()])
    sections = "".join(_section(name, norm) for name, norm in NORMS.items())
    ending = _options() + _worked_example()
    return {Path("docs/norms.md"): _INTRODUCTION + table + _LEGEND + sections + ending, **files}


def definition(norm: type[NormConfig]) -> str:
    """The docstring that defines a norm."""
    return inspect.getdoc(imported(norm.defined_by or norm.builder)) or ""


def _cells(name: str, norm: type[NormConfig]) -> list[str]:
    least: dict[str, Any] = {"ghost_batch_size": 1} if name == "ghost_bn" else {}
    trains = norm(**least).statistic_size((1, 16, 1, 1), 1) != 1
    return [
        f"[`{name}`](#{name})",
        summary(norm),
        _yes(norm.needs_batch),
        _yes(norm.needs_ranks),
        norm.running_statistics.value,
        str(norm().normalization_batch_size(BATCH_SIZE, RANKS)),
        _yes(bool(norm.builder_without_activation)),
        "trains" if trains else "refused",
    ]


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _section(name: str, norm: type[NormConfig]) -> str:
    return (
        f"\n## {name}\n\n{_as_markdown(definition(norm))}\n![{name}: what its statistics are made of]"
        f"(norms/{name}.svg)\n\n**When to use it.** {norm.when}\n"
    )


def _as_markdown(docstring: str) -> str:
    """The docstring's paragraphs, with indented ones as code."""
    parts = []
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith("    "):
            parts.append(f"```\n{inspect.cleandoc(paragraph)}\n```")
        else:
            parts.append("  \n".join(_joined(paragraph.splitlines())))
    return "\n\n".join(parts) + "\n"


def _joined(lines: list[str]) -> list[str]:
    """Join lines, except before those that begin with a word and a colon, or with a new sentence."""
    joined: list[str] = []
    for line in lines:
        first = line.split(" ", 1)[0]
        if not joined or first.endswith(":") or joined[-1].endswith((".", ";")):
            joined.append(line)
        else:
            joined[-1] += f" {line}"
    return joined


def _options() -> str:
    replaced = (inspect.getdoc(activations) or "").split("\n\n", 1)[1]
    standardised = inspect.getdoc(weight_standardization.StandardisedConv) or ""
    return f"""
## Norms that replace the activation

{replaced}

If no activation follows a norm, as before the sum of a residual block, the norm has none either, and the
ReLU after the sum stays, as in timm's layers (`apply_act=False`). If it cannot be determined what follows, the
conversion is refused with the layer's name.

## Weight standardization

`norm.weight_standardization=true` can be combined with any norm.

```
w = (weight - mean_o) / sqrt(var_o + {weight_standardization.EPS:g}),   mean, biased var over filter o
```

{standardised}

It applies to every convolution whose filters have several weights and that has no bias, which is how models
mark a convolution whose output is normalised. Gates and prediction layers have a bias and stay unchanged. Only
the norm then controls the scale of activations: with `norm=none`, training is likely to diverge.
"""


# --- the worked example ---------------------------------------------------------------------------------


def _worked_example() -> str:
    x_BCHW = torch.randn((1, 2, 2, 2), generator=torch.Generator().manual_seed(42))
    layer = nn.BatchNorm2d(2, eps=1e-5, momentum=0.1)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.fill_(2)
    y_BCHW = layer(x_BCHW).detach()
    mean_C = x_BCHW.mean((0, 2, 3))
    rows = [
        ("input, channel 0", x_BCHW[0, 0], "`torch.manual_seed(42); x = torch.randn((1, 2, 2, 2))`"),
        ("input, channel 1", x_BCHW[0, 1], ""),
        ("batch mean", mean_C, "of the four values of each channel"),
        ("biased variance", x_BCHW.var((0, 2, 3), correction=0), "sum of squares / 4: this one **normalises**"),
        ("unbiased variance", x_BCHW.var((0, 2, 3)), "sum of squares / 3: this one **enters running_var**"),
        ("output, channel 0", y_BCHW[0, 0], "(x - mean) / sqrt(biased variance + 1e-5)"),
        ("output, channel 1", y_BCHW[0, 1], ""),
        ("running_mean", layer.running_mean, "0.9 * 2 + 0.1 * batch mean"),
        ("running_var", layer.running_var, "0.9 * 1 + 0.1 * unbiased variance"),
    ]
    table = "".join(f"| {name} | {_numbers(values)} | {how} |\n" for name, values, how in rows)
    return f"""
## BatchNorm, number by number

`BatchNorm2d(2, eps=1e-5, momentum=0.1)` with running_mean [2, 2], running_var [1, 1], gamma 1 and beta 0; one
forward in train mode. Rows of two values have one per channel; rows of four have one per pixel.

| | | |
|---|---|---|
{table}"""


def _numbers(values: Tensor) -> str:
    return " ".join(f"{float(value):.4f}" for value in values.flatten())
