"""The command, as a user types it, and the page that it writes."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from normlab.bench import page
from normlab.bench.__main__ import main
from normlab.bench.measure import norm_config
from normlab.bench.norms import plan
from normlab.config import ConfigError
from normlab.norms import NORMS
from tests.processes import Job, alive, descendants, until

DOCS = Path(__file__).parents[2] / "docs"
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
        until(lambda: len(descendants(job.process.pid)) >= 4)  # fork server, resource tracker, two ranks
        started = descendants(job.process.pid)
        os.kill(job.process.pid, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in started))
    finally:
        job.kill()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "32x16x32"], "32x16x32 is not a shape; give BxCxHxW"),
        (["--shapes", "0x16x32x32"], "axis below 1"),
        (["--rounds", "0"], "0 must be a number of at least 1"),
        (["--rounds", "many"], "many must be a number of at least 1"),
        (["--sample-s", "nan"], "nan must be a number of at least 0"),
        (["--sample-s", "inf"], "inf must be a number of at least 0"),
        (["--dtypes", "fp16"], "invalid choice: 'fp16'"),
        (["--norm", "bn", "--world-sizes"], "expected at least one argument"),
        (["--norms", "batchnorm"], "--norms batchnorm is unknown; choose from bn, syncbn"),
        (["--shapes", "1x16x1x1"], "1x16x1x1, 1 rank.s.: .* one value per channel"),
        (["--write", "no/such/folder"], "--write no/such/folder is not a folder"),
        (["--device", "cuda", "--world-sizes", "512"], "device=cuda with 512 ranks"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr("launch.local.preload", lambda: None)  # nothing gets as far as starting ranks
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert re.search(words, err), err


def test_every_norm_of_the_registry_is_measured_and_on_several_ranks_those_that_need_other_ranks():
    cases, refused = plan(None, [(4, 32, 8, 8)], ["fp32"], ["contiguous"], [1, 2])
    alone = [case.norm for case in cases if case.world_size == 1]
    assert sorted(alone + [where.split()[0] for where in refused]) == sorted(NORMS)
    assert [case.norm for case in cases if case.world_size == 2] == ["bn", "syncbn"]


def test_a_norm_of_ones_own_is_measured_too():
    own = ["tests.norms.own_norms:Group", "tests.norms.own_norms:raises"]
    cases, refused = plan(own, [(4, 16, 8, 8)], ["fp32"], ["contiguous"], [1])
    assert [case.norm for case in cases] == ["bn", own[0]]
    assert "NameError" in refused[f"{own[1]} on 4x16x8x8, 1 rank(s)"]
    assert norm_config(own[0]).name == "tests.norms.own_norms.Group"


def test_a_norm_that_cannot_take_an_input_is_left_out_with_the_reason():
    cases, refused = plan(["gn", "in"], [(4, 12, 1, 1)], ["fp32"], ["contiguous"], [1])
    assert [case.norm for case in cases] == ["bn"]
    assert "does not divide the 12 channels" in refused["gn on 4x12x1x1, 1 rank(s)"]
    assert "one value per channel of a sample" in refused["in on 4x12x1x1, 1 rank(s)"]
    with pytest.raises(ConfigError, match="bn on 1x3x1x1"):
        plan(["ln"], [(1, 3, 1, 1)], ["fp32"], ["contiguous"], [1])


def test_the_committed_page_is_made_from_the_committed_figures():
    result = json.loads((DOCS / "cost.json").read_text())
    assert page.page(result) == (DOCS / "cost.md").read_text()


def test_the_page_warns_of_other_programs_and_names_what_was_left_out():
    result = json.loads((DOCS / "cost.json").read_text())
    busy = page.page(
        result | {"load_average": 1.5, "cores": 2, "refused": {"gn on 4x12x1x1": "8 does not divide 12"}}
    )
    assert "load average 1.5 on 2 cores at the start" in busy
    assert "- left out: gn on 4x12x1x1: 8 does not divide 12\n" in busy
    assert "Other programs" not in page.page(result | {"load_average": 0.9, "cores": 2})
