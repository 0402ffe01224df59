"""Finding the BatchNorm layers of a model, and replacing them."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config.norm import BatchStatisticsConfig, EpsConfig

Build = Callable[[_BatchNorm, str], nn.Module]
"""(layer, its dotted name) -> the layer that replaces it. A norm's builder returns one of these."""

BATCH_NORMS: tuple[type[_BatchNorm], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""The types that a conversion replaces. A subclass of one may do more than its base, which would be lost."""

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def layer_label(name: str, layer: nn.Module) -> str:
    """A layer's name in messages: `layer1.0.bn1 (BatchNorm2d)`."""
    return f"{name or 'the model itself'} ({type(layer).__name__})"


def find_batch_norms(
    model: nn.Module, types: tuple[type[_BatchNorm], ...], error: type[Exception]
) -> dict[str, _BatchNorm]:
    """Dotted name -> layer for each BatchNorm whose exact type is in `types`; a shared layer is listed once.

    Raises: `error` if a layer is of another subclass of BatchNorm.
    """
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    for name, layer in found.items():
        if type(layer) not in types:
            raise error(
                f"layer {layer_label(name, layer)} is none of {', '.join(t.__name__ for t in types)}, "
                "and a conversion would lose what its type adds; build the model with one of these there "
                "(and a layer of its own for the rest), or convert that layer before."
            )
    return found


def refuse_hooks(layers: Mapping[str, nn.Module], error: type[Exception]) -> None:
    """Raises: `error` if a layer has hooks, which a new layer in its place would not have.

    The hook of `with_activation_of` does not count: the new layer gets it too.
    """
    for name, layer in layers.items():
        of_kind = {kind: (getattr(layer, kind, None) or {}).values() for kind in _HOOKS}
        hooks = [kind for kind, given in of_kind.items() if any(hook is not _drop_and_activate for hook in given)]
        if hooks:
            raise error(
                f"layer {layer_label(name, layer)} has hooks ({', '.join(hooks)}) that its conversion would "
                "lose; remove them and register them again on the converted layer."
            )


def replace_layers(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`model` with each key of `replacements` replaced by its value, wherever it is used."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if child is not None and child in replacements:
                setattr(parent, key, replacements[child])
    return replacements.get(model, model)


def settings_of(layer: _BatchNorm) -> dict[str, Any]:
    """The constructor's arguments for another BatchNorm with the settings of `layer`, which allocates nothing.

    `with_parameters_of` then gives it the parameters and buffers of `layer`.
    """
    return {
        "num_features": layer.num_features,
        "eps": layer.eps,
        "momentum": layer.momentum,
        "affine": layer.affine,
        "track_running_stats": layer.track_running_stats,
        "device": "meta",
    }


def with_parameters_of(new: nn.Module, old: _BatchNorm) -> nn.Module:
    """`new` with the Parameter objects of `old` (so dtype, device, requires_grad) and its training flag.

    Parameters that only `new` has go to that device and dtype.
    """
    new.weight, new.bias = old.weight, old.bias
    like = old.weight if old.weight is not None else old.running_mean
    for name, parameter in new.named_parameters():
        if like is not None and name not in ("weight", "bias"):
            setattr(new, name, nn.Parameter(parameter.detach().to(like.device, like.dtype)))
    new.training = old.training
    return new


def set_up(layer: _BatchNorm, norm: BatchStatisticsConfig) -> _BatchNorm:
    """`layer` with norm.eps and norm.momentum, if the norm has them and they are given."""
    if isinstance(norm, EpsConfig):
        layer.eps = eps_of(norm, layer)
    if norm.momentum is not None:
        layer.momentum = norm.momentum
    return layer


def eps_of(norm: EpsConfig, layer: _BatchNorm) -> float:
    """norm.eps, or else the eps of the BatchNorm that is replaced, for any norm.

    So the norms of a comparison differ only in their statistics, and the model keeps the eps that its authors
    chose.
    """
    return layer.eps if norm.eps is None else norm.eps


def fused_batch_norms() -> tuple[type[_BatchNorm], ...]:
    """timm's BatchNorm2d with dropout and activation in one layer; empty unless timm is loaded."""
    timm_layers = sys.modules.get("timm.layers.norm_act")
    return (timm_layers.BatchNormAct2d,) if timm_layers is not None else ()


def fused_activation(layer: nn.Module) -> nn.Module | None:
    """The activation inside a timm layer; None if there is none."""
    activation = getattr(layer, "act", None)
    return None if isinstance(activation, nn.Identity) else activation


def with_activation_of(new: nn.Module, old: nn.Module, *, replaced: bool = False) -> nn.Module:
    """`new`, followed by the dropout and activation in `old`, if any, under their names.

    `replaced`: the activation is already part of `new`.
    """
    if new is not old and isinstance(getattr(old, "act", None), nn.Module):
        new.drop, new.act = old.drop, nn.Identity() if replaced else old.act
        new.register_forward_hook(_drop_and_activate)
    return new


def _drop_and_activate(layer: Any, args: Any, normalised: Any) -> Any:
    return layer.act(layer.drop(normalised))
