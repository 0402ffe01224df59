"""The two commands, as a user types them."""

import json
import math
import os
import re
import signal

import pytest

from normlab.bench import __main__, scaling, scaling_page
from normlab.bench.cli import call
from normlab.bench.links import Training
from normlab.bench.norms import plan
from normlab.bench.scaling import MeasuredCollective, MeasuredStep, Measurements, measure, report
from normlab.bench.summary import summarize
from normlab.config import ConfigError, Device, Precision
from normlab.norms import NORMS
from tests.processes import Job, alive, descendants, until

SMALL = ["-m", "normlab.bench", "--norms", "syncbn", "gn", "--shapes", "2x8x4x4", "--sample-s", "0.001"]


def test_the_command_measures_on_real_ranks_and_writes_a_table_and_json(tmp_path):
    (tmp_path / "docs").mkdir()
    command = [*SMALL, "--world-sizes", "1", "2", "--rounds", "3", "--dtypes", "fp32", "--write", "docs"]
    code, out, err = Job(tmp_path, *command).end()
    assert (code, "round 3/3" in err) == (0, True), err
    result = json.loads((tmp_path / "docs" / "cost.json").read_text())
    assert {"command", "date", "hardware", "cores", "backend", "torch", "rounds", "refused"} <= result.keys()
    assert result["command"].startswith("python -m normlab.bench --norms syncbn gn")
    cases = {(case["norm"], case["world_size"]): case for case in result["cases"]}
    assert cases.keys() == {(norm, n) for norm in ("bn", "syncbn", "gn") for n in (1, 2)}
    for (norm, world_size), case in cases.items():
        assert (case["shape"], case["dtype"], case["memory_format"]) == ([2, 8, 4, 4], "fp32", "contiguous")
        for key in ("forward_s", "backward_s", "step_s", "forward_to_bn", "backward_to_bn", "step_to_bn"):
            assert case[key]["n"] == 3
            assert 0 < case[key]["low"] <= case[key]["median"] <= case[key]["high"]
        assert case["threads"] >= 1
        assert [c["name"] for c in case["collectives"]] == ["all_gather", "all_reduce"] * (
            norm == "syncbn" and world_size == 2
        )
        assert case["message_bytes"] == sum(c["message_bytes"] for c in case["collectives"])
    assert cases["bn", 2]["step_to_bn"]["median"] == cases["bn", 2]["saved_to_bn"] == 1
    assert cases["bn", 1]["saved_bytes"] == 4 * 2 * 8 * 4 * 4 + 2 * 8 * 4
    page = (tmp_path / "docs" / "cost.md").read_text()
    assert result["hardware"] in page
    for text in ("2x8x4x4 on each rank, fp32, contiguous", "68 + 64", "all_gather + all_reduce"):
        assert text in out
        assert text in page
    assert sorted(os.listdir(tmp_path / "docs")) == ["cost.json", "cost.md"]


