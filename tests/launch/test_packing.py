"""Which jobs run side by side."""

from types import SimpleNamespace

import pytest
import torch

from launch.packing import Machine
from normlab.config import ConfigError
from normlab.config.config import Device


def job(world_size=1, threads=None, device=Device.auto):
    config = SimpleNamespace(world_size=world_size, threads=threads, device=device)
    return SimpleNamespace(run=SimpleNamespace(config=config))


def machine(*, cores=4, gpus=(), jobs_per_gpu=1, ranks=8):
    return Machine(cores=cores, gpus=gpus, jobs_per_gpu=jobs_per_gpu, ranks=ranks)


def test_jobs_fill_the_cores_with_one_thread_a_rank():
    cores = machine(cores=4)
    two, one, another = cores.take(job(2)), cores.take(job()), cores.take(job())
    assert [share.threads for share in (two, one, another)] == [1, 1, 1]
    assert cores.take(job()) is None
    cores.give_back(one)
    assert cores.take(job(2)) is None
    assert cores.take(job(1)) is not None


@pytest.mark.parametrize(("ranks", "threads"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_few_jobs_share_the_cores_evenly(ranks, threads):
    assert machine(cores=8, ranks=ranks).take(job()).threads == threads


def test_the_threads_of_a_job_are_respected_and_counted():
    cores = machine(cores=4)
    assert cores.take(job(threads=3)).threads == 3
    assert cores.take(job(threads=2)) is None
    assert cores.take(job(threads=1)) is not None


def test_a_job_larger_than_the_machine_runs_alone():
    cores = machine(cores=2)
    small = cores.take(job())
    assert cores.take(job(8)) is None
    cores.give_back(small)
    large = cores.take(job(8))
    assert large is not None
    assert cores.take(job()) is None
    cores.give_back(large)
    assert cores.take(job(2)) is not None


def test_no_two_jobs_are_on_one_gpu_unless_asked():
    gpus = machine(gpus=["0", "1"])
    first, second = gpus.take(job()), gpus.take(job())
    assert {first.cuda_visible_devices, second.cuda_visible_devices} == {"0", "1"}
    assert gpus.take(job()) is None
    gpus.give_back(first)
    assert gpus.take(job()).gpus == first.gpus


def test_each_rank_of_a_job_has_a_gpu_of_its_own():
    gpus = machine(gpus=["3", "5", "7"], jobs_per_gpu=2)
    assert gpus.take(job(2)).cuda_visible_devices == "3,5"
    assert gpus.take(job(2)).cuda_visible_devices == "7,3"
    assert gpus.take(job(2)).cuda_visible_devices == "5,7"
    assert gpus.take(job()) is None


def test_a_job_on_the_cpu_takes_no_gpu():
    both = machine(cores=1, gpus=["0"])
    assert both.take(job(device=Device.cpu)).gpus == ()
    assert both.take(job()).gpus == ("0",)


def test_a_job_of_more_ranks_than_gpus_takes_cores(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    both = Machine.here([job(2), job(2), job(1)], jobs_per_gpu=1)
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(
        "device=auto computes on the CPU: not each of 2 ranks can have one of the 1 CUDA devices"
    )
    on_cores = both.take(job(2))
    assert (on_cores.gpus, on_cores.cores) == ((), 2)
    assert both.take(job(1)).gpus == ("0",)


def test_a_job_that_asks_for_more_gpus_than_there_are_is_a_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="device=cuda with 2 ranks"):
        Machine.here([job(2, device=Device.cuda)], jobs_per_gpu=1)
