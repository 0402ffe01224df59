"""Diagnostics of norm layers: how far running statistics are from precise ones, and what each layer outputs.

Each layer gives one value per probe: a few samples in train mode, where each layer normalises chunks of NBS
samples separately (see running_stats). With r the running statistics that an evaluation uses, p the precise ones
of the probe, y a layer's output (with the activation that it holds), c its channels and v its logical ranks:

    mean_gap          sqrt(mean_c ((r_mean - p_mean) / sqrt(r_var + eps))^2)
    var_gap           sqrt(mean_c log((r_var + eps) / (p_var + eps))^2)
    mean_spread       sqrt(mean_c Var_v[mean_v] / (E_v[var_v] + eps)),  var_spread: see RankStatistics.spread
    dead_channels     share of channels with max ReLU(y) - min ReLU(y) <= 1e-6 over all samples and pixels: a ReLU
                      after them is the same everywhere, because it clips everything or because gamma is 0
    activation_scale  sqrt(mean y^2) over samples, channels and pixels
    gamma_range       max_c gamma - min_c gamma

Only layers with running statistics have gaps and spreads, and only layers with gamma have a gamma_range.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normlab.distributed import Ranks
from normlab.norms.running_stats import RankStatistics, chunked_twin, observed_moments, tracking_layers

DEAD_RANGE = 1e-6
PerLayer = dict[str, list[float]]
"""Tag -> its value in each layer that has one, in the model's order."""


class _OutputObserver:
    """A forward hook that accumulates statistics of a layer's outputs."""

    def __init__(self, device: torch.device) -> None:
        self.sums_2 = torch.zeros(2, dtype=torch.float64, device=device)
        """The sum of squares of all values, and their number."""
        self.range_2C: Tensor | None = None
        """The largest value of each channel, and minus its smallest."""

    def __call__(self, layer: nn.Module, args: Any, y: Tensor) -> None:
        pixels = [0, *range(2, y.dim())]
        extremes_2C = torch.stack([y.amax(pixels), y.amin(pixels).neg_()]).double()
        self.range_2C = extremes_2C if self.range_2C is None else self.range_2C.maximum(extremes_2C)
        wide = torch.promote_types(y.dtype, torch.float32)
        self.sums_2[0] += torch.linalg.vector_norm(y, dtype=wide).double().square()
        self.sums_2[1] += y.numel()


@dataclass(frozen=True)
class Probe:
    """What a probe measured."""

    precise: tuple[Tensor, Tensor] | None
    """Mean and unbiased variance (N,) of the layers with running statistics; None if there are none."""

    outputs: PerLayer
    """dead_channels and activation_scale."""


def probe(
    model: nn.Module,
    norm_names: Sequence[str],
    batches: Iterable[Tensor],
    chunk_size: int,
    ranks: Ranks,
    *,
    autocast: torch.autocast,
) -> Probe:
    """Measure what the norm layers `norm_names` of `model` do with all ranks' `batches`, in train mode.

    The model is not touched: what runs is a twin that shares its parameters and changes none of them, with chunks
    as in precise_statistics.
    Collective: every rank must call, with its own batches, of which there may be none.
    """
    twin, chunk_observers = chunked_twin(model, chunk_size)
    observers = [_OutputObserver(ranks.device) for _ in norm_names]
    for name, observer in zip(norm_names, observers, strict=True):
        twin.get_submodule(name).register_forward_hook(observer)
    with torch.no_grad(), autocast:
        for images_BCHW in batches:
            twin(images_BCHW)
    channels = [0 if o.range_2C is None else o.range_2C.shape[1] for o in observers]
    # A rank without batches does not know how many channels come out of a layer.
    channels_L = ranks.gather(torch.tensor(channels, device=ranks.device)).amax(0).tolist()
    empty = [torch.full((2, c), -torch.inf, dtype=torch.float64, device=ranks.device) for c in channels_L]
    own = [e if o.range_2C is None else o.range_2C for o, e in zip(observers, empty, strict=True)]
    range_2N = ranks.gather(torch.cat(own, dim=1)).amax(0)
    sums_L2 = ranks.sum(torch.stack([observer.sums_2 for observer in observers]))
    seen_L = sums_L2[:, 1] > 0
    scale_L = (sums_L2[:, 0] / sums_L2[:, 1]).sqrt()[seen_L]
    dead_L = [dead_channels(range_2C) for range_2C in range_2N.split(channels_L, dim=1) if range_2C.numel()]
    outputs = {"dead_channels": dead_L, "activation_scale": scale_L.tolist()}
    return Probe(observed_moments(chunk_observers, ranks) if chunk_observers else None, outputs)


def dead_channels(range_2C: Tensor) -> float:
    """The share of channels that are dead, from each one's largest value and its smallest, negated."""
    passed_C = range_2C[0].relu() - (-range_2C[1]).relu()
    return float((passed_C <= DEAD_RANGE).double().mean())


def gaps(model: nn.Module, running: tuple[Tensor, Tensor], precise: tuple[Tensor, Tensor]) -> PerLayer:
    """mean_gap and var_gap of each layer with running statistics; both given as (N,), (N,)."""
    found: PerLayer = {"mean_gap": [], "var_gap": []}
    layers = tracking_layers(model).values()
    by_layer = [
        values_N.double().split([layer.num_features for layer in layers]) for values_N in running + precise
    ]
    for layer, r_mean_C, r_var_C, p_mean_C, p_var_C in zip(layers, *by_layer, strict=True):
        scaled_C = (r_mean_C - p_mean_C) / (r_var_C + layer.eps).sqrt()
        log_ratio_C = ((r_var_C + layer.eps) / (p_var_C + layer.eps)).log()
        found["mean_gap"].append(_root_mean_square(scaled_C))
        found["var_gap"].append(_root_mean_square(log_ratio_C))
    return found


def spreads(model: nn.Module, statistics: RankStatistics) -> PerLayer:
    """mean_spread and var_spread of each layer with running statistics."""
    channels = [layer.num_features for layer in tracking_layers(model).values()]
    found: PerLayer = {"mean_spread": [], "var_spread": []}
    for mean_RC, var_RC in zip(
        statistics.mean_RN.split(channels, dim=1), statistics.var_RN.split(channels, dim=1), strict=True
    ):
        for tag, value in RankStatistics(mean_RC, var_RC).spread().items():
            found[tag.rpartition("/")[2]].append(value)
    return found


def gamma_ranges(model: nn.Module, norm_names: Sequence[str]) -> PerLayer:
    """gamma_range of each norm layer with gamma."""
    weights = [getattr(model.get_submodule(name), "weight", None) for name in norm_names]
    return {"gamma_range": [float(w.detach().max() - w.detach().min()) for w in weights if w is not None]}


def _root_mean_square(values_C: Tensor) -> float:
    return float(values_C.square().mean().sqrt())


def of_network(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each tag's mean over layers and its worst value: the largest, but for activation_scale the furthest from 1.

    A norm with gamma 1 has a scale of 1; 2 and 1/2 are equally far from it.
    """
    scalars = {}
    for tag, layers in values.items():
        if layers:
            values_L = torch.tensor(layers, dtype=torch.float64)
            badness_L = values_L.log().abs() if tag.endswith("activation_scale") else values_L
            scalars[tag] = float(values_L.mean())
            scalars[f"{tag}_worst"] = float(values_L[badness_L.argmax()])
    return scalars
