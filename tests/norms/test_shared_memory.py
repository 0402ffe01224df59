"""The exchange through shared memory. The oracle: sums in float64, and gloo."""

import gc
import os
import signal
import stat
import time
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from normlab.bench.ranks import RankPool
from normlab.norms import SyncBatchNorm, exchange, shared_memory
from normlab.norms.exchange import gather_statistics, over_backend, sum_gradients
from normlab.older_torch import store_of

SIZES = [1, 33, 4097, 2, 33, 33, 10_000, 7]


def values_of(rank, turn, size, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1000 * turn + rank)
    return torch.randn(size, dtype=torch.float64, generator=generator).to(dtype)


def has_channel(group=None):
    """Whether the group exchanges through shared memory; a first exchange decides it."""
    group = group or dist.group.WORLD
    gather_statistics(torch.zeros(1), group)
    return exchange._channels[group] is not None


@pytest.fixture(autouse=True)
def only_linux_on_x86_64():
    if not shared_memory._machine():
        pytest.skip("there is no shared memory here")


def many_exchanges(rank, dtype):
    """Each rank is late at times, so that others run ahead as far as they can."""
    size, group = dist.get_world_size(), dist.group.WORLD
    for turn in range(24):
        if turn % 7 == rank:
            time.sleep(0.002)
        all_values = [values_of(r, turn, SIZES[turn % len(SIZES)], dtype) for r in range(size)]
        rows_RS = gather_statistics(all_values[rank], group)
        if turn % 5 == rank:
            time.sleep(0.002)  # nobody may overwrite what is still to be read
        assert torch.equal(rows_RS, torch.stack(all_values))
        total = sum_gradients(all_values[rank].clone(), group)
        torch.testing.assert_close(total.double(), torch.stack(all_values).double().sum(0), rtol=1e-6, atol=1e-6)
    assert has_channel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_gets_the_values_of_all_and_their_sum(ranks, world_size, dtype):
    ranks.run(many_exchanges, dtype, world_size=world_size)


def ordered_sum(rank):
    # In float32, 1e8 + 1 is 1e8: only the order of ranks gives ((1e8 + 1) - 1e8) + 1 = 1.
    return sum_gradients(torch.tensor([[1e8, 1.0, -1e8, 1.0][rank]]), dist.group.WORLD).item()


def test_sums_are_added_in_the_order_of_ranks(ranks):
    assert ranks.run(ordered_sum, world_size=4) == [1.0] * 4


def same_as_gloo(rank):
    for turn in range(20):
        sums = values_of(rank, turn, (2, 1000), torch.float32)
        ours, theirs = sums.clone(), sums.clone()
        sum_gradients(ours, dist.group.WORLD)
        with over_backend():
            sum_gradients(theirs, dist.group.WORLD)
        assert torch.equal(ours, theirs)


def test_two_ranks_get_the_bits_that_gloo_gives(ranks):
    ranks.run(same_as_gloo, world_size=2)


def different_layers(rank):
    assert has_channel()
    layers = [SyncBatchNorm(3), SyncBatchNorm(5)]
    x = torch.randn(2, (3, 5)[rank], 4)
    with pytest.raises(RuntimeError) as raised:
        layers[rank](x)
    assert gather_statistics(torch.ones(3), dist.group.WORLD).sum() == 6  # the ranks are still in step
    return str(raised.value)


def test_ranks_that_run_different_layers_are_told_so(ranks):
    same = "all ranks must run the same SyncBatchNorm layers in the same order"
    assert ranks.run(different_layers, world_size=2) == [
        f"rank 1 sent 11 values of 4 bytes, rank 0 7 values of 4 bytes: {same}",
        f"rank 0 sent 7 values of 4 bytes, rank 1 11 values of 4 bytes: {same}",
    ]


def does_not_come(rank):
    assert has_channel()
    exchange._channels[dist.group.WORLD]._timeout_s = 0.2
    if rank == 0:
        with pytest.raises(RuntimeError, match="rank 1 has not come to the same SyncBatchNorm layer within 0 s"):
            sum_gradients(torch.zeros(1), dist.group.WORLD)
    dist.barrier()


def test_a_rank_that_lives_and_does_not_come_is_an_error_after_a_time(ranks):
    ranks.run(does_not_come, world_size=2)


def timeouts(rank):
    default = dist.default_pg_timeout.total_seconds()
    assert shared_memory._timeout_s(dist.group.WORLD) == default  # the pool's is shorter
    store_of(dist.group.WORLD).set_timeout(2 * dist.default_pg_timeout)
    assert shared_memory._timeout_s(dist.group.WORLD) == 2 * default


def test_a_rank_waits_for_as_long_as_torch_does_and_longer_if_the_store_does(ranks):
    ranks.run(timeouts, world_size=2)


def fails_on_rank_1(rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_memory, "_timeout_s", lambda group: 20)
        assert has_channel()
    if rank == 1:
        raise ValueError("no such luck")
    sum_gradients(torch.zeros(1), dist.group.WORLD)


def test_a_rank_that_leaves_the_group_is_an_error_on_the_others(ranks):
    with pytest.raises(RuntimeError, match="no such luck") as failed:
        ranks.run(fails_on_rank_1, world_size=2)
    assert "rank 1 left while SyncBatchNorm waited for it" in str(failed.value)
    ranks.run(ordered_sum, world_size=2)