def test_ranks_end_with_the_command_even_when_it_is_killed(tmp_path):
    job = Job(tmp_path, *SMALL, "--world-sizes", "1", "2", "--rounds", "100000")
    try:
        until(lambda: len(descendants(job.process.pid)) >= 5)  # fork server, resource tracker, three ranks
        started = descendants(job.process.pid)
        os.kill(job.process.pid, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in started))
    finally:
        job.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "32x16x32"], "32x16x32 is no shape; give BxCxHxW"),
        (["--shapes", "0x16x32x32"], "axis below 1"),
        (["--rounds", "0"], "0 must be a number of at least 1"),
        (["--rounds", "many"], "many must be a number of at least 1"),
        (["--sample-s", "nan"], "nan must be a number of at least 0"),
        (["--dtypes", "fp16"], "invalid choice: 'fp16'"),
        (["--norm", "bn", "--world-sizes"], "expected at least one argument"),
        (["--norms", "batchnorm"], "--norms batchnorm is unknown; choose from bn, syncbn"),
        (["--shapes", "1x16x1x1"], "1x16x1x1, 1 rank.s.: .* one value per channel"),
        (["--write", "no/such/folder"], "--write no/such/folder is no folder"),
        (["--device", "cuda", "--world-sizes", "512"], "device=cuda with 512 ranks"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("launch.local.preload", lambda: None)  # nothing gets as far as starting ranks
    with pytest.raises(SystemExit) as left:
        call(__main__.run, __main__.options().parse_args(arguments))
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(words, err), err


def test_every_norm_of_the_registry_is_measured_and_on_several_ranks_those_that_talk():
    cases, refused = plan(None, [(4, 32, 8, 8)], [Precision.fp32], ["contiguous"], [1, 2])
    alone = [case.norm for case in cases if case.world_size == 1]
    assert sorted(alone + [where.split()[0] for where in refused]) == sorted(NORMS)
    assert [case.norm for case in cases if case.world_size == 2] == ["bn", "syncbn"]


def test_a_norm_that_cannot_take_an_input_is_left_out_with_the_reason():
    cases, refused = plan(["gn", "in"], [(4, 12, 1, 1)], [Precision.fp32], ["contiguous"], [1])
    assert [case.norm for case in cases] == ["bn"]
    assert "does not divide the 12 channels" in refused["gn on 4x12x1x1, 1 rank(s)"]
    assert "one value per channel of a sample" in refused["in on 4x12x1x1, 1 rank(s)"]
    with pytest.raises(ConfigError, match="bn on 1x3x1x1"):
        plan(["ln"], [(1, 3, 1, 1)], [Precision.fp32], ["contiguous"], [1])


def test_scaling_measures_collectives_and_training_steps_on_real_ranks(monkeypatch):
    monkeypatch.setattr(scaling, "MEASURED_RANKS", (2,))
    monkeypatch.setattr(scaling, "MESSAGE_BYTES", {"all_gather": (64, 4096), "all_reduce": (64, 4096)})
    monkeypatch.setattr(scaling, "TRAININGS", (Training("resnet20", 2, 32),))
    monkeypatch.setattr(scaling, "MEASURED_TRAININGS", (Training("resnet20", 2, 32),))
    said = []
    result = report(measure(Device.cpu, 1, said.append))
    assert "round 1/1" in said[-1]
    assert [(m["collective"], m["ranks"]) for m in result["collectives"][::2]] == [
        ("all_gather", 2),
        ("all_reduce", 2),
    ]
    assert all(m["measured_s"]["median"] > 0 for m in result["collectives"])
    (network,) = result["networks"]
    assert network["compute_s"]["median"] > 0
    for step in network["steps"]:
        assert step["collectives"] >= 2 * 19 + 1
        assert step["message_bytes"] == network["gradient_bytes"] + 4 * sum(
            4 * channels + 1 for channels in Training("resnet20", 2, 32).network().norm_channels
        )


def by_hand():
    """Measurements of a link with 1 ms a round and no bytes' worth, but for one point twice as slow."""
    rounds = {"all_gather": lambda n: n - 1, "all_reduce": lambda n: 2 * (n - 1)}
    collectives = [
        MeasuredCollective(name, n, size, summarize([1e-3 * rounds[name](n)] * 6))
        for name in rounds
        for n in (2, 4)
        for size in (128, 256, 512, 1024)
    ]
    collectives[4] = MeasuredCollective("all_gather", 4, 128, summarize([6e-3] * 6))
    training = Training("resnet20", 8, 32)
    step = MeasuredStep(training, 2, *(summarize([t] * 6) for t in (0.1, 0.004, 0.12)), [])
    return Measurements(collectives, [step], {"resnet20": summarize([0.08] * 6)})


def test_the_page_states_the_models_error_and_its_predictions(tmp_path):
    result = {
        **report(by_hand()),
        "command": "python -m normlab.bench.scaling",
        "date": "2026-01-01",
        "hardware": "a machine",
        "torch": "2",
        "backend": "gloo",
        "rounds": 6,
        "cores": 2,
        "load_average": 1.5,
        "oversubscribed": [4],
    }
    slow = next(m for m in result["collectives"] if m["measured_s"]["median"] == 6e-3)
    assert slow["relative_error_fitted_to_2_ranks"] == pytest.approx(-0.5, abs=1e-3)
    assert slow["relative_error"] < -0.3
    scaling_page.write_scaling(tmp_path, result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scaling.json", "scaling.md", "scaling.png"]
    page = (tmp_path / "scaling.md").read_text()
    assert json.loads((tmp_path / "scaling.json").read_text()) == result
    # 19 layers, a round forward and two backward, of about 1 ms: against 120 ms measured.
    model_s = result["networks"][0]["steps"][0]["model_sync_batch_norm_s"]
    assert math.isclose(model_s, 19 * 3e-3, rel_tol=0.2)
    assert f"| {model_s / 0.12 - 1:+.0%} |" in page
    assert "4 ranks share 2 cores" in page
    assert "load average 1.5 on 2 cores at the start" in page
    assert "Other programs" not in scaling_page.page(result | {"load_average": 0.9})
    assert "fitted to 2 ranks alone, 0% and 50%" in page
    assert "instead of 8,192" in page
    assert "| 1,024 |" in page
