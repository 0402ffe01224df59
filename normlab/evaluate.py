"""Exact evaluation: every sample once, the same model on all ranks, the same number at any world size."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from normlab.distributed import Ranks
from normlab.metrics import add_batch, mean_metrics, zero_sums


def evaluate(
    module: nn.Module,
    buffers: dict[str, torch.Tensor],
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    ranks: Ranks,
    *,
    autocast: torch.autocast,
    memory_format: torch.memory_format,
) -> dict[str, float]:
    """Loss (no label smoothing) and accuracy over the samples of all ranks' `batches`.

    `module` is the bare one, not DDP's: its forward would wait for ranks with other numbers of batches, and
    broadcast buffers. `buffers` stand in for the module's own, which are not changed; train mode is restored.
    Collective: every rank must call, once its batches are done.
    """
    sums = zero_sums(ranks.device)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), autocast:
            for images_BCHW, labels_B in batches:
                images_BCHW = images_BCHW.contiguous(memory_format=memory_format)
                logits_BK = functional_call(module, buffers, (images_BCHW,))
                losses_B = F.cross_entropy(logits_BK.double(), labels_B, reduction="none")
                add_batch(sums, losses_B.sum(), logits_BK, labels_B)
    finally:
        module.train(was_training)
    return mean_metrics(ranks.sum(sums))
