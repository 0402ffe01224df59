"""Measured on real ranks: collectives of several sizes, and whole training steps with and without them."""

import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normlab.bench.cost_model import Network
from normlab.bench.measure import Collective, Traffic, norm_config
from normlab.bench.ranks import Kept
from normlab.config import CifarResNetConfig, ModelConfig, TorchvisionConfig
from normlab.distributed import Ranks
from normlab.models import build_model, on_meta
from normlab.norms import convert_norms
from normlab.norms.convert import norm_layers


@dataclass(frozen=True)
class Training:
    """A network and what each rank gives it in a step."""

    model: str
    batch_size: int
    image_size: int

    def build(self) -> nn.Module:
        return build_model(MODELS[self.model], 1000 if self.image_size > 64 else 10, seed=0)

    def network(self) -> Network:
        model = on_meta(self.build)
        channels = tuple(layer.num_features for layer in norm_layers(model).values())
        return Network(self.model, channels, sum(4 * p.numel() for p in model.parameters()))


MODELS: dict[str, ModelConfig] = {
    "resnet20": CifarResNetConfig(name="resnet20", depth=20),
    "resnet50": TorchvisionConfig(name="resnet50"),
}
VARIANTS = ("alone", "bn", "syncbn")
"""bn without a word between ranks; bn under DDP; syncbn under DDP."""


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_collective(ranks: Ranks, kept: Kept, name: str, message_bytes: int, repeats: int) -> float:
    """Seconds of one all_gather or all_reduce of so many bytes a rank: the median of `repeats`.

    Collective: every rank must call.
    """
    sent = torch.zeros(message_bytes // 4, device=ranks.device)
    received = torch.zeros(ranks.world_size * sent.numel(), device=ranks.device)
    taken_s = []
    for _ in range(repeats + 1):  # the first makes connections
        dist.barrier()
        began = _clock(ranks.device)
        if name == "all_gather":
            dist.all_gather_single(received, sent)
        else:
            dist.all_reduce(sent)
        taken_s.append(_clock(ranks.device) - began)
    return median(taken_s[1:])


class _Step:
    """Forward and backward of a network on this rank; no optimizer, which sends nothing."""

    def __init__(self, training: Training, variant: str, ranks: Ranks) -> None:
        norm = norm_config("syncbn" if variant == "syncbn" else "bn")
        model = convert_norms(training.build(), norm).to(ranks.device).train()
        if variant != "alone" and ranks.world_size > 1:
            ids = [ranks.device.index] if ranks.device.type == "cuda" else None
            model = DistributedDataParallel(model, ids, forward_sync_buffers=False, gradient_as_bucket_view=True)
        self.model, self.device = model, ranks.device
        size = training.image_size
        self.images_BCHW = torch.randn(training.batch_size, 3, size, size, device=ranks.device)
        self.labels_B = torch.zeros(training.batch_size, dtype=torch.long, device=ranks.device)

    def __call__(self) -> float:
        began = _clock(self.device)
        F.cross_entropy(self.model(self.images_BCHW), self.labels_B).backward()
        taken_s = _clock(self.device) - began
        self.model.zero_grad()
        return taken_s


def prepare_step(ranks: Ranks, kept: Kept, training: Training, variant: str) -> list[Collective]:
    """Build a training step, keep it for `time_step`; what one step sends. Collective: every rank must call."""
    step = kept[training, variant] = _Step(training, variant, ranks)
    step()
    step()  # DDP orders its buckets anew after its first
    with Traffic() as traffic:
        step()
    return traffic.calls


def time_step(ranks: Ranks, kept: Kept, training: Training, variant: str, repeats: int) -> float:
    """Seconds of a step that was prepared: the median of `repeats`. Collective: every rank must call."""
    if ranks.world_size > 1:
        dist.barrier()
    return median(kept[training, variant]() for _ in range(repeats))
