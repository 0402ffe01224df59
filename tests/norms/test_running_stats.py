"""Each policy against numpy, on the activations that the layers of all ranks saw, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from normlab import checkpoint
from normlab.config import ConfigError
from normlab.config.config import Precision
from normlab.config.norm import RunningStats
from normlab.data.order import Stream, permutation
from normlab.distributed import Ranks
from normlab.models import build_model
from normlab.norms.running_stats import RankStatistics, as_buffers, precise_statistics, tracking_layers
from normlab.numerics import Numerics
from tests.runs import EXACT, Recorder, build, typed

ALONE = Ranks(0, 1, 1, torch.device("cpu"))


def inputs_of_layers(model, images_BCHW):
    """What each BatchNorm of `model` is given: name -> (B, C, values) numpy."""
    seen = {}

    def watch(name):
        return lambda layer, args: seen.__setitem__(name, args[0].detach().flatten(2).numpy().copy())

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in tracking_layers(model).items()]
    with torch.no_grad():
        model(images_BCHW)
    for handle in handles:
        handle.remove()
    return seen


def close(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-11, atol=1e-12)


def one_batch_with_momentum_1(rank, overrides):
    """Running statistics are then those of the batch: the activations say all."""
    trainer = build(rank, overrides)
    [(images_BCHW, _)] = next(trainer.batches.epoch(0))
    seen = inputs_of_layers(trainer.module, images_BCHW)
    policies = {}
    for policy in (RunningStats.rank0, RunningStats.pooled):
        trainer.cfg.norm.running_stats = policy
        policies[policy], spread = trainer.evaluator.buffers()
    return seen, policies, spread


@pytest.mark.parametrize(("world_size", "virtual_ranks"), [(4, 1), (2, 2), (1, 4)])
def test_rank0_and_pooled_and_spread_are_numpys_on_the_activations_of_all_ranks(
    world_size, virtual_ranks, ranks, tmp_path
):
    overrides = [*EXACT, f"output_dir={tmp_path}", "batch_size=3", f"virtual_ranks={virtual_ranks}"]
    results = ranks.run(one_batch_with_momentum_1, [*overrides, "norm.momentum=1"], world_size=world_size)
    spreads = []
    for name in results[0][0]:
        # Rows of a rank's own activations: sample i of a process is of its virtual rank i % V.
        x_RCN = [
            np.moveaxis(seen[name][v::virtual_ranks], 1, 0).reshape(seen[name].shape[1], -1)
            for seen, _, _ in results
            for v in range(virtual_ranks)
        ]
        mean_RC = np.stack([x.mean(1) for x in x_RCN])
        var_RC = np.stack([x.var(1, ddof=1) for x in x_RCN])
        for _, policies, _ in results:  # every rank evaluates with the same
            rank0, pooled = policies[RunningStats.rank0], policies[RunningStats.pooled]
            close(rank0[f"{name}.running_mean"], mean_RC[0])
            close(rank0[f"{name}.running_var"], var_RC[0])
            close(pooled[f"{name}.running_mean"], mean_RC.mean(0))
            close(pooled[f"{name}.running_var"], var_RC.mean(0) + mean_RC.var(0))
        scale = var_RC.mean(0) + 1e-5
        spreads.append((mean_RC.var(0) / scale, var_RC.var(0) / scale**2))
    expected = [np.sqrt(np.concatenate(column).mean()) for column in zip(*spreads, strict=True)]
    for _, _, spread in results:
        assert list(spread.values()) == pytest.approx(expected, rel=1e-10)
        assert list(spread) == ["running_stats/mean_spread", "running_stats/var_spread"]


def precise_of_run(rank, overrides):
    trainer = build(rank, overrides)
    before = {name: b.clone() for name, b in trainer.module.named_buffers()}
    buffers, _ = trainer.evaluator.buffers()
    assert all(torch.equal(before[name], b) for name, b in trainer.module.named_buffers())
    assert all(p.grad is None for p in trainer.module.parameters())
    return buffers


@pytest.mark.parametrize(
    ("norm", "splits"),
    [("norm=bn", [(1, 1), (3, 1), (2, 2)]), ("norm=syncbn norm.sync_group_size=2", [(2, 2), (1, 4)])],
)
def test_precise_is_numpys_on_unaugmented_samples_in_chunks_of_the_nbs(norm, splits, ranks, tmp_path):
    # 7 chunks of 5 samples (or 3 of 10) and a rest; 3 chunks a batch (or 1), so that the last batch is short.
    overrides = [*EXACT, f"output_dir={tmp_path}", *norm.split(), "norm.running_stats=precise", "seed=3"]
    overrides += ["norm.precise_samples=37", "batch_size=5"]
    chunk_size = 5 * (2 if "size=2" in norm else 1)
    trainer = build_alone(tmp_path, "seed=3")
    order = permutation(96, seed=3, epoch=0, stream=Stream.precise)[: 37 // chunk_size * chunk_size]
    images_BHWC, _ = trainer.dataset.train.take(order)
    images_BCHW = trainer.numerics.images(images_BHWC, trainer.dataset.mean_C, trainer.dataset.std_C)
    seen = [inputs_of_layers(trainer.module, chunk) for chunk in images_BCHW.split(chunk_size)]
    for world_size, virtual_ranks in splits:
        settings = [*overrides, f"virtual_ranks={virtual_ranks}"]
        for buffers in ranks.run(precise_of_run, settings, world_size=world_size):
            for name in seen[0]:
                x_BCN = np.concatenate([chunk[name] for chunk in seen])
                close(buffers[f"{name}.running_mean"], x_BCN.mean((0, 2)))
                close(buffers[f"{name}.running_var"], x_BCN.var((0, 2), ddof=1))


def build_alone(tmp_path, *overrides):
    return build(0, [*EXACT, f"output_dir={tmp_path}/alone", *overrides])


def test_precise_knows_shared_layers_other_buffers_and_layers_that_keep_no_statistics():
    torch.manual_seed(0)
    shared = nn.BatchNorm1d(3, dtype=torch.float64)
    silent = nn.BatchNorm1d(3, dtype=torch.float64, track_running_stats=False)
    model = nn.Sequential(shared, nn.Linear(3, 3, dtype=torch.float64), silent, shared)
    model.register_buffer("other", torch.ones(2))
    x_BC = torch.randn(8, 3, dtype=torch.float64)
    off = torch.autocast("cpu", enabled=False)
    mean_C, var_C = precise_statistics(model, [x_BC], 8, ALONE, autocast=off)
    first, again = [], []
    shared.register_forward_pre_hook(lambda layer, args: (again if first else first).append(args[0]))
    with torch.no_grad():
        model(x_BC)
    both = torch.cat([*first, *again]).numpy()
    close(mean_C, both.mean(0))
    close(var_C, both.var(0, ddof=1))
    assert as_buffers(model, mean_C, var_C).keys() == {"0.running_mean", "0.running_var"}


def test_a_norm_without_running_statistics_has_no_policy():
    assert RankStatistics.gather(nn.Sequential(nn.GroupNorm(1, 3)), ALONE) is None


def exported(rank, overrides):
    trainer, recorder = build(rank, overrides), Recorder()
    trainer.train(recorder, lambda: 0)
    return trainer.run, recorder.points[-1]["val/loss"]


@pytest.mark.parametrize("policy", RunningStats)
@pytest.mark.parametrize(("world_size", "virtual_ranks"), [(2, 1), (1, 2)])
def test_the_model_in_a_checkpoint_is_a_batch_norm_model_with_the_policys_statistics(
    world_size, virtual_ranks, policy, ranks, tmp_path
):
    overrides = [*EXACT, f"output_dir={tmp_path}", f"norm.running_stats={policy.value}", "batch_size=8"]
    overrides += [f"virtual_ranks={virtual_ranks}", "epochs=1", "norm.precise_samples=48"]
    run, val_loss = ranks.run(exported, overrides, world_size=world_size)[0]
    cfg = typed(*overrides)
    model = build_model(cfg.model, 10, seed=1).double().eval()
    model.load_state_dict(checkpoint.load(run.checkpoint_path)["model"])
    val = build_alone(tmp_path).dataset
    images_BHWC, labels_B = val.val.take(torch.arange(len(val.val)))
    logits_BK = model(Numerics.of(Precision.fp64, torch.device("cpu")).images(images_BHWC, val.mean_C, val.std_C))
    assert nn.functional.cross_entropy(logits_BK, labels_B).item() == pytest.approx(val_loss, rel=1e-12)


def test_fewer_precise_samples_than_share_statistics_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"norm.precise_samples=8 is less than the 16 samples .* multiple of 16"):
        build_alone(
            tmp_path,
            "norm=syncbn",
            "norm.running_stats=precise",
            "norm.precise_samples=8",
            "batch_size=4",
            "virtual_ranks=4",
        )
