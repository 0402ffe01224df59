"""What ranks tell each other outside the gradients."""

import pytest
import torch
import torch.distributed as dist

from normlab import distributed
from normlab.config import ConfigError
from normlab.config.config import Device
from normlab.distributed import choose_device, join
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


@pytest.mark.parametrize(
    ("device", "gpus", "local_ranks", "chosen"),
    [
        ("auto", 0, 1, "cpu"),
        ("auto", 1, 1, "cuda"),
        ("auto", 1, 2, "cpu"),
        ("cpu", 2, 2, "cpu"),
        ("cuda", 2, 2, "cuda"),
    ],
)
def test_auto_takes_the_gpus_only_where_each_rank_has_its_own(device, gpus, local_ranks, chosen, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert choose_device(Device(device), local_ranks).type == chosen


def test_cuda_with_more_ranks_than_gpus_is_a_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"device=cuda with 2 ranks .* 1 are visible; lower world_size to 1"):
        choose_device(Device.cuda, 2)


@pytest.mark.parametrize(("gpus", "says"), [(0, ""), (1, "device=auto computes on the CPU: not each of 2 ranks")])
def test_ranks_that_leave_gpus_aside_say_so_in_one_line(gpus, says, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: print(backend))
    monkeypatch.setattr(distributed, "exchange", lambda store, rank, world_size, words: [words] * world_size)
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    ranks, _ = join(Device.auto, lambda: None)
    assert ranks.device.type == "cpu"
    out, err = capsys.readouterr()
    assert out == "gloo\n"
    assert err.startswith(says)
    assert len(err.splitlines()) == bool(says)


def test_all_ranks_take_the_cpu_where_one_machine_has_too_few_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: None)
    monkeypatch.setattr(distributed, "exchange", lambda store, rank, world_size, words: [words, ("cpu", "")])
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    assert join(Device.auto, lambda: None)[0].device.type == "cpu"
