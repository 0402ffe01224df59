"""Batches for training and for evaluation, of this process's share."""

from collections.abc import Iterator

import torch

from normlab.data.augment import Augmentation
from normlab.data.dataset import Split
from normlab.data.order import Stream, epoch_order, fixed_permutation, permutation, steps_per_epoch
from normlab.numerics import Numerics

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images (B, 3, H, W), normalised, and labels: (B,) int64, or (B, H, W) where each pixel has its own."""


class TrainBatches:
    """The training batches of one process, which stands for one or more contiguous logical ranks.

    The samples of global batch t and the augmentation of each are a function of (seed, epoch), however
    ranks and micro-batches split them.
    Raises: ConfigError if the global batch is larger than the data.
    """

    def __init__(
        self,
        split: Split,
        mean_C: torch.Tensor,
        std_C: torch.Tensor,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        logical_ranks: int,
        first_logical_rank: int,
        num_logical_ranks_here: int,
        augmentation: Augmentation,
        augment: bool,
        numerics: Numerics,
    ) -> None:
        assert 0 <= first_logical_rank <= logical_ranks - num_logical_ranks_here
        self._split = split
        self._mean_C, self._std_C = mean_C.to(numerics.device), std_C.to(numerics.device)
        self._seed = seed
        self._shape = {"accumulate": accumulate, "logical_ranks": logical_ranks, "batch_size": batch_size}
        self._ranks_here = slice(first_logical_rank, first_logical_rank + num_logical_ranks_here)
        self._augmentation, self._augment = augmentation, augment
        self._numerics = numerics
        self.steps_per_epoch = steps_per_epoch(len(split), accumulate * logical_ranks * batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """Per step, from `first_step` on: `accumulate` micro-batches, each of all logical ranks here.

        A micro-batch has num_logical_ranks_here x batch_size samples, dealt to the ranks here like cards:
        sample i is of logical rank first_logical_rank + i % num_logical_ranks_here.
        """
        order = epoch_order(len(self._split), seed=self._seed, epoch=epoch, **self._shape)
        draws = None
        if self._augment:
            draws = self._augmentation.draws(len(self._split), seed=self._seed, epoch=epoch)
        for micro_batches in order[first_step:, :, self._ranks_here]:
            yield [self._batch(indices.T.reshape(-1), draws) for indices in micro_batches]

    def _batch(self, index_B: torch.Tensor, draws: torch.Tensor | None) -> Batch:
        images_BHWC, labels = self._augmentation.batch(self._split, index_B, draws, self._numerics.device)
        return self._numerics.images(images_BHWC, self._mean_C, self._std_C), labels


def eval_batches(
    split: Split,
    mean_C: torch.Tensor,
    std_C: torch.Tensor,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    numerics: Numerics,
    limit: int | None = None,
) -> Iterator[Batch]:
    """This rank's share of a split, unaugmented: each sample once over all ranks, nothing padded.

    The split is cut into batches of at most `batch_size` samples at full size, and batch k goes to rank
    k % world_size: every batch holds the same samples at any world size. A rank may get none.
    `limit` takes so many samples, by a fixed permutation (folders are sorted by class).
    """
    order = torch.arange(len(split))
    if limit is not None and limit < len(split):
        order = fixed_permutation(len(split))[:limit]
    mean_C, std_C = mean_C.to(numerics.device), std_C.to(numerics.device)
    for index_B in split.eval_groups(order, batch_size)[rank::world_size]:
        images_BHWC, labels = split.take(index_B)
        yield numerics.images(images_BHWC, mean_C, std_C), labels.to(numerics.device)


def precise_batches(
    split: Split,
    augmentation: Augmentation,
    mean_C: torch.Tensor,
    std_C: torch.Tensor,
    *,
    seed: int,
    samples: int,
    chunk_size: int,
    chunks_per_batch: int,
    rank: int,
    world_size: int,
    numerics: Numerics,
) -> Iterator[Batch]:
    """This rank's share of `samples` samples (or all there are), unaugmented, in whole chunks of `chunk_size`.

    Which samples make a chunk is a function of the seed. A batch holds up to chunks_per_batch of them, dealt
    like cards: of k chunks, sample i is in chunk i % k. A rank may get none, and all do where no chunk is whole.
    """
    order = permutation(len(split), seed=seed, epoch=0, stream=Stream.precise)
    chunks = min(samples, len(split)) // chunk_size
    order_KB = order[: chunks * chunk_size].view(chunks, chunk_size)
    batches = order_KB.split(chunks_per_batch) if chunks else ()  # of nothing, split makes one batch of nothing
    for index_KB in batches[rank::world_size]:
        images_BHWC, labels = augmentation.batch(split, index_KB.T.reshape(-1), None, numerics.device)
        yield numerics.images(images_BHWC, mean_C, std_C), labels
