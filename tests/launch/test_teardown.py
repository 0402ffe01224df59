"""Ranks that trained leave with exit code 0, every time.

With torch 2.14.1 about one process in ten aborted at exit without the teardown. With 2.15.0 that was not seen, so
this guards against its return; it does not show that the teardown is still needed.
"""

import multiprocessing

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from normlab import distributed
from normlab.config.config import Device

PAIRS = 8


def train_and_leave(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    step()
    distributed.leave()


def step() -> None:
    model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(4, 64)).sum().backward()
        optimizer.step()


def test_ranks_that_trained_leave_without_a_crash_many_times(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launch.rank", __name__])
    codes = []
    for pair in range(PAIRS):
        ranks = [context.Process(target=train_and_leave, args=(r, f"{tmp_path}/{pair}")) for r in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            codes.append(process.exitcode)
    assert codes == [0] * (2 * PAIRS)


def test_alone_there_is_no_group_to_join_or_leave(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    ranks, prepared = distributed.join(Device.cpu, lambda: "data")
    assert prepared == "data"
    assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")
    assert not torch.distributed.is_initialized()
    assert torch.equal(ranks.sum(torch.tensor([2.0])), torch.tensor([2.0]))
    assert ranks.gather(torch.tensor([2.0])).shape == (1, 1)
    assert ranks.on_rank0(lambda: 3) == 3
    distributed.leave()
