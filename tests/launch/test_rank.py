"""What a rank does before it trains, and in which order."""

import pytest
import torch.distributed as dist

from launch import rank
from normlab import data, distributed
from normlab.config import ConfigError
from normlab.config.config import Device
from tests.runs import TINY, directory_of, typed


@pytest.fixture
def alone(monkeypatch, tmp_path):
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.chdir(tmp_path)


def test_a_rank_reads_its_data_once_and_before_it_joins_the_others(alone, monkeypatch):
    order = []
    load, exchange = data.load, distributed.exchange
    monkeypatch.setattr(data, "load", lambda *args: (order.append("data"), load(*args))[1])
    monkeypatch.setattr(distributed, "exchange", lambda *args: (order.append("others"), exchange(*args))[1])
    assert rank.run_rank(typed(*TINY, "epochs=1", "progress=false"), "test") == 0
    assert order == ["data", "others"]


def test_a_run_that_ended_on_the_cpu_is_not_passed_off_as_one_of_cuda(alone, capsys):
    run = directory_of([*TINY, "epochs=1", "device=cuda"], 1)
    run.create()
    run.write_result("finished", {"val/accuracy": 0.5}, {"device": "cpu", "devices": ["cpu"]})
    assert rank.ended(run)
    assert capsys.readouterr().err == (
        "This run has ended before on cpu, though device=cuda; rerun=true starts it over.\n"
    )


def joining(number, port, mistake_on):
    """What joining gives or raises, on a rank that has no group yet; data is read while there is none."""
    dist.barrier()  # none may leave the group while another still joins it
    dist.destroy_process_group()
    place = {"RANK": number, "WORLD_SIZE": 3, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": 3, "MASTER_PORT": port}

    def prepare():
        assert not dist.is_initialized()  # no collective can end at its timeout
        if number in mistake_on:
            raise ConfigError(f"found by rank {number}")
        if -number in mistake_on and number:
            raise MemoryError
        return f"data of rank {number}"

    with pytest.MonkeyPatch.context() as patch:
        for key, value in (place | {"MASTER_ADDR": "127.0.0.1"}).items():
            patch.setenv(key, str(value))
        try:
            ranks, prepared = distributed.join(Device.cpu, prepare)
        except ConfigError as error:
            return str(error)
        except MemoryError:
            return "left"
    return prepared, ranks.gather(distributed.torch.tensor([ranks.rank])).flatten().tolist()


def test_ranks_prepare_apart_and_then_join(ranks, port):
    found = ranks.run(joining, port, (), world_size=3)
    assert found == [(f"data of rank {number}", [0, 1, 2]) for number in range(3)]


def test_a_mistake_that_any_rank_finds_while_preparing_is_raised_on_all(ranks, port):
    assert ranks.run(joining, port, (1, 2), world_size=3) == ["found by rank 1"] * 3


def test_a_rank_that_breaks_while_preparing_is_not_waited_for(ranks, port):
    told = "rank 2 failed before it joined; its own output says why."
    assert ranks.run(joining, port, (-2,), world_size=3) == [told, told, "left"]


def test_a_named_run_whose_data_is_gone_when_its_turn_comes_has_failed(alone, monkeypatch, capsys):
    overrides = [*TINY, "epochs=1"]
    run = directory_of(overrides, 1)

    def gone(*args):
        raise ConfigError("data.root=pictures is gone")

    monkeypatch.setattr(data, "load", gone)
    assert rank.run_rank(typed(*overrides), "test", run) == 2
    assert capsys.readouterr().err == "error: data.root=pictures is gone\n"
    assert run.result()["error"] == "data.root=pictures is gone"
    with run.lock() as free:  # what is trained elsewhere is not touched
        assert free
        (run.directory / "result.json").unlink()
        assert rank.run_rank(typed(*overrides), "test", run) == 2
    assert run.result() is None
