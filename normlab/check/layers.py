"""The layers that are checked, their inputs, and their outputs."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normlab.bench.measure import Traffic
from normlab.bench.ranks import RankPool
from normlab.config.norm import NormConfig, SyncBatchNormConfig
from normlab.models import seeded
from normlab.norms import convert_norms

Shape = tuple[int, int, int, int]
Values = dict[str, Tensor]
"""The results of a step, under the names that messages use."""

OUTPUT, INPUT_GRADIENT = "the output", "the gradient of the input"


@dataclass(frozen=True)
class OnRank:
    """The results of one rank."""

    step: Values
    state: dict[str, Tensor]
    """The layer's state dict after the step."""

    evaluated: Tensor
    """The output of an evaluation after the step, for the same input."""

    collectives: int
    """Collectives in the step that torch knows of."""

    evaluation_collectives: int


@dataclass(frozen=True)
class Subject:
    """A norm, the shape of a rank's batch, and the ranks to try it on."""

    norm: NormConfig
    shape: Shape
    pool: RankPool

    @cached_property
    def _layer(self) -> nn.Module:
        norm = self.norm
        if isinstance(norm, SyncBatchNormConfig):
            norm = replace(norm, sync_group_size=None)  # its groups consist of processes, and there is one
        return new_layer(norm, self.shape)

    def layer(self, *, training: bool = True) -> nn.Module:
        """A copy of the same layer each time, in float64."""
        return copy.deepcopy(self._layer).train(training)

    def batch(self, number: int = 0) -> tuple[Tensor, Tensor]:
        """(an input, the gradient of its output), float64, different for each number."""
        generator = torch.Generator().manual_seed(number)
        x, dy = torch.randn((2, *self.shape), dtype=torch.float64, generator=generator).unbind()
        return 2 * x + 1, dy

    def on_ranks(self, world_size: int) -> list[OnRank]:
        """Run batch r on rank r of `world_size` real ranks."""
        batches = [self.batch(rank) for rank in range(world_size)]
        state = self._layer.state_dict()
        return self.pool.run(_on_rank, self.norm, self.shape, state, batches, world_size=world_size)

    def alone(self, world_size: int) -> list[tuple[Values, nn.Module]]:
        """(a step, the layer after it) for each group of ranks that share their statistics, in one process.

        A group's batch is the union of its ranks' batches.
        """
        size = 1
        if self.norm.needs_ranks:
            size = self.norm.normalization_batch_size(self.shape[0], world_size) // self.shape[0]
        done = []
        for first in range(0, world_size, size):
            xs, dys = zip(*(self.batch(rank) for rank in range(first, first + size)), strict=True)
            layer = self.layer()
            done.append((step(layer, torch.cat(xs), torch.cat(dys)), layer))
        return done


def new_layer(norm: NormConfig, shape: Shape, virtual_ranks: int = 1) -> nn.Module:
    """A layer as a conversion makes it, in float64, with parameters and statistics off their initial values.

    Multiplying by 1, or adding 0, would hide mistakes.
    Collective for norm=syncbn in a process group.
    """
    with seeded(0):
        layer = nn.BatchNorm2d(shape[1], dtype=torch.float64)
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
        carried = {id(parameter) for parameter in layer.parameters()}
        made: Any = convert_norms(nn.Sequential(layer, nn.ReLU()), norm, virtual_ranks)
        with torch.no_grad():
            for parameter in made[0].parameters():
                if id(parameter) not in carried:
                    parameter.copy_(0.8 * parameter + 0.1 * torch.rand_like(parameter))
    new: nn.Module = made[0]
    return new


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> Values:
    """A forward and a backward."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(dy)
    assert x.grad is not None
    gradients = {f"the gradient of {n}": p.grad for n, p in layer.named_parameters() if p.grad is not None}
    return {OUTPUT: y.detach(), INPUT_GRADIENT: x.grad, **gradients}


def _on_rank(
    rank: int,
    norm: NormConfig,
    shape: Shape,
    state: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
) -> OnRank:
    layer = new_layer(norm, shape)
    layer.load_state_dict(state)
    with Traffic() as training:
        done = step(layer.train(), *batches[rank])
    after = copy.deepcopy(layer.state_dict())
    with Traffic() as evaluation, torch.no_grad():
        evaluated = layer.eval()(batches[rank][0])
    if len(batches) > 1:
        dist.barrier()  # if a rank left before another has connected to it, that one would fail
    return OnRank(done, after, evaluated, len(training.calls), len(evaluation.calls))


def united(steps: Sequence[Values]) -> Values:
    """The steps of ranks as one step on the union of their batches: parameter gradients are sums over ranks."""
    joined = {name: torch.cat([one[name] for one in steps]) for name in (OUTPUT, INPUT_GRADIENT)}
    summed = steps[0].keys() - joined.keys()
    return joined | {name: torch.stack([one[name] for one in steps]).sum(0) for name in summed}


def worst(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """(how far apart, name) of the entry that differs most, among the names in both."""
    return max(
        ((apart(ours[name], theirs[name]), name) for name in ours.keys() & theirs.keys()), default=(0.0, "")
    )


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value or to 1, whichever is larger; inf for nan."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.numel() or torch.equal(ours, theirs):
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1)
    return float("inf") if difference.isnan() else float(difference)
