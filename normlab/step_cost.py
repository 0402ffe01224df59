"""What a training step keeps in memory and what its norm layers send, found from shapes alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import functional_call

from normlab import data
from normlab.config import Config
from normlab.config.config import Precision
from normlab.config.norm import CustomNormConfig, SyncBatchNormConfig
from normlab.data.dataset import Dataset
from normlab.models import build_model
from normlab.norms import SyncBatchNorm, convert_norms
from normlab.numerics import Numerics


@dataclass(frozen=True)
class StepCost:
    """The cost of one step on one rank, as if it trained on a CPU."""

    saved_bytes: int | None
    """What autograd keeps from the forward until the backward; None if the model needs values, not only shapes."""

    messages: int | None
    """Collectives that norm layers call; DDP's for the gradients come on top. None for a user's own norm that
    needs other ranks."""

    message_bytes: int
    """Bytes that the rank contributes to them."""


def step_cost(cfg: Config, dataset: Dataset, ranks: int) -> StepCost:
    """The cost of a step of `cfg` with each of `ranks`, real or virtual, in a process of its own."""
    image_shape = data.augmentation(cfg.data, dataset).image_shape
    precision = Precision.fp32 if cfg.precision is Precision.tf32 else cfg.precision  # of the same size
    numerics = Numerics.of(precision, torch.device("cpu"), channels_last=cfg.channels_last)
    model = numerics.module(build_model(cfg.model, len(dataset.classes), seed=cfg.seed))
    norm = cfg.norm
    if isinstance(norm, SyncBatchNormConfig):
        norm = replace(norm, sync_group_size=None)  # one process has no groups of ranks
    model = convert_norms(model, norm).train()
    with FakeTensorMode() as fake:
        owned: dict[str, Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            owned[name] = fake.from_tensor(tensor)
        images_BCHW = torch.empty(cfg.batch_size, *image_shape, dtype=numerics.dtype)
        images_BCHW = images_BCHW.contiguous(memory_format=numerics.memory_format)

        def forward() -> Any:
            with numerics.autocast:
                return functional_call(model, owned, (images_BCHW,))

        try:
            saved = saved_bytes(forward, owned.values())
        except Exception:  # a user's model may compute with values; planning has run it, so that is no mistake
            saved = None
    if isinstance(cfg.norm, CustomNormConfig) and cfg.norm.needs_ranks:
        return StepCost(saved, None, 0)
    shared = cfg.norm.normalization_batch_size(1, ranks) > 1
    return StepCost(saved, *(traffic(model, numerics.dtype) if shared else (0, 0)))


def traffic(model: nn.Module, dtype: torch.dtype) -> tuple[int, int]:
    """(collectives, bytes contributed) in a step's forward and backward: see docs/cost.md."""
    channels = [layer.num_features for layer in model.modules() if isinstance(layer, SyncBatchNorm)]
    values = sum(gathered(c) + reduced(c) for c in channels)
    return 2 * len(channels), values * torch.promote_types(dtype, torch.float32).itemsize


def gathered(channels: int) -> int:
    """Values that a rank contributes to a SyncBN layer's forward: two statistics per channel, and their count."""
    return 2 * channels + 1


def reduced(channels: int) -> int:
    """Values that it contributes to the backward: two sums per channel."""
    return 2 * channels


def saved_bytes(forward: Callable[[], Any], owned: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps from `forward` until its backward.

    Each saved tensor counts with its whole storage, but only once if tensors share it, and so does the layer's
    input. Storages of `owned` (parameters and buffers) do not, since they exist anyway.
    """
    storages: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = forward()  # kept alive, so that no storage is freed and its address reused
    for tensor in owned:
        storages.pop(tensor.untyped_storage()._cdata, None)
    del y
    return sum(storages.values())
