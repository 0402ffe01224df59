"""The user's own norms."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normlab.config.norm import CustomNormConfig
from normlab.config.section import ConfigError
from normlab.norms.replace import Build
from normlab.targets import call_target, named, said_in, without_gradient

_NEEDS_BATCH = "_normlab_needs_batch"
"""An attribute of each layer made here: whether it needs its rank's batch."""


def custom_norm(norm: CustomNormConfig, virtual_ranks: int) -> Build:
    """The layer that `norm.target` returns for num_features and `norm.args`.

    Shape: (B, C, ...) -> (B, C, ...). gamma and beta carry over to parameters `weight` and `bias` of shape (C,).
    Other parameters and buffers keep the values that the target gives them, on the replaced layer's device and in
    its dtype. Virtual ranks: see OnVirtualRanks if the norm needs its rank's batch; else all samples at once.
    Raises: ConfigError if the target cannot be imported, raises, or does not return a module.
    """

    def build(layer: _BatchNorm, name: str) -> nn.Module:
        new = call_target("norm.target", norm.target, norm.args, num_features=layer.num_features)
        if not isinstance(new, nn.Module):
            raise ConfigError(f"norm.target={norm.target} gave {named(new)}; let it return an nn.Module.")
        like = layer.weight if layer.weight is not None else layer.running_mean
        if like is not None:
            new.to(like.device, like.dtype)
        for affine in ("weight", "bias"):
            own, carried = getattr(new, affine, None), getattr(layer, affine)
            if isinstance(own, nn.Parameter) and carried is not None and own.shape == carried.shape:
                setattr(new, affine, carried)
        if norm.needs_batch and virtual_ranks > 1:
            new = OnVirtualRanks(new, virtual_ranks)
        setattr(new, _NEEDS_BATCH, norm.needs_batch)
        return new.train(layer.training)

    return build


class OnVirtualRanks(nn.Module):
    """One layer per virtual rank, applied to that rank's samples only: sample i belongs to rank i % V.

    Parameters are shared; buffers are each rank's own. Eval: rank 0's layer on all samples.
    Shape: (B*V, C, ...) -> (B*V, C, ...).
    Raises: ValueError if V does not divide the samples.
    """

    def __init__(self, layer: nn.Module, virtual_ranks: int) -> None:
        super().__init__()
        others = [with_same_parameters(layer) for _ in range(virtual_ranks - 1)]
        self.layers = nn.ModuleList([layer, *others])

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            y: Tensor = self.layers[0](x)
            return y
        if len(x) % len(self.layers):
            raise ValueError(f"a batch of {len(x)} samples cannot be split over {len(self.layers)} virtual ranks")
        return _dealt(x, list(self.layers))


class InChunks(nn.Module):
    """Runs a layer on each chunk of `chunk_size` samples separately; with k chunks, sample i is in chunk i % k."""

    def __init__(self, layer: nn.Module, chunk_size: int) -> None:
        super().__init__()
        self.layer = layer.layers[0] if isinstance(layer, OnVirtualRanks) else layer
        self.chunk_size = chunk_size

    def forward(self, x: Tensor) -> Tensor:
        return _dealt(x, [self.layer] * (len(x) // self.chunk_size))


def _dealt(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """Apply layer i % K to sample i. Each layer gets its samples contiguous, as on a rank."""
    parts = x.unflatten(0, (-1, len(layers))).unbind(1)
    return torch.stack([layer(part.contiguous()) for layer, part in zip(layers, parts, strict=True)], 1).flatten(
        0, 1
    )


def with_same_parameters(layer: nn.Module) -> nn.Module:
    """A copy of a layer that has the same Parameters, and buffers of its own."""
    return copy.deepcopy(layer, {id(parameter): parameter for parameter in layer.parameters()})


def custom_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of `model` that custom_norm made."""
    return [layer for layer in model.modules() if hasattr(layer, _NEEDS_BATCH)]


def chunked(layer: nn.Module, chunk_size: int) -> nn.Module:
    """A layer that custom_norm made, run on each chunk separately if it needs its rank's batch."""
    return InChunks(layer, chunk_size) if getattr(layer, _NEEDS_BATCH) else layer


def check_layers(norm: CustomNormConfig, shapes: Iterable[tuple[str, torch.Size]], world_size: int = 1) -> None:
    """Check that the target's layers take these shapes, keep shape and dtype, and need what they declare.

    Two forwards of two samples per shape, in training and in evaluation, and a backward; a norm that needs
    other ranks is only evaluated, since there are none. On several ranks every parameter must have a gradient,
    as DDP requires.
    Raises: ConfigError that names the layer and what it returned, or where it raised.
    """
    build = custom_norm(norm, 1)
    layer_of: dict[tuple[int, ...], str] = {}
    for name, shape in shapes:
        layer_of.setdefault((min(2, shape[0]), *shape[1:]), name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for of_two, name in layer_of.items():
            layer, x = build(nn.BatchNorm2d(of_two[1]), name), torch.randn(of_two)
            for training in (False,) if norm.needs_ranks else (True, False):
                where = f"norm.target={norm.target}: {'training' if training else 'evaluation'}, layer {name}"
                y, with_another = (
                    _forward(layer.train(training), of_batch, where)
                    for of_batch in (x, torch.cat([x[:1], 3 * x[1:] + 1]))
                )
                if training:
                    _check_gradients(layer, x, where, world_size)
                if training and norm.needs_batch:
                    continue
                if (y[0] - with_another[0]).abs().max() > 1e-3 * y[0].abs().max():
                    fix = "set needs_batch = True on the target" if training else "keep running statistics for it"
                    raise ConfigError(f"{where}: a sample's output depends on the rest of its batch; {fix}.")


def _forward(layer: nn.Module, x: Tensor, where: str) -> Tensor:
    """The output of a layer, which is left unchanged. Raises: ConfigError."""
    torch.default_generator.manual_seed(0)
    try:
        y = copy.deepcopy(layer)(x)
    except Exception as error:
        raise ConfigError(f"{where}: {said_in(error)}.") from error
    if not isinstance(y, Tensor) or (y.shape, y.dtype) != (x.shape, x.dtype):
        raise ConfigError(f"{where}: for {named(x)} it gave {named(y)}; let it keep the shape and the dtype.")
    return y


def _check_gradients(layer: nn.Module, x: Tensor, where: str, world_size: int) -> None:
    layer = copy.deepcopy(layer)
    try:
        with torch.enable_grad():
            y = layer(1 * x.clone().requires_grad_())
            if y.requires_grad:
                y.sum().backward()
    except Exception as error:
        raise ConfigError(f"{where}, with gradients: {said_in(error)}.") from error
    if world_size > 1 and (without := without_gradient(layer)):
        raise ConfigError(
            f"{where}: {without}, which world_size={world_size} does not allow (DistributedDataParallel); use "
            "each parameter in every forward, or make it a buffer."
        )
