"""Weights from a file: taken whole, or refused in one line."""

import contextlib
import os
import zipfile
from dataclasses import replace
from errno import EACCES
from pathlib import Path

import pytest
import safetensors.torch
import torch

from normlab import checkpoint
from normlab.config import ConfigError
from normlab.config.model import CifarResNetConfig, FcnCifarResNetConfig, Stem, TimmConfig, TorchvisionConfig
from normlab.models import build_model, on_meta
from normlab.models.initial_weights import head_parameters, load_initial_weights
from normlab.run import name_run
from tests.runs import EXACT, Recorder, build, typed

FCN = FcnCifarResNetConfig(depth=8, aux_weight=0.4)


def resnet(depth=8, classes=10, seed=1):
    return build_model(CifarResNetConfig(depth=depth), classes, seed=seed)


def fcn(seed=0):
    return build_model(FCN, 5, seed=seed)


def load(model, path, cfg=None, classes=10):
    return load_initial_weights(model, replace(cfg or CifarResNetConfig(), init_from=str(path)), classes)


@pytest.fixture
def saved(tmp_path):
    """A plain state dict of a trained classifier, with running statistics of its own."""
    model = resnet().train()
    model(torch.randn(8, 3, 16, 16))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return model


def same(model, other, names):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in names)


def test_a_whole_model_is_taken_with_its_running_statistics(saved, tmp_path):
    model = resnet(seed=2)
    told = load(model, tmp_path / "weights.pth")
    assert same(model, saved, saved.state_dict())
    assert told.startswith(f"{len(saved.state_dict())} of {len(saved.state_dict())} tensors from ")


def test_a_head_for_other_classes_keeps_its_own_weights_and_says_so(saved, tmp_path):
    model = resnet(classes=7)
    told = load(model, tmp_path / "weights.pth", classes=7)
    assert same(model, saved, [n for n in saved.state_dict() if not n.startswith("head.")])
    assert told.endswith("; made anew: head")


def test_a_trunk_is_found_under_the_name_that_segmentation_gives_it(saved, tmp_path):
    model = fcn()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    told = load(model, tmp_path / "weights.pth", FCN, classes=5)
    anew = [f"{head}.{layer}" for head in ("classifier", "aux_classifier") for layer in (0, 1, 3)]
    assert told.endswith(f"; left in the file: head; made anew: {', '.join(anew)}")
    for name, tensor in model.state_dict().items():
        source = saved.state_dict().get(name.removeprefix("backbone."), before[name])
        assert torch.equal(tensor, source), name


@pytest.mark.parametrize(
    "wrap",
    ["checkpoint", "directory", "state_dict", "ddp", "without statistics", "before torch 1.6", "safetensors"],
)
def test_weights_come_from_a_checkpoint_a_run_or_a_state_dict(saved, tmp_path, wrap):
    state, path = saved.state_dict(), tmp_path / "other.pth"
    if wrap in ("checkpoint", "directory"):
        checkpoint.save(tmp_path / "checkpoint.pt", {"model": state, "step": 3})
        path = tmp_path / "checkpoint.pt" if wrap == "checkpoint" else tmp_path
    elif wrap == "state_dict":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif wrap == "ddp":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    elif wrap == "before torch 1.6":
        torch.save(state, path, _use_new_zipfile_serialization=False)
        assert not zipfile.is_zipfile(path)
    elif wrap == "safetensors":
        safetensors.torch.save_file(state, path)  # told by its content, whatever it is called
    else:  # as GroupNorm's are
        torch.save({name: tensor for name, tensor in state.items() if "running" not in name}, path)
    model = resnet(seed=2)
    told = load(model, path)
    assert same(model, saved, [name for name, _ in saved.named_parameters()])
    assert ("running statistics as initialised: norm, blocks.0.norm1" in told) == (wrap == "without statistics")


def test_another_architecture_is_refused_by_its_first_layer_that_differs(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"weights\.pth has a blocks\.1\.conv1\.weight .*same architecture"):
        load(resnet(depth=14), tmp_path / "weights.pth", CifarResNetConfig(depth=14))
    wide = build_model(CifarResNetConfig(depth=8, width=8), 10, seed=0)
    with pytest.raises(
        ConfigError, match=r"has a conv\.weight \(16, 3, 3, 3\), and the model's is \(8, 3, 3, 3\)"
    ):
        load(wide, tmp_path / "weights.pth", CifarResNetConfig(depth=8, width=8))


