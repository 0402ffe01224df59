"""What ranks tell each other outside the gradients."""

import pytest
import torch

from normlab.config import ConfigError
from tests.runs import ranks_here


def collectives(rank):
    ranks = ranks_here(rank)
    own = {"mean": torch.full((2,), float(rank), dtype=torch.float32), "seen": torch.tensor(rank + 5)}
    copy = ranks.rank0_copy(own)
    return {
        "sum": ranks.sum(torch.tensor([1.0 + rank])),
        "gather": ranks.gather(torch.tensor([rank, -rank])),
        "copy": copy,
        "kept": own["mean"].tolist(),
        "max": ranks.start_max(torch.tensor([float(rank), 1.0 - rank]))(),
        "told": ranks.on_rank0(lambda: f"by rank {rank}"),
    }


def test_collectives_on_three_ranks(ranks):
    for rank, found in enumerate(ranks.run(collectives, world_size=3)):
        assert found["sum"].tolist() == [6.0]
        assert found["gather"].tolist() == [[0, 0], [1, -1], [2, -2]]
        assert found["copy"]["mean"].tolist() == [0.0, 0.0]
        assert found["copy"]["seen"].item() == 5
        assert found["copy"]["seen"].dtype == torch.int64
        assert found["kept"] == [rank, rank]
        assert found["max"] == [2.0, 1.0]
        assert found["told"] == "by rank 0"


def mistake_on_rank_0(rank):
    def check():
        raise ConfigError(f"found by rank {rank}")

    with pytest.raises(ConfigError, match="found by rank 0"):
        ranks_here(rank).on_rank0(check)
    return "all know"


def test_a_mistake_that_rank_0_finds_reaches_all(ranks):
    assert ranks.run(mistake_on_rank_0, world_size=3) == ["all know"] * 3
