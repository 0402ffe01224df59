"""Exact evaluation: every sample once, the same model on all ranks, the same metrics at any world size."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from normlab.config import Config
from normlab.config.norm import BatchStatisticsConfig, CustomNormConfig, RunningStats
from normlab.data.batches import Inputs, eval_batches, precise_batches
from normlab.data.dataset import Dataset, Split
from normlab.data.order import fixed_permutation
from normlab.distributed import Ranks
from normlab.norms import diagnostics
from normlab.norms.running_stats import (
    RankStatistics,
    as_buffers,
    chunked_twin,
    from_buffers,
    precise_statistics,
)
from normlab.numerics import Numerics
from normlab.tasks import Segmentation, Task

Buffers = dict[str, torch.Tensor]
T = TypeVar("T")

NUM_PICTURES = 4
"""How many predictions on val are drawn."""


class Stopped(Exception):
    """A stop signal reached some rank, and all ranks agreed to stop."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def in_rounds(batches: Iterator[T], ranks: Ranks, stop_signal: Callable[[], int]) -> Iterator[T]:
    """This rank's batches, one per round, until no rank has any left.

    Ranks have unequal numbers of batches, and receive signals at different moments, so before each round they
    agree whether to go on or to stop. Collective: every rank must exhaust it.
    Raises: Stopped, on all ranks.
    """
    for batch in chain(batches, repeat(None)):
        flags = torch.tensor([stop_signal(), batch is not None], dtype=torch.float32, device=ranks.device)
        signal, left = ranks.start_max(flags)()
        if signal:
            raise Stopped(int(signal))
        if not left:
            return
        if batch is not None:
            yield batch


def evaluate(
    module: nn.Module,
    buffers: Buffers,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    ranks: Ranks,
    task: Task,
    numerics: Numerics,
) -> torch.Tensor:
    """The task's sums over the samples of all ranks' `batches`.

    `module` is the one inside DDP, since DDP's forward would wait for ranks that have fewer batches. `buffers`
    replace the module's own, which are not changed; train mode is restored.
    Collective: every rank must call it; each takes part once its batches are done.
    """
    sums = task.zero_sums(ranks.device)
    with evaluating(module), numerics.autocast:
        for images_BCHW, labels in batches:
            task.add_evaluation(sums, functional_call(module, buffers, (images_BCHW,)), labels)
    return ranks.sum(sums)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside the block, the module is in eval mode, without gradients."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


