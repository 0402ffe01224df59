"""Norms that users name as module:name. The oracles: our own norms, of the same formula."""

from pathlib import Path

import pytest
import torch
from torch import nn

from normlab import data
from normlab.config import ConfigError
from normlab.config.norm import CustomNormConfig
from normlab.evaluate import evaluate_run
from normlab.norms import convert_norms
from normlab.norms.custom import OnVirtualRanks
from normlab.norms.running_stats import tracking_layers
from normlab.preflight import plan
from normlab.run import name_run
from tests.norms import own_norms
from tests.runs import EXACT, NARROW, TINY, assert_same_bits, build, run_training, typed

OWN = "tests.norms.own_norms"


def custom(name, **args):
    return CustomNormConfig(target=f"{OWN}:{name}", args=args)


def planned(*overrides, ranks=1):
    cfg = typed(*TINY, NARROW, "norm=custom", *overrides)
    return plan(cfg, data.load(cfg.data), world_size=ranks, study="")


def test_the_target_gets_the_channels_and_the_arguments_and_keeps_gamma_and_beta():
    old = nn.BatchNorm2d(8, dtype=torch.float64).eval()
    new = convert_norms(nn.Sequential(old), custom("Group", groups=2))[0]
    assert type(new) is own_norms.Group
    assert (new.groups, new.training) == (2, False)
    assert new.weight is old.weight
    assert new.bias is old.bias
    assert {tensor.dtype for tensor in new.state_dict().values()} == {torch.float64}
    assert convert_norms(nn.Sequential(nn.BatchNorm2d(8, device="meta")), custom("Group"))[0].scale.is_meta


def test_without_parameters_of_its_channels_it_keeps_what_it_has():
    assert convert_norms(nn.BatchNorm2d(8), custom("HalfBatch")).of_batch.weight.shape == (4,)
    assert (convert_norms(nn.BatchNorm2d(8, affine=False), custom("Group")).weight == 7).all()


@pytest.mark.parametrize(
    ("name", "needs", "size"),
    [("Group", (False, False), 1), ("Batch", (True, False), 4), ("sync", (True, True), 12)],
)
def test_what_it_needs_is_an_attribute_of_the_target(name, needs, size):
    norm = custom(name)
    assert (norm.needs_batch, norm.needs_ranks) == needs
    assert norm.normalization_batch_size(batch_size=4, ranks=3) == size


def test_what_it_was_called_with_and_its_source_belong_to_the_run(own_module):
    here = own_module(Path(own_norms.__file__).read_text())

    def hash_of(*overrides: str) -> str:
        return planned(f"norm.target={here}:Group", *overrides).hash

    first = hash_of()
    assert hash_of("norm.args.groups=2") != first
    assert hash_of() == first
    Path(f"{here}.py").write_text(Path(own_norms.__file__).read_text() + "# another\n")
    assert hash_of() != first


def test_the_name_of_a_run_needs_no_import(monkeypatch):
    monkeypatch.setattr("normlab.targets.import_module", None)
    cfg = typed("norm=custom", f"norm.target={OWN}:Group")
    run = name_run(cfg, world_size=2, study="", data_fingerprint="")
    assert run.directory.name.startswith(f"{OWN}.Group-b32-w2-")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("not_a_module", r"gave something of type int; let it return an nn\.Module"),
        ("raises", r"NameError at tests/norms/own_norms\.py:\d+: name 'missing' is not defined"),
        ("needs_more", r"TypeError.*: needs_more\(\) missing 1 required positional argument: 'groups'"),
        ("constant", r"has no constant that can be called; it has Group, Batch, "),
        (
            "OtherShape",
            r"layer norm: for a tensor \(2, 4, 32, 32\) of float32 it gave a tensor \(2, 4\) of float32",
        ),
        ("OtherDtype", r"it gave a tensor \(2, 4, 32, 32\) of float64; let it keep the shape and the dtype"),
        ("Nothing", r"it gave something of type NoneType; let it keep"),
        ("HidesTheBatch", r"training, layer norm: a sample's output depends on .*; set needs_batch = True"),
        ("EvaluatesTheBatch", r"evaluation, layer norm: a sample's output depends on .*; keep running statistics"),
        (
            "FailsWithGradients",
            r"training, layer norm, with gradients: RuntimeError at tests/norms/own_norms\.py:\d+",
        ),
        ("FailsInTraining", r"training, layer norm: AttributeError at tests/norms/own_norms\.py:\d+"),
    ],
)
def test_what_is_wrong_with_a_target_is_said_in_one_line_that_names_it(target, words):
    with pytest.raises(ConfigError, match=words) as error:
        planned(f"norm.target={OWN}:{target}")
    assert f"norm.target={OWN}:{target}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], r"norm\.target= is no module:name; give one, such as norm\.target=my_norms:MyNorm"),
        (["norm.target=no_such_norms:Norm"], r"there is no module no_such_norms in "),
        ([f"norm.target={OWN}:Group", "norm.name=gn"], r"norm\.name=gn is no name of"),
        ([f"norm.target={OWN}:Group", "norm.args={groups: 3}"], r"RuntimeError .*divisible by num_groups"),
        ([f"norm.target={OWN}:sync", "virtual_ranks=2"], r"needs other ranks .* use world_size=2 real ones"),
    ],
)
def test_what_does_not_fit_is_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        planned(*overrides, ranks=1)


