"""Which device a rank computes on, where torch sees GPUs that are not there."""

import pytest
import torch
import torch.distributed as dist

from normlab import devices, distributed
from normlab.config import ConfigError
from normlab.config.config import Device
from normlab.devices import OwnGpu, all_have_one, choose_device
from normlab.distributed import join


def see(monkeypatch, uuids):
    """Have this process see the GPUs of these UUIDs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(uuids))
    monkeypatch.setattr(devices, "visible_gpus", lambda: uuids)


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
    see(monkeypatch, ["GPU-a"][:gpus])
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
    see(monkeypatch, ["GPU-a"])
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: None)
    monkeypatch.setattr(distributed, "exchange", lambda store, rank, world_size, words: [words, (-1, "", 0, "")])
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for key, value in place.items():
        monkeypatch.setenv(key, value)
    assert join(Device.auto, lambda: None)[0].device.type == "cpu"


FOUR = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]


@pytest.mark.parametrize(
    ("visible", "local_rank", "found"),
    [
        (FOUR, 2, OwnGpu(2, "GPU-c", 4)),  # torchrun: each rank sees all of them
        (["GPU-c"], 2, OwnGpu(0, "GPU-c", 1)),  # srun --gpus-per-task=1: each its own, as index 0
        (FOUR[:2], 2, OwnGpu(-1, "", 2)),
        ([], 0, OwnGpu(-1, "", 0)),
    ],
)
def test_a_rank_takes_the_gpu_of_its_local_rank_or_the_only_one_that_it_sees(
    visible, local_rank, found, monkeypatch
):
    see(monkeypatch, visible)
    assert OwnGpu.find(Device.auto, local_rank, 4) == found
    assert OwnGpu.find(Device.cpu, local_rank, 4).uuid == ""
    if found.uuid:
        assert OwnGpu.find(Device.cuda, local_rank, 4) == found
    else:
        with pytest.raises(ConfigError, match=f"device=cuda with 4 ranks .* {len(visible)} are visible"):
            OwnGpu.find(Device.cuda, local_rank, 4)


SHARED = r"device=(auto|cuda): ranks 0 and 2 would share one GPU; start one rank per GPU"


@pytest.mark.parametrize(
    ("device", "uuids", "visible", "expected"),
    [
        (Device.auto, "abcd", 4, True),
        (Device.cuda, "abcd", 1, True),
        (Device.auto, "ab-d", 1, False),  # a machine without GPUs among others
        (Device.auto, "abac", 1, False),  # fewer GPUs than ranks
        (Device.cuda, "abac", 1, SHARED),
        (Device.auto, "abac", 4, SHARED),  # GPUs enough, but a LOCAL_RANK stands twice
    ],
)
def test_all_compute_on_gpus_if_each_has_its_own_and_none_shares_one_by_mistake(device, uuids, visible, expected):
    gpus = [OwnGpu(-1, "", 0) if uuid == "-" else OwnGpu(0, uuid, visible) for uuid in uuids]
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            all_have_one(device, gpus)
    else:
        assert all_have_one(device, gpus) is expected


def joining(number, port, device, uuids):
    """The device of a rank that sees the GPUs in `uuids`, or why it has none. There is no nccl to join here."""
    dist.barrier()  # none may leave the group while another still joins it
    dist.destroy_process_group()
    place = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (place | {"MASTER_ADDR": "127.0.0.1"}).items():
            patch.setenv(key, str(value))
        see(patch, uuids[number])
        patch.setattr(distributed, "_init", lambda *args: None)
        try:
            return str(join(device, lambda: None)[0].device)
        except ConfigError as error:
            return str(error)


@pytest.mark.parametrize(
    ("device", "uuids", "expected"),
    [
        (Device.cuda, (["GPU-a", "GPU-b"], ["GPU-a", "GPU-b"]), ["cuda:0", "cuda:1"]),
        (Device.cuda, (["GPU-a"], ["GPU-b"]), ["cuda:0", "cuda:0"]),
        (Device.auto, (["GPU-a"], ["GPU-a"]), ["cpu", "cpu"]),
    ],
)
def test_two_ranks_that_join_agree_on_their_devices(device, uuids, expected, ranks, port):
    assert ranks.run(joining, port, device, uuids, world_size=2) == expected


def test_two_ranks_on_one_gpu_are_told_so_on_both(ranks, port):
    told = ranks.run(joining, port, Device.cuda, (["GPU-a"], ["GPU-a"]), world_size=2)
    assert len(set(told)) == 1
    assert told[0].startswith("device=cuda: ranks 0 and 1 would share one GPU")
