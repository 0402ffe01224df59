"""The one place where a model gets its norm: models are built with BatchNorm and converted."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config import ConfigError
from normlab.config.norm import NormConfig
from normlab.config.section import imported
from normlab.markdown import markdown_table
from normlab.norms.activations import Activations, find_activations
from normlab.norms.batch_renorm import BatchRenorm
from normlab.norms.ghost_batch_norm import GhostBatchNorm
from normlab.norms.replace import (
    BATCH_NORMS,
    Build,
    find_batch_norms,
    fused_activation,
    fused_batch_norms,
    refuse_hooks,
    replace_layers,
    settings_of,
    with_activation_of,
    with_parameters_of,
)
from normlab.norms.sync_batch_norm import SyncBatchNorm
from normlab.norms.virtual_batch_norm import VirtualBatchNorm
from normlab.norms.weight_standardization import standardised_convolutions

LEFT_ALONE = "left alone"

_EVALUATED_AS_BATCH_NORM = (SyncBatchNorm, nn.SyncBatchNorm, VirtualBatchNorm, GhostBatchNorm, BatchRenorm)


@dataclass(frozen=True)
class NormLayer:
    """What a conversion did with one norm layer."""

    name: str
    """Dotted; the first one, if the layer is used in several places."""

    was: str
    """Its type, with the activation in it."""

    now: str
    """Its type after the conversion, or LEFT_ALONE."""

    channels: int | None
    groups: int | None
    """The number of groups of a GroupNorm; None for other norms."""


def convert_norms(
    model: nn.Module, norm: NormConfig, virtual_ranks: int = 1, report: list[NormLayer] | None = None
) -> nn.Module:
    """`model` with every BatchNorm1d, 2d and 3d in it replaced by the configured norm; other layers stay.

    Affine Parameters stay the same objects, so values, dtype, device and requires_grad carry over (frozen_bn
    turns them into buffers); so do the training flag and, if the norm has them, the running statistics. A
    layer that is used in several places is converted once. timm's BatchNormAct2d counts as a BatchNorm2d; its
    activation and dropout move to the new layer under the same names. Works on the meta device. If anything
    is refused, nothing has been changed.
    A norm that is also an activation (frn, evonorm_s0) removes the one that follows; if none does, its linear
    form is used. See normlab.norms.activations.
    `virtual_ranks` above 1: a batch has the samples of that many ranks, sample i belongs to rank
    i % virtual_ranks, and each norm treats them as those ranks would.
    `report` gets a row for each norm layer, including those that are not BatchNorm.
    Returns the model, which is another object only if it is itself a BatchNorm.

    Collective for norm=syncbn in a process group: every rank must call.
    Raises: ConfigError on an unknown norm, a model without BatchNorm, a layer of another subclass of
    BatchNorm or with hooks, groups that do not divide a layer's channels, activations that cannot be determined.
    """
    layers = norm_layers(model)
    if norm.name != "bn" or virtual_ranks > 1:  # else the layers are kept
        refuse_hooks(layers, ConfigError)
    followers = find_activations(model, layers) if norm.builder_without_activation else Activations({})
    convolutions = standardised_convolutions(model) if norm.weight_standardization else {}
    build: Build = norm.made_by()(norm, virtual_ranks)
    linear = build
    if norm.builder_without_activation:
        linear = imported(norm.builder_without_activation)(norm, virtual_ranks)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in layers.items():
        replaced = followers.of_norm.get(name) is not None
        new = (build if replaced else linear)(layer, name)
        replacements[layer] = with_activation_of(new, layer, replaced=replaced)
    if report is not None:
        report += [
            _row(name, layer, replacements.get(layer), followers.of_norm.get(name))
            for name, layer in _all_norms(model).items()
        ]
    followers.remove(model)
    return replace_layers(model, replacements | convolutions)


def to_batch_norm(model: nn.Module, kind: type[_BatchNorm] = nn.BatchNorm2d) -> nn.Module:
    """`model` with a BatchNorm of `kind` for each layer that evaluates like one: to export or share it.

    These are SyncBatchNorm (torch's too), VirtualBatchNorm, GhostBatchNorm and BatchRenorm; other layers stay as
    they are. Parameters and running statistics stay the same objects, and the training flag carries over; with
    virtual ranks, rank 0's statistics are kept. `kind` sets the number of input axes, which the layers do not
    know: if a model has layers of several kinds, convert its parts one after the other.
    Eval: the same outputs as before. Train: the statistics are those of this rank's whole batch.
    Returns the model, which is another object only if it is itself such a layer.
    Raises: ConfigError on a layer with hooks, before anything has been changed.
    """
    layers = {name: layer for name, layer in model.named_modules() if type(layer) in _EVALUATED_AS_BATCH_NORM}
    refuse_hooks(layers, ConfigError)
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in layers.values():
        assert isinstance(layer, _BatchNorm)
        new = kind(**settings_of(layer))
        with_parameters_of(new, layer)
        for name in ("running_mean", "running_var"):
            rows = getattr(layer, name)
            setattr(new, name, rows[0].clone() if rows is not None and rows.dim() == 2 else rows)
        new.num_batches_tracked = layer.num_batches_tracked
        replacements[layer] = with_activation_of(new, layer)
    return replace_layers(model, replacements)


def norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Dotted name -> layer of every BatchNorm that a conversion replaces.

    Raises: ConfigError if there is none, or one of a type that cannot be converted.
    """
    layers = find_batch_norms(model, (*BATCH_NORMS, *fused_batch_norms()), ConfigError)
    if not layers:
        others = ", ".join(sorted({type(layer).__name__ for layer in _all_norms(model).values()}))
        raise ConfigError(
            f"{type(model).__name__} has no BatchNorm layer{f' (but {others})' if others else ''}, "
            "so its norm cannot be chosen; choose a model that is built with BatchNorm."
        )
    return layers


def format_report(report: Sequence[NormLayer]) -> str:
    """A conversion's report as a Markdown table."""
    rows = []
    for row in report:
        numbers = ["" if number is None else str(number) for number in (row.channels, row.groups)]
        rows.append([row.name or "(the model itself)", row.was, row.now, *numbers])
    return markdown_table(["layer", "from", "to", "channels", "groups"], rows)


def _all_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Normalization layers; unknown types are recognised by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) or ("Norm" in type(layer).__name__ and not list(layer.children()))
    }


def _row(name: str, layer: nn.Module, new: nn.Module | None, replaced: str | None) -> NormLayer:
    fused = fused_activation(layer) if isinstance(layer, _BatchNorm) else None
    activation = replaced or (type(fused).__name__ if fused else None)
    was = type(layer).__name__ + (f" + {activation}" if activation else "")
    channels = next((getattr(layer, k) for k in ("num_features", "num_channels") if hasattr(layer, k)), None)
    now = LEFT_ALONE if new is None else type(new).__name__
    return NormLayer(name, was, now, channels, getattr(new, "num_groups", None))
