"""Each property finds the mistake that it is for, and our own norms have none."""

import re

import pytest

from normlab.check import properties
from normlab.check.__main__ import main, norm_of
from normlab.check.layers import Subject
from normlab.check.properties import PROPERTIES, verdicts
from normlab.config import ConfigError
from normlab.norms import NORMS

SHAPE = (8, 16, 3, 3)
WRONG = {
    "OtherShape": ({"shape and dtype"}, r"for a tensor \(8, 16, 3, 3\) of float32 the output is a tensor \(7, 16"),
    "StopsAGradient": ({"gradients"}, r"in training, the gradient of the input is \d\.\de[-+]\d\d off"),
    "WrongInEvaluation": ({"gradients"}, r"in evaluation, the gradient of the input is"),
    "LeavesOutAParameter": ({"parameters"}, r"parameter gate has no gradient"),
    "DeclaresNoParameter": ({"weight decay"}, r"gives gate, which is no parameter; give some of weight, bias"),
    # Virtual ranks are not kept apart where nothing says that they must be.
    "HidesTheBatch": (
        {"other samples", "virtual ranks"},
        r"needs_batch is False, and an output moves by 1\.\de-01",
    ),
    "EvaluatesTheBatch": ({"evaluation"}, r"an output moves by .* with the rest of its batch; keep running"),
    "ChangesInEvaluation": ({"evaluation"}, r"an evaluation changes batches by \d\.\de\+00"),
    "TalksInEvaluation": ({"real ranks"}, r"an evaluation has a collective"),
    "HidesACollective": ({"real ranks"}, r"needs_ranks is False, and a step has 1 collectives"),
    "SumsNoGradient": ({"real ranks"}, r"on 2 ranks, the gradient of the input is .* off that of one process"),
    "Forgets": ({"state dict"}, r"evaluates \d\.\de[-+]\d\d off; keep what training changes in buffers"),
    "Counts": ({"resume"}, r"in the step after its state dict was loaded, .* is \d\.\de[-+]\d\d off; keep"),
    "GivesFloat32": ({"bf16"}, r"under autocast, .* of bfloat16 the output is a tensor .* of float32"),
    "RoundsMuch": ({"bf16"}, r"under autocast, the output is .* off the exact one"),
    "NeedsStrides": ({"channels_last"}, r"RuntimeError at tests/check/wrong_norms\.py:\d+: view size"),
}


def examined(ranks, *words: str):
    return {verdict.name: verdict for verdict in verdicts(Subject(norm_of(words), SHAPE, ranks))}


def test_each_property_has_a_norm_that_lacks_it():
    """Virtual ranks are our own code, but for what is declared."""
    assert set().union(*(names for names, _ in WRONG.values())) == PROPERTIES.keys()


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_found_by_the_property_that_it_breaks(name, ranks):
    broken, words = WRONG[name]
    found = examined(ranks, f"norm.target=tests.check.wrong_norms:{name}")
    assert {verdict.name for verdict in found.values() if verdict.holds is False} == broken
    first = next(verdict for verdict in found.values() if verdict.holds is False)
    assert re.search(words, first.said), first.said
    assert all("\n" not in verdict.said for verdict in found.values())


@pytest.mark.parametrize(
    "words",
    [
        ["norm=syncbn"],
        ["norm=gn"],
        ["norm.target=tests.norms.own_norms:HalfBatch"],
        *(
            pytest.param(words, marks=pytest.mark.full)
            for words in [
                *([f"norm={norm}"] for norm in NORMS if norm not in ("syncbn", "gn")),
                ["norm=syncbn", "norm.sync_group_size=2"],
                ["norm.target=tests.norms.own_norms:sync"],
            ]
        ),
    ],
    ids=" ".join,
)
def test_a_norm_without_a_mistake_has_every_property(words, ranks):
    found = examined(ranks, *words)
    assert found.keys() == PROPERTIES.keys()
    assert [verdict for verdict in found.values() if verdict.holds is False] == []


class Pool:
    """In place of the ranks that the command starts."""

    ranks = None

    def __init__(self, size):
        pass

    def __enter__(self):
        return self.ranks

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize(("name", "code"), [("Affine", 0), ("DeclaresNoParameter", 1)])
def test_the_command_says_a_line_for_each_property_and_its_exit_code(name, code, ranks, capsys, monkeypatch):
    monkeypatch.setattr("normlab.bench.ranks.RankPool", Pool)
    monkeypatch.setattr(Pool, "ranks", ranks)
    monkeypatch.setattr(properties, "WORLD_SIZES", (2,))
    with pytest.raises(SystemExit) as left:
        main([f"norm.target=tests.check.wrong_norms:{name}", "--shape", "2x4x2x2"])
    assert left.value.code == code
    head, *lines, counts = capsys.readouterr().out.splitlines()
    assert (
        head
        == f"tests.check.wrong_norms.{name}: needs_batch=False, needs_ranks=False; inputs 2x4x2x2 on each rank"
    )
    assert len(lines) == len(PROPERTIES)
    assert [line.split()[:2] for line in lines if line.startswith("DOES")] == [["DOES", "NOT"]] * code
    assert counts == ("holds: 11, does not hold: 1" if code else "holds: 11, not claimed: 1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["norm.num_groups=4"], r"norm= is unknown; give norm\.target=my_norms:MyNorm, or one of bn, syncbn"),
        (["norm=bn", "norm.num_groups=4"], r"norm\.num_groups is not a key of norm=bn"),
        (["norm=gn", "batch_size=4"], r"batch_size is no key of a norm; give norm=<name>"),
        (["norm=gn", "norm.num_groups=x"], r"norm\.num_groups"),
        (["norm=gn", "norm.num_groups=3"], r"norm\.num_groups=3 does not divide the 16 channels"),
        (["norm.target=tests.norms.own_norms:raises"], r"norm\.target=.*: NameError at tests/norms/own_norms\.py"),
        (["norm.target=tests.norms.own_norms:constant"], r"has no constant that can be called"),
        (["norm=gn", "--shape", "4"], r"4 is not a shape; give BxCxHxW"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_and_exit_code_2(words, message, capsys, monkeypatch):
    monkeypatch.setattr("normlab.bench.ranks.RankPool", Pool)
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_target_alone_chooses_custom():
    norm = norm_of(["norm.target=tests.norms.own_norms:Group", "norm.args.groups=2"])
    assert (norm.name, norm.args) == ("tests.norms.own_norms.Group", {"groups": 2})
    with pytest.raises(ConfigError, match=r"norm\.name=gn is no name of"):
        norm_of(["norm.target=tests.norms.own_norms:Group", "norm.name=gn"])
