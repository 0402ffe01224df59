"""The pool that every test of several ranks, and every measurement, runs on."""

import os

import pytest
import torch
import torch.distributed as dist

from normlab.bench.ranks import RankPool


def summed(rank, offset):
    total = torch.tensor([rank + offset])
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.item(), torch.get_num_threads()


def fails_on_rank_1(rank):
    if rank == 1:
        raise ValueError("no such luck")
    dist.barrier()  # rank 1 never comes


def test_each_call_has_a_group_of_the_ranks_that_it_asks_for(ranks):
    assert ranks.run(summed, 10, world_size=4) == [(46, 1)] * 4
    assert ranks.run(summed, 10, world_size=2) == [(21, 1)] * 2
    assert ranks.run(summed, 10, world_size=1) == [(10, 1)]


def test_a_failure_is_told_with_its_rank_and_the_pool_can_be_used_again(ranks):
    with pytest.raises(RuntimeError, match=r"rank 1 of 2:\n(.*\n)*ValueError: no such luck") as failed:
        ranks.run(fails_on_rank_1, world_size=2)
    assert "Timed out" not in str(failed.value)  # rank 0 hears of it at once
    assert ranks.run(summed, 0, world_size=2) == [(1, 1)] * 2


def dies(rank):
    os._exit(7)


def test_a_rank_that_dies_is_an_error_in_that_call_and_in_later_ones():
    with RankPool(1) as pool:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="rank 0 of 1:\nit ended with exit code 7"):
                pool.run(dies, world_size=1)