def test_what_a_smaller_model_leaves_in_the_file_is_said(tmp_path):
    """All of a ResNet-18 has a place in a ResNet-34, so nothing is missing that would refuse it."""
    cfg = TorchvisionConfig(name="resnet18")
    deeper = build_model(replace(cfg, name="resnet34"), 10, seed=0)
    torch.save(deeper.state_dict(), tmp_path / "weights.pth")
    model = build_model(cfg, 10, seed=1)
    told = load(model, tmp_path / "weights.pth", cfg)
    left = {name.rpartition(".")[0] for name in deeper.state_dict()} - {name for name, _ in model.named_modules()}
    assert told.endswith(
        f"; left in the file: layer1.2.conv1, layer1.2.bn1, layer1.2.conv2 and {len(left) - 3} more"
    )


@pytest.mark.parametrize("content", [b"", b"no archive", "a list", "an object"])
def test_what_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "odd.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save([1, 2] if content == "a list" else {"model": resnet()}, path)
    with pytest.raises(ConfigError, match=r"odd\.pth.*choose another model\.init_from") as raised:
        load(resnet(), path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["before torch 1.6", "safetensors"])
def test_a_file_without_checksums_is_refused_where_it_is_torn_or_no_longer_makes_sense(tmp_path, kind):
    path, state = tmp_path / "odd.pth", resnet().state_dict()
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in (0, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(ConfigError, match=r"odd\.pth.*choose another model\.init_from") as raised:
            load(resnet(), path)
        assert "\n" not in str(raised.value)
    for place in range(2, 60):  # of the beginning, which says what follows
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(ConfigError):
            load(resnet(), path)


@pytest.mark.parametrize(("asked", "there"), [(None, Stem.own), (Stem.own, Stem.cifar)])
def test_another_stem_is_named_with_the_setting_for_it(tmp_path, asked, there):
    cfg = TorchvisionConfig(name="resnet18", stem=asked)
    torch.save(build_model(replace(cfg, stem=there), 10, seed=0).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ConfigError, match=rf"conv1\.weight .*set model\.stem={there.value},"):
        load(build_model(cfg, 10, seed=0), tmp_path / "resnet18.pth", cfg)


@pytest.mark.parametrize("given", ["nowhere", "~no-such-user/x", "x" * 300], ids=["name", "user", "long"])
def test_a_file_that_is_not_there_is_named(given):
    with pytest.raises(ConfigError, match=rf"model\.init_from={given}: there is no {given}"):
        load(resnet(), given)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.touch()

    def refuse(self, *args):
        raise PermissionError(EACCES, os.strerror(EACCES), str(self))

    cfg = typed(f"model.init_from={path}")
    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, who may read all
    with pytest.raises(ConfigError, match=rf"model\.init_from={path}: .* cannot be read \(Permission denied\)"):
        name_run(cfg, world_size=1, study="", data_fingerprint="")


def test_the_head_is_what_a_trunk_comes_without():
    def head(cfg, classes=10):
        return head_parameters(on_meta(lambda: build_model(cfg, classes, seed=0)), cfg, classes)

    assert head(CifarResNetConfig(depth=8)) == {"head.weight", "head.bias"}
    assert {n.partition(".")[0] for n in head(FCN)} == {"classifier", "aux_classifier"}
    assert head(TorchvisionConfig(name="resnet18")) == {"fc.weight", "fc.bias"}
    assert head(TorchvisionConfig(name="squeezenet1_1")) == {"classifier.1.weight", "classifier.1.bias"}


def test_a_model_may_have_two_heads(tmp_path):
    pytest.importorskip("timm")
    cfg = TimmConfig(name="levit_128s")
    model = build_model(cfg, 10, seed=0)
    two = {f"{head}.linear.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")}
    assert head_parameters(model, cfg, 10) == two
    torch.save(build_model(cfg, 7, seed=1).state_dict(), tmp_path / "levit.pth")
    assert load(model, tmp_path / "levit.pth", cfg).endswith("; made anew: head.linear, head_dist.linear")


def test_a_run_says_once_which_layers_were_made_anew_and_gives_all_heads_their_rate(saved, tmp_path):
    small = [*EXACT, f"output_dir={tmp_path}", "batch_size=16", "epochs=1", "max_samples=32"]
    trainer = build(
        0,
        [
            *small,
            "data=shapes_seg",
            "model=fcn_resnet8",
            f"model.init_from={tmp_path}/weights.pth",
            "optim.head_lr_factor=10",
        ],
    )
    told = Recorder()
    trainer.train(told, lambda: 0)
    (note,) = (note for note in told.notes if note.startswith("initial weights: "))
    assert note == f"initial weights: {told.documents['initial_weights']}"
    assert "made anew: classifier.0, classifier.1, classifier.3" in note
    names = {id(p): name for name, p in trainer.module.named_parameters()}
    fast = {
        names[id(p)]
        for group in trainer.optimizer.param_groups
        for p in group["params"]
        if group["lr_factor"] == 10
    }
    assert fast == {name for name in names.values() if name.startswith("classifier.")}