def dies_and_leaves_a_child(rank, path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_memory, "_timeout_s", lambda group: 20)
        assert has_channel()
    if rank == 2:
        child = os.fork()
        if child == 0:
            for file in range(3, 256):  # the pool hears of the rank's end by them
                with suppress(OSError):
                    if stat.S_ISSOCK(os.fstat(file).st_mode):
                        os.close(file)
            signal.pause()
        path.write_text(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    sum_gradients(torch.zeros(1), dist.group.WORLD)


def test_a_killed_rank_is_an_error_on_the_others_even_if_a_child_of_it_lives_on(tmp_path):
    path = tmp_path / "child"
    try:
        with RankPool(3, threads=1) as pool, pytest.raises(RuntimeError) as failed:
            pool.run(dies_and_leaves_a_child, path, world_size=3)
    finally:
        os.kill(int(path.read_text()), signal.SIGKILL)
    said = str(failed.value)
    assert said.count("rank 2 left while SyncBatchNorm waited for it") == 2
    assert "rank 2 of 3:\nit ended with exit code -9" in said


def switched_off_on(rank, off):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMLAB_SHARED_MEMORY", "0" if rank == off else "1")
        return has_channel(), sum_gradients(torch.tensor([rank + 1.0]), dist.group.WORLD).item()


@pytest.mark.parametrize(("off", "shared"), [(None, True), (0, False), (1, False)])
def test_one_rank_can_turn_it_off_for_all(ranks, off, shared):
    assert ranks.run(switched_off_on, off, world_size=2) == [(shared, 3.0)] * 2


def on_several_machines(rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_memory, "_machine", lambda: f"machine {rank}")
        return has_channel(), sum_gradients(torch.tensor([rank + 1.0]), dist.group.WORLD).item()


def test_ranks_on_several_machines_use_the_backend(ranks):
    assert ranks.run(on_several_machines, world_size=2) == [(False, 3.0)] * 2


def refused(rank, name, on_rank):
    def refuse(*args):
        raise PermissionError(13, "Permission denied", "the memory")

    before = memory_files()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if rank == on_rank:
            patch.setattr(shared_memory, name, refuse)
        shared = has_channel()
        total = sum_gradients(torch.tensor([rank + 1.0]), dist.group.WORLD).item()
    assert memory_files() == before
    return shared, total, [str(warning.message) for warning in said]


@pytest.mark.parametrize(("name", "on_rank"), [("_create", 0), ("_open", 1)])
def test_where_a_rank_cannot_have_it_all_use_the_backend_and_rank_0_warns(ranks, name, on_rank):
    seen = ranks.run(refused, name, on_rank, world_size=3)
    assert [(shared, total) for shared, total, _ in seen] == [(False, 6.0)] * 3
    (warning,) = seen[0][2]
    assert f"(rank {on_rank}: [Errno 13] Permission denied: 'the memory')" in warning
    assert "over gloo, which is slower; NORMLAB_SHARED_MEMORY=0" in warning
    assert seen[1][2] == seen[2][2] == []


def more_than_it_holds(rank):
    assert has_channel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "CAPACITY", 64)
        patch.setattr(exchange.Channel, "gather", None)
        size = 17
        return sum_gradients(torch.full((size,), rank + 1.0), dist.group.WORLD).sum().item() / size


def test_what_does_not_fit_goes_over_the_backend(ranks):
    assert ranks.run(more_than_it_holds, world_size=2) == [3.0, 3.0]


def several_groups(rank):
    halves, _ = dist.new_subgroups(2)
    seen = []
    for turn in range(20):
        mine = torch.tensor([10.0**rank])
        seen.append(sum_gradients(mine.clone(), halves).item())
        if turn % 3 == 0:
            seen.append(sum_gradients(mine.clone(), dist.group.WORLD).item())
    assert has_channel(halves)
    assert has_channel()
    return set(seen)


def test_each_group_has_memory_of_its_own(ranks):
    seen = ranks.run(several_groups, world_size=4)
    assert seen == [{11.0, 1111.0}] * 2 + [{1100.0, 1111.0}] * 2


def memory_files():
    """The inode of such memory behind each descriptor and mapping of this process.

    Groups before this one may be among them: the first use of DDP, or of a dispatch mode, imports torch._dynamo,
    and that keeps its importer's frames, with their model and their group.
    """
    gc.collect()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:normlab" in line]
    inodes = [int(columns[4]) for columns in maps]
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            if "memfd:normlab" in os.readlink(file):
                inodes.append(file.stat().st_ino)
    return Counter(inodes)


def named_memory():
    """Mappings of this process that are files in /dev/shm, where a killed rank would leave them."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line]


def open_memory(rank):
    files, named = memory_files(), named_memory()
    assert has_channel()
    assert named_memory() == named
    return memory_files() - files


def see_memory(rank):
    return memory_files()


def test_a_group_leaves_nothing_behind_when_it_is_destroyed(ranks):
    opened = ranks.run(open_memory, world_size=2)
    left = ranks.run(see_memory, world_size=2)
    (inode,) = opened[0]
    assert opened == [{inode: 3}] * 2  # the file, the mapping's own descriptor, the mapping
    assert inode not in left[0] + left[1]
