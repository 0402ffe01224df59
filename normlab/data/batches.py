"""This process's share of the batches for training and for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from normlab.data.augment import Augmentation
from normlab.data.dataset import Split
from normlab.data.decode import in_threads
from normlab.data.order import Stream, epoch_order, fixed_permutation, permutation, steps_per_epoch
from normlab.distributed import Ranks
from normlab.numerics import Numerics

Batch = tuple[torch.Tensor, torch.Tensor]
"""Normalised images (B, 3, H, W), and labels: (B,) int64, or (B, H, W) where each pixel has its own."""

PIECE = 4
"""Samples that a thread reads at a time: few, so that all threads work on the batch that is needed next."""

AHEAD = 2
"""How many batches are read ahead; more if a batch has fewer than PIECE samples per thread."""


@dataclass(frozen=True)
class Inputs:
    """How samples become a model's input: its size, device, dtype and normalisation."""

    augmentation: Augmentation
    mean_C: torch.Tensor
    std_C: torch.Tensor
    numerics: Numerics

    workers: int = 0
    """Threads that read samples before they are needed. 0: each batch is made when it is asked for."""

    def batches(
        self, split: Split, indices: Sequence[torch.Tensor], draws: torch.Tensor | None = None
    ) -> Iterator[Batch]:
        """A batch for each of `indices`, at the size for training, augmented if the split's `draws` are given."""
        device = self.numerics.device
        return self._made(lambda index_B: self.augmentation.batch(split, index_B, draws, device), indices)

    def whole_batches(self, split: Split, indices: Sequence[torch.Tensor]) -> Iterator[Batch]:
        """A batch for each of `indices`, at full size."""
        return self._made(split.take, indices)

    def _made(
        self, make: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], indices: Sequence[torch.Tensor]
    ) -> Iterator[Batch]:
        made = read_ahead(make, indices, self.workers) if self.workers else map(make, indices)
        for images_BHWC, labels in made:
            yield self.normalised(images_BHWC), labels.to(self.numerics.device)

    def normalised(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        return self.numerics.images(images_BHWC, self.mean_C, self.std_C)


def read_ahead(
    make: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    indices: Sequence[torch.Tensor],
    workers: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """make(index_B) for each batch of `indices`, in order; threads make pieces of a few batches ahead.

    The threads end with the iterator, and what `make` raises for a piece is raised when its batch is asked for.
    """

    def num_pieces(index_B: torch.Tensor) -> int:
        return -(-len(index_B) // PIECE)

    pieces = (piece_B for index_B in indices for piece_B in index_B.split(PIECE))
    ahead = max(2 * workers, AHEAD * max(map(num_pieces, indices), default=0))
    made = in_threads(make, pieces, workers, ahead)
    for index_B in indices:
        images, labels = zip(*islice(made, num_pieces(index_B)), strict=True)
        # Joined as BCHW, since that is how they lie in memory.
        images_BCHW = torch.cat([images_BHWC.permute(0, 3, 1, 2) for images_BHWC in images])
        yield images_BCHW.permute(0, 2, 3, 1), torch.cat(labels)


class TrainBatches:
    """The training batches of one process, which stands for one or more contiguous logical ranks.

    The samples of global batch t and their augmentation are a function of (seed, epoch), however ranks and
    micro-batches split them.
    Raises: ConfigError if the global batch is larger than the data.
    """

    def __init__(
        self,
        split: Split,
        inputs: Inputs,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        logical_ranks: int,
        ranks_here: range,
        augment: bool,
    ) -> None:
        assert 0 <= ranks_here.start < ranks_here.stop <= logical_ranks
        self._split, self._inputs = split, inputs
        self._seed, self._augment = seed, augment
        self._shape = {"accumulate": accumulate, "logical_ranks": logical_ranks, "batch_size": batch_size}
        self._ranks_here = slice(ranks_here.start, ranks_here.stop)
        self.steps_per_epoch = steps_per_epoch(len(split), accumulate * logical_ranks * batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """For each step, from `first_step` on: `accumulate` micro-batches, each for all logical ranks here.

        A micro-batch has len(ranks_here) x batch_size samples, dealt to the ranks here like cards: sample i
        belongs to logical rank ranks_here[i % len(ranks_here)].
        """
        order = epoch_order(len(self._split), seed=self._seed, epoch=epoch, **self._shape)
        draws = None
        if self._augment:
            draws = self._inputs.augmentation.draws(len(self._split), seed=self._seed, epoch=epoch)
            draws = draws.to(self._split.device)
        here = order[first_step:, :, self._ranks_here]
        steps, accumulate, *_ = here.shape
        dealt = here.transpose(2, 3).flatten(2).flatten(0, 1).to(self._split.device)
        batches = self._inputs.batches(self._split, dealt.unbind(), draws)
        for _ in range(steps):
            yield list(islice(batches, accumulate))


def eval_batches(
    split: Split, inputs: Inputs, ranks: Ranks, *, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """This rank's share of a split, unaugmented: over all ranks, each sample once and no padding.

    The split is cut into batches of at most `batch_size` samples at full size, and batch k goes to rank
    k % world_size, so every batch holds the same samples at any world size. A rank may get none.
    `limit` is the number of samples to use, chosen by a fixed permutation since folders are sorted by class.
    """
    order = torch.arange(len(split))
    if limit is not None and limit < len(split):
        order = fixed_permutation(len(split))[:limit]
    groups = split.eval_groups(order.to(split.device), batch_size)
    return inputs.whole_batches(split, groups[ranks.rank :: ranks.world_size])


def precise_batches(
    split: Split,
    inputs: Inputs,
    ranks: Ranks,
    *,
    seed: int,
    samples: int,
    chunk_size: int,
    chunks_per_batch: int,
) -> Iterator[Batch]:
    """This rank's share of `samples` samples (at most all), unaugmented, in whole chunks of `chunk_size`.

    Which samples form a chunk is a function of the seed. A batch holds up to chunks_per_batch chunks, dealt like
    cards: sample i of a batch of k chunks is in chunk i % k. A rank may get none; all do if no chunk is whole.
    """
    order = permutation(len(split), seed=seed, epoch=0, stream=Stream.precise).to(split.device)
    chunks = min(samples, len(split)) // chunk_size
    order_KB = order[: chunks * chunk_size].view(chunks, chunk_size)
    batches = order_KB.split(chunks_per_batch) if chunks else ()  # split would return one empty batch
    here = [index_KB.T.reshape(-1) for index_KB in batches[ranks.rank :: ranks.world_size]]
    return inputs.batches(split, here)
