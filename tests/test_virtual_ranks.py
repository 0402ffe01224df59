"""Invariant 3: a run on virtual ranks is the run on as many real ones, on real gloo ranks."""

import pytest
import torch

from normlab.config.norm import NORMS, RunningStats
from tests.norms.configs import UNFROZEN, overrides_of
from tests.runs import EXACT, NARROW, Recorder, build

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
WIDE = {"none", "ln2d", "rms", "frn", "evonorm_s0"}
"""Norms that see no ranks, as gn, ln and in do not."""
PARTS = {
    "ghost_bn": ["norm.ghost_batch_size=1"],
    "syncbn": ["norm.sync_group_size=2"],
    "gn": ["norm.num_groups=2"],
}
"""With which a batch of 2 has parts, 4 ranks have groups, and 4 channels have groups."""


def train_and_evaluate(rank, overrides):
    """20 steps with an evaluation in the midst of them, then one under every policy that the norm has."""
    trainer, recorder = build(rank, overrides), Recorder()
    trainer.train(recorder, lambda: 0)
    evaluations = [p for p in recorder.points if "val/loss" in p]
    norm = trainer.cfg.norm
    for policy in RunningStats if hasattr(norm, "running_stats") else ():
        norm.running_stats = policy
        buffers, spread = trainer.evaluator.buffers()
        evaluations.append({"policy": policy.value, **trainer.evaluator.metrics(buffers, final=False), **spread})
    return {
        "loss": torch.tensor(recorder.curve("train/loss"), dtype=torch.float64),
        "evaluations": evaluations,
        "parameters": [p.detach().clone() for p in trainer.module.parameters()],
        "buffers": {name: (b.clone()) for name, b in trainer.module.named_buffers() if "running" in name},
    }


def of_logical_ranks(results, name, channels, logical_ranks):
    """A running statistic, row l of logical rank l: a process has one row for each group of its ranks."""
    rows = torch.cat([result["buffers"][name].view(-1, channels) for result in results])
    return rows.repeat_interleave(logical_ranks // len(rows), dim=0)


def assert_same_run(virtual, real):
    torch.testing.assert_close(virtual[0]["loss"], real[0]["loss"], rtol=1e-10, atol=0)
    torch.testing.assert_close(virtual[0]["parameters"], real[0]["parameters"], **CLOSE)
    for name, buffer in real[0]["buffers"].items():
        ours, theirs = (of_logical_ranks(results, name, len(buffer), len(real)) for results in (virtual, real))
        torch.testing.assert_close(ours, theirs, **CLOSE)
    for ours, theirs in zip(virtual[0]["evaluations"], real[0]["evaluations"], strict=True):
        assert ours.keys() == theirs.keys()
        for tag, value in theirs.items():
            assert ours[tag] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-10, abs=1e-10))


@pytest.mark.parametrize(
    ("norm", "options", "logical_ranks", "splits"),
    [
        pytest.param(norm, PARTS.get(norm, []), 4, [(1, 4), (2, 2)], marks=[pytest.mark.full] * (norm in WIDE))
        for norm in UNFROZEN
    ]
    + [("syncbn", [], 4, [(1, 4), (2, 2)]), ("bn", [], 2, [(1, 2)]), ("syncbn", PARTS["syncbn"], 2, [(1, 2)])],
)
def test_invariant_3_virtual_ranks_are_real_ranks(norm, options, logical_ranks, splits, ranks, tmp_path):
    overrides = [
        *EXACT,
        NARROW,
        f"output_dir={tmp_path}",
        *overrides_of(norm),
        *options,
        "batch_size=2",
        "epochs=9",
    ]
    overrides += [f"max_samples={20 * 2 * logical_ranks}", "eval_every_epochs=1", "diagnostics=false"]
    of_batch = NORMS[norm].needs_batch
    overrides += ["data.num_train=80", *["norm.precise_samples=40"] * of_batch]
    real = ranks.run(train_and_evaluate, overrides, world_size=logical_ranks)
    assert len(real[0]["loss"]) == 20
    policies = [e.get("policy") for e in real[0]["evaluations"]]
    assert policies == [None] * (logical_ranks // 2) + (["rank0", "pooled", "precise"] if of_batch else [])
    for world_size, virtual_ranks in splits:
        virtual = ranks.run(
            train_and_evaluate, [*overrides, f"virtual_ranks={virtual_ranks}"], world_size=world_size
        )
        assert_same_run(virtual, real)


def test_ranks_and_policies_are_told_apart(ranks, tmp_path):
    """What the invariant compares does differ: else it would hold for nothing."""
    overrides = [*EXACT, f"output_dir={tmp_path}", "batch_size=2", "epochs=1", "max_samples=40"]
    apart = ranks.run(train_and_evaluate, [*overrides, "virtual_ranks=4"], world_size=1)[0]
    together = ranks.run(train_and_evaluate, [*overrides, "batch_size=8"], world_size=1)[0]
    assert not torch.allclose(apart["loss"], together["loss"], rtol=1e-3)
    losses = {e["policy"]: e["val/loss"] for e in apart["evaluations"] if "policy" in e}
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    spread = apart["evaluations"][-1]
    assert spread["running_stats/mean_spread"] > 1e-3
    assert spread["running_stats/var_spread"] > 1e-3


def test_accumulation_and_virtual_ranks_compose(ranks, tmp_path):
    overrides = [*EXACT, f"output_dir={tmp_path}", "batch_size=2", "accumulate=3", "epochs=1"]
    real = ranks.run(train_and_evaluate, overrides, world_size=2)
    assert_same_run(ranks.run(train_and_evaluate, [*overrides, "virtual_ranks=2"], world_size=1), real)