def test_parameters_without_a_gradient_are_refused_on_several_ranks():
    """As DistributedDataParallel does, but in its second step."""
    target = f"norm.target={OWN}:Spare"
    with pytest.raises(
        ConfigError, match=r"layer norm: no gradient reaches weight, which world_size=2 does not allow"
    ):
        planned(target, ranks=2)
    planned(target)


# --- training -------------------------------------------------------------------------------------------


def trained(ranks, folder, norm, world_size=1, **settings):
    overrides = [*EXACT, NARROW, *norm, f"output_dir={folder}/{len(list(folder.iterdir()))}", "batch_size=8"]
    overrides += [f"{key}={value}" for key, value in {"max_samples": 64, **settings}.items()]
    return ranks.run(run_training, overrides, world_size=world_size)[0]


def close(ours, theirs):
    """The same curves, evaluations and diagnostics, where both have them."""
    assert len(ours["points"]) == len(theirs["points"]) > 2
    for one, other in zip(ours["points"], theirs["points"], strict=True):
        shared = one.keys() & other.keys() - {"images_per_second"}
        assert {"train/loss"} <= shared or {"val/loss", "norm/activation_scale", "val/train_mode_gap"} <= shared
        assert {key: one[key] for key in shared} == pytest.approx({key: other[key] for key in shared}, rel=1e-10)


CUSTOM = ("norm=custom", f"norm.target={OWN}:Batch")


@pytest.mark.parametrize("virtual_ranks", [1, 2])
def test_batch_norm_of_the_users_own_trains_as_bn(virtual_ranks, ranks, tmp_path):
    ours = trained(ranks, tmp_path, CUSTOM, virtual_ranks=virtual_ranks)
    close(ours, trained(ranks, tmp_path, ("norm=bn",), virtual_ranks=virtual_ranks))
    again = evaluate_run(ours["run"].directory, [])
    assert again.metrics["val/loss"] == pytest.approx(ours["points"][-1]["val/loss"], rel=1e-12)


@pytest.mark.parametrize("name", ["Batch", "HalfBatch"])
def test_invariant_3_virtual_ranks_are_real_ones(name, ranks, tmp_path):
    norm = ("norm=custom", f"norm.target={OWN}:{name}")
    real = trained(ranks, tmp_path, norm, world_size=2, accumulate=2)
    close(trained(ranks, tmp_path, norm, virtual_ranks=2, accumulate=2), real)


def test_a_norm_that_needs_other_ranks_trains_as_syncbn(ranks, tmp_path):
    ours = trained(ranks, tmp_path, ("norm=custom", f"norm.target={OWN}:sync"), world_size=2, diagnostics="false")
    close_to = trained(ranks, tmp_path, ("norm=syncbn",), world_size=2)
    assert ours["loss"] == pytest.approx(close_to["loss"], rel=1e-12)
    assert ours["outcome"].metrics == pytest.approx(close_to["outcome"].metrics, rel=1e-12)
    # With an uneven evaluation and diagnostics, no rank waits for another.
    told = trained(ranks, tmp_path, ("norm=custom", f"norm.target={OWN}:sync"), world_size=2)
    assert told["outcome"].metrics == ours["outcome"].metrics
    assert not any("activation_scale" in key for key in told["points"][-1])


def test_invariant_4_a_run_stopped_and_resumed_is_bitwise_equal(ranks, tmp_path):
    overrides = [*TINY, NARROW, "norm=custom", f"norm.target={OWN}:HalfBatch", "batch_size=4", "epochs=2"]
    straight = ranks.run(run_training, [*overrides, f"output_dir={tmp_path}/straight"], world_size=2)
    cut = [*overrides, f"output_dir={tmp_path}/cut"]
    assert ranks.run(run_training, cut, {1: (5, 15)}, world_size=2)[0]["outcome"].status == "stopped"
    for ours, theirs in zip(ranks.run(run_training, cut, world_size=2), straight, strict=True):
        assert_same_bits(ours["state"], theirs["state"])


def test_what_it_draws_follows_from_the_seed(tmp_path):
    overrides = [*TINY, NARROW, f"output_dir={tmp_path}", "norm=custom", f"norm.target={OWN}:Group"]
    first, again, other = (
        build(0, [*overrides, f"seed={seed}"]).module.state_dict()["norm.offset"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_layers_on_virtual_ranks_share_parameters_and_have_buffers_of_their_own():
    net = convert_norms(nn.Sequential(nn.BatchNorm2d(8)), custom("Batch"), virtual_ranks=3)
    assert type(net[0]) is OnVirtualRanks
    assert [name for name, _ in net.named_parameters()] == ["0.layers.0.weight", "0.layers.0.bias"]
    assert len({buffer.data_ptr() for name, buffer in net.named_buffers() if "running_mean" in name}) == 3
    assert tracking_layers(net) == {}  # they have no policy
    with pytest.raises(ValueError, match="7 samples cannot be split over 3 virtual ranks"):
        net(torch.randn(7, 8, 2, 2))
