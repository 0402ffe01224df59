"""Exact evaluation: every sample once, the same model on all ranks, the same number at any world size."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from normlab.config import BatchNormConfig, Config, RunningStats
from normlab.data.batches import eval_batches, precise_batches
from normlab.data.dataset import Dataset, Split
from normlab.distributed import Ranks
from normlab.metrics import add_batch, mean_metrics, zero_sums
from normlab.norms.running_stats import RankStatistics, as_buffers, precise_statistics

Buffers = dict[str, torch.Tensor]


def evaluate(
    module: nn.Module,
    buffers: Buffers,
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


class Evaluator:
    """What a run evaluates, and with which running statistics. Collective: every rank must call its methods."""

    def __init__(
        self,
        module: nn.Module,
        cfg: Config,
        dataset: Dataset,
        ranks: Ranks,
        *,
        dtype: torch.dtype,
        autocast: torch.autocast,
        memory_format: torch.memory_format,
    ) -> None:
        self.module, self.cfg, self.dataset, self.ranks = module, cfg, dataset, ranks
        self.dtype, self.autocast, self.memory_format = dtype, autocast, memory_format

    def buffers(self) -> tuple[Buffers, dict[str, float]]:
        """Copies of rank 0's buffers with the policy's running statistics (C,), and the ranks' spread."""
        buffers = self.ranks.rank0_copy(dict(self.module.named_buffers()))
        statistics = RankStatistics.gather(self.module, self.ranks)
        if statistics is None:
            return buffers, {}
        assert isinstance(self.cfg.norm, BatchNormConfig)
        match self.cfg.norm.running_stats:
            case RunningStats.rank0:
                chosen = statistics.rank0()
            case RunningStats.pooled:
                chosen = statistics.pooled()
            case RunningStats.precise:
                chosen = self._precise(self.cfg.norm)
        return buffers | as_buffers(self.module, *chosen), statistics.spread()

    def _precise(self, norm: BatchNormConfig) -> tuple[torch.Tensor, torch.Tensor]:
        logical_ranks = self.cfg.logical_ranks(self.ranks.world_size)
        chunk_size = norm.normalization_batch_size(self.cfg.batch_size, logical_ranks)
        batches = precise_batches(
            self.dataset.train,
            self.dataset.mean_C,
            self.dataset.std_C,
            seed=self.cfg.seed,
            samples=norm.precise_samples,
            chunk_size=chunk_size,
            chunks_per_batch=max(1, self.cfg.eval_batch_size // chunk_size),
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            device=self.ranks.device,
            dtype=self.dtype,
        )
        images = (images_BCHW.contiguous(memory_format=self.memory_format) for images_BCHW in batches)
        return precise_statistics(self.module, images, chunk_size, self.ranks, autocast=self.autocast)

    def metrics(self, buffers: Buffers, *, final: bool) -> dict[str, float]:
        """Of val and of training samples, and at the very end of test."""
        val = self.split(self.dataset.val, buffers)
        train = self.split(self.dataset.train, buffers, limit=self.cfg.eval_train_samples)
        metrics = {
            "val/loss": val["loss"],
            "val/accuracy": val["accuracy"],
            "train/accuracy": train["accuracy"],
        }
        if final and self.dataset.test is not None:
            test = self.split(self.dataset.test, buffers)
            metrics |= {f"test/{name}": value for name, value in test.items()}
        return metrics

    def split(self, split: Split, buffers: Buffers, limit: int | None = None) -> dict[str, float]:
        """Loss and accuracy of one split, or of `limit` of its samples."""
        batches = eval_batches(
            split,
            self.dataset.mean_C,
            self.dataset.std_C,
            batch_size=self.cfg.eval_batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            device=self.ranks.device,
            dtype=self.dtype,
            limit=limit,
        )
        return evaluate(
            self.module,
            buffers,
            batches,
            self.ranks,
            autocast=self.autocast,
            memory_format=self.memory_format,
        )