class Evaluator:
    """Evaluates a run with its policy's running statistics. Collective: every rank must call its methods."""

    def __init__(
        self,
        module: nn.Module,
        cfg: Config,
        dataset: Dataset,
        ranks: Ranks,
        task: Task,
        inputs: Inputs,
        norm_names: Sequence[str] = (),
    ) -> None:
        """`norm_names`: the layers that `diagnose` examines."""
        self.module, self.cfg, self.dataset, self.ranks = module, cfg, dataset, ranks
        self.task, self.inputs, self.norm_names = task, inputs, norm_names
        self.numerics = inputs.numerics

    def buffers(self) -> tuple[Buffers, dict[str, float]]:
        """Copies of rank 0's buffers with the policy's running statistics (C,), and the spread over ranks."""
        buffers = self.ranks.rank0_copy(dict(self.module.named_buffers()))
        statistics = RankStatistics.gather(self.module, self.ranks)
        if statistics is None:
            return buffers, {}
        return buffers | self.chosen(statistics), statistics.spread()

    def chosen(self, statistics: RankStatistics) -> Buffers:
        """Each layer's running statistics (C,), computed by the policy from those of all ranks."""
        assert isinstance(self.cfg.norm, BatchStatisticsConfig)
        match self.cfg.norm.running_stats:
            case RunningStats.rank0:
                chosen = statistics.rank0()
            case RunningStats.pooled:
                chosen = statistics.pooled()
            case RunningStats.precise:
                chosen = self._precise(self.cfg.norm)
        return as_buffers(self.module, *chosen)

    def _precise(self, norm: BatchStatisticsConfig) -> tuple[torch.Tensor, torch.Tensor]:
        # Stop signals are ignored here: the checkpoint that they ask for needs these statistics.
        chunks = self._chunks(self.dataset.train, norm.precise_samples, lambda: 0)
        images = (images_BCHW for images_BCHW, _ in chunks)
        return precise_statistics(
            self.module, images, self._chunk_size(), self.ranks, autocast=self.numerics.autocast
        )

    def _chunk_size(self) -> int:
        """The number of samples that share statistics in training."""
        assert self.cfg.world_size is not None
        logical_ranks = self.cfg.logical_ranks(self.cfg.world_size)
        return self.cfg.norm.normalization_batch_size(self.cfg.batch_size, logical_ranks)

    def _chunks(
        self, split: Split, samples: int, stop_signal: Callable[[], int]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's batches of `samples` samples of a split, in whole chunks, at the size for training."""
        batches = precise_batches(
            split,
            self.inputs,
            self.ranks,
            seed=self.cfg.seed,
            samples=samples,
            chunk_size=self._chunk_size(),
            chunks_per_batch=max(1, self.cfg.eval_batch // self._chunk_size()),
        )
        return in_rounds(batches, self.ranks, stop_signal)

    def diagnose(
        self, buffers: Buffers, stop_signal: Callable[[], int] = lambda: 0
    ) -> tuple[dict[str, float], diagnostics.PerLayer]:
        """Scalars, and values per layer: what the norm layers do (see norms.diagnostics), and train_mode_gap.

        They are measured on a few samples of train, unaugmented. val/train_mode_gap is the main metric on as many
        samples of val in train mode (statistics of chunks of NBS samples) minus that in eval mode, on the same
        pictures, cut to the size for training. It is left out if val has no whole chunk. Nothing is
        measured for a user's own norm that needs other ranks, since ranks have different numbers of batches here.
        Source: the gap between modes: Wu & Johnson 2021, arXiv:2105.07576, section 4.
        """
        if isinstance(self.cfg.norm, CustomNormConfig) and self.cfg.norm.needs_ranks:
            return {}, {}
        samples = max(self.cfg.diagnostics_samples, self._chunk_size())
        images = (images_BCHW for images_BCHW, _ in self._chunks(self.dataset.train, samples, stop_signal))
        seen = diagnostics.probe(
            self.module, self.norm_names, images, self._chunk_size(), self.ranks, autocast=self.numerics.autocast
        )
        statistics = RankStatistics.gather(self.module, self.ranks)
        of_layers = {f"norm/{tag}": values for tag, values in seen.outputs.items()}
        ranges = diagnostics.gamma_ranges(self.module, self.norm_names)
        of_layers |= {f"norm/{tag}": values for tag, values in ranges.items()}
        if statistics is not None and seen.precise is not None:
            gaps = diagnostics.gaps(self.module, from_buffers(self.module, buffers), seen.precise)
            spreads = diagnostics.spreads(self.module, statistics)
            of_layers |= {f"running_stats/{tag}": values for tag, values in (gaps | spreads).items()}
        scalars = diagnostics.of_network(of_layers)
        return scalars | self._train_mode_gap(buffers, samples, stop_signal), of_layers

    def _train_mode_gap(self, buffers: Buffers, samples: int, stop_signal: Callable[[], int]) -> dict[str, float]:
        twin, _ = chunked_twin(self.module, self._chunk_size())
        sums_2 = torch.stack([self.task.zero_sums(self.ranks.device)] * 2)
        with evaluating(self.module), self.numerics.autocast:
            for images_BCHW, labels in self._chunks(self.dataset.val, samples, stop_signal):
                self.task.add_evaluation(sums_2[0], twin(images_BCHW), labels)
                output = functional_call(self.module, buffers, (images_BCHW,))
                self.task.add_evaluation(sums_2[1], output, labels)
        sums_2 = self.ranks.sum(sums_2)
        if not sums_2[0].any():
            return {}
        in_train_mode, in_eval_mode = (self.task.metrics(sums).get(self.cfg.main_metric) for sums in sums_2)
        if in_train_mode is None or in_eval_mode is None:
            return {}
        return {"val/train_mode_gap": in_train_mode - in_eval_mode}

    def metrics(
        self, buffers: Buffers, *, final: bool, stop_signal: Callable[[], int] = lambda: 0
    ) -> dict[str, float]:
        """The metrics of val, the main metric on training samples and, if `final`, the metrics of test.

        `val_sums` keeps the sums behind the metrics of val.
        Raises: Stopped between two batches, once any rank has a stop signal.
        """
        self.val_sums = self.split(self.dataset.val, buffers, stop_signal)
        limit = self.cfg.eval_train_samples
        train = self.task.metrics(self.split(self.dataset.train, buffers, stop_signal, limit=limit))
        metrics = {f"val/{name}": value for name, value in self.task.metrics(self.val_sums).items()}
        main = self.cfg.main_metric
        metrics |= {f"train/{main}": train[main]} if main in train else {}
        if final and self.dataset.test is not None:
            test = self.task.metrics(self.split(self.dataset.test, buffers, stop_signal))
            metrics |= {f"test/{name}": value for name, value in test.items()}
        return metrics

    def pictures(self, buffers: Buffers) -> dict[str, Callable[[], np.ndarray]]:
        """Name -> function that draws it, from the last metrics; empty except for segmentation. Not collective."""
        if not isinstance(self.task, Segmentation):
            return {}
        from normlab import pictures  # matplotlib, which takes half a second to import

        task, classes, palette_K3 = self.task, self.dataset.classes, self.dataset.palette_K3
        assert palette_K3 is not None
        return {
            "val/predictions": lambda: pictures.predictions(self._predicted(buffers), palette_K3, classes),
            "val/confusion": lambda: pictures.confusion(task.confusion(self.val_sums).cpu(), classes),
        }

    def _predicted(self, buffers: Buffers) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(picture, truth, prediction) of a few samples of val, the same ones each time."""
        val, drawn = self.dataset.val, []
        with evaluating(self.module), self.numerics.autocast:
            for index_1 in fixed_permutation(len(val))[:NUM_PICTURES].split(1):
                images_BHWC, labels_BHW = val.take(index_1)
                output = functional_call(self.module, buffers, (self.inputs.normalised(images_BHWC),))
                drawn.append((images_BHWC[0], labels_BHW[0], output["out"][0].argmax(0).cpu()))
        return drawn

    def split(
        self,
        split: Split,
        buffers: Buffers,
        stop_signal: Callable[[], int] = lambda: 0,
        *,
        limit: int | None = None,
    ) -> torch.Tensor:
        """The task's sums over one split, or over `limit` of its samples. Raises: Stopped."""
        batches = eval_batches(split, self.inputs, self.ranks, batch_size=self.cfg.eval_batch, limit=limit)
        rounds = in_rounds(batches, self.ranks, stop_signal)
        return evaluate(self.module, buffers, rounds, self.ranks, self.task, self.numerics)
