"""Each norm as its paper defines it: the axes of its statistics, its parameters, and its formula in numpy.

The formulas of bn, syncbn, gn, ln and in are in test_formulas.py and the tests of SyncBatchNorm.
"""

import numpy as np
import torch

from normlab.norms.drawing import CHANNELS, PIXELS, RANKS, SAMPLES, VALUE

SIZES = (SAMPLES, CHANNELS, PIXELS, PIXELS)
BATCH, CHANNEL, ROW, COLUMN = torch.meshgrid(*map(torch.arange, SIZES), indexing="ij")
SAMPLE, OWN = VALUE[0] == BATCH, VALUE[1] == CHANNEL
RANK = VALUE[0] % RANKS == BATCH % RANKS
GROUP = VALUE[1] // 2 == CHANNEL // 2
PIXEL = (VALUE[2] == ROW) & (VALUE[3] == COLUMN)
GHOST = RANK & (VALUE[0] // RANKS % 2 == BATCH // RANKS % 2)
AXES = {
    "bn": RANK & OWN,
    "syncbn": OWN,
    "ghost_bn": GHOST & OWN,
    "batch_renorm": RANK & OWN,
    "switchable": (RANK & OWN) | SAMPLE,
    "batch_instance": RANK & OWN,
    "frozen_bn": SAMPLE & OWN & PIXEL,
    "none": SAMPLE & OWN & PIXEL,
    "gn": SAMPLE & GROUP,
    "evonorm_s0": SAMPLE & GROUP,
    "ln": SAMPLE,
    "in": SAMPLE & OWN,
    "frn": SAMPLE & OWN,
    "ln2d": SAMPLE & PIXEL,
    "rms": SAMPLE & PIXEL,
}
"""What the output at VALUE depends on, in training: of every norm."""

OWN_PARAMETERS = {
    "batch_instance": {"gate"},
    "switchable": {"mean_weight", "var_weight"},
    "frn": {"tau"},
    "evonorm_s0": {"v"},
}
"""A norm's parameters besides gamma and beta. None of them decays."""

SETTINGS = {
    "ghost_bn": {"ghost_batch_size": 2},
    "batch_renorm": {"bn_batches": 0, "d_max_batches": 4, "r_max_batches": 8},
}
"""What a norm needs in order to show what it does within a few small batches, where its defaults do not."""

B, C, H, W = 4, 6, 4, 5
EPS = 1e-3
FORMULAS = {}
"""f(x, the layer's state, whether in training) -> y, for x of this shape."""


def formula(function):
    FORMULAS[function.__name__] = function
    return function


def standardised(x, mean, var):
    return (x - mean) / np.sqrt(var + EPS)


def moments(x, axes):
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def running_moments(x):
    """What BatchNorm's running statistics move towards: the mean and the unbiased variance of each channel."""
    return np.array([x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)])


RUNNING = {"ghost_bn": lambda x: (running_moments(x[::2]) + running_moments(x[1::2])) / 2}
"""What those of a norm move towards after a batch x, where it is not what BatchNorm's do."""


def softmax(w):
    return np.exp(w) / np.exp(w).sum()


def affine(xhat, s):
    return np.einsum("bchw,cij->bchw", xhat, s["weight"]) + s["bias"]


@formula
def ghost_bn(x, s, train):
    if not train:
        return affine(standardised(x, s["running_mean"], s["running_var"]), s)
    y = np.empty_like(x)
    for part in range(2):  # parts of two samples, dealt like cards
        y[part::2] = affine(standardised(x[part::2], *moments(x[part::2], (0, 2, 3))), s)
    return y


@formula
def batch_renorm(x, s, train):
    if not train:
        return affine(standardised(x, s["running_mean"], s["running_var"]), s)
    mean, var = moments(x, (0, 2, 3))
    running_std = np.sqrt(s["running_var"] + EPS)
    r_limit, d_limit = 1 + 2 * (1 / 9), 5 * (1 / 5)  # of the first batch: 8 and 4 batches until the last
    r = np.clip(np.sqrt(var + EPS) / running_std, 1 / r_limit, r_limit)
    d = np.clip((mean - s["running_mean"]) / running_std, -d_limit, d_limit)
    return affine(standardised(x, mean, var) * r + d, s)


@formula
def switchable(x, s, train):
    batch = moments(x, (0, 2, 3)) if train else (s["running_mean"], s["running_var"])
    parts = [moments(x, (2, 3)), moments(x, (1, 2, 3)), batch]
    mean = sum(w * part[0] for w, part in zip(softmax(s["mean_weight"]), parts, strict=True))
    var = sum(w * part[1] for w, part in zip(softmax(s["var_weight"]), parts, strict=True))
    return affine(standardised(x, mean, var), s)


@formula
def batch_instance(x, s, train):
    batch = moments(x, (0, 2, 3)) if train else (s["running_mean"], s["running_var"])
    gate = np.clip(s["gate"], 0, 1)
    return affine(gate * standardised(x, *batch) + (1 - gate) * standardised(x, *moments(x, (2, 3))), s)


@formula
def frozen_bn(x, s, train):
    return affine(standardised(x, s["running_mean"], s["running_var"]), s)


@formula
def none(x, s, train):
    return affine(x, s)


@formula
def ln2d(x, s, train):
    return affine(standardised(x, *moments(x, (1,))), s)


@formula
def rms(x, s, train):
    return affine(x / np.sqrt(np.einsum("bchw,bchw->bhw", x, x)[:, None] / C + EPS), s)


@formula
def frn(x, s, train):
    nu2 = np.einsum("bchw,bchw->bc", x, x)[..., None, None] / (H * W)
    return np.maximum(affine(x / np.sqrt(nu2 + EPS), s), s["tau"])


@formula
def evonorm_s0(x, s, train):
    var = x.reshape(B, 3, -1).var(2).repeat(2, axis=1)[..., None, None]
    return affine(x / (1 + np.exp(-s["v"] * x)) / np.sqrt(var + EPS), s)
