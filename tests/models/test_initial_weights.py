"""Weights from a file: taken whole, or refused in one line."""

import pytest
import torch

from normlab import checkpoint
from normlab.config import CifarResNetConfig, ConfigError, FcnCifarResNetConfig, TorchvisionConfig
from normlab.models import build_model
from normlab.models.initial_weights import head_parameters, load_initial_weights


def resnet(depth=8, classes=10, seed=1):
    return build_model(CifarResNetConfig(depth=depth), classes, seed=seed)


def fcn(seed=0):
    return build_model(FcnCifarResNetConfig(depth=8, aux_weight=0.4), 5, seed=seed)


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
    told = load_initial_weights(model, str(tmp_path / "weights.pth"))
    assert same(model, saved, saved.state_dict())
    assert told.startswith(f"{len(saved.state_dict())} of {len(saved.state_dict())} tensors from ")


def test_a_head_for_other_classes_keeps_its_own_weights_and_says_so(saved, tmp_path):
    model = resnet(classes=7)
    told = load_initial_weights(model, str(tmp_path / "weights.pth"))
    assert same(model, saved, [n for n in saved.state_dict() if not n.startswith("head.")])
    assert told.endswith("; as initialised: head.weight, head.bias")


def test_a_trunk_is_found_under_the_name_that_segmentation_gives_it(saved, tmp_path):
    model = fcn()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    load_initial_weights(model, str(tmp_path / "weights.pth"))
    for name, tensor in model.state_dict().items():
        source = saved.state_dict().get(name.removeprefix("backbone."), before[name])
        assert torch.equal(tensor, source), name


@pytest.mark.parametrize("wrap", ["checkpoint", "directory", "state_dict", "ddp", "without statistics"])
def test_weights_come_from_a_checkpoint_a_run_or_a_state_dict(saved, tmp_path, wrap):
    state, path = saved.state_dict(), tmp_path / "other.pth"
    if wrap in ("checkpoint", "directory"):
        checkpoint.save(tmp_path / "checkpoint.pt", {"model": state, "step": 3})
        path = tmp_path / "checkpoint.pt" if wrap == "checkpoint" else tmp_path
    elif wrap == "state_dict":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif wrap == "ddp":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:  # as GroupNorm's are
        torch.save({name: tensor for name, tensor in state.items() if "running" not in name}, path)
    model = resnet(seed=2)
    told = load_initial_weights(model, str(path))
    assert same(model, saved, [name for name, _ in saved.named_parameters()])
    assert ("running_mean" in told) == (wrap == "without statistics")


def test_another_architecture_is_refused_by_its_first_layer_that_differs(saved, tmp_path):
    with pytest.raises(ConfigError, match=r"weights\.pth has a blocks\.1\.conv1\.weight .*same architecture"):
        load_initial_weights(resnet(depth=14), str(tmp_path / "weights.pth"))
    wide = build_model(CifarResNetConfig(depth=8, width=8), 10, seed=0)
    with pytest.raises(
        ConfigError, match=r"has a conv\.weight \(16, 3, 3, 3\), and the model's is \(8, 3, 3, 3\)"
    ):
        load_initial_weights(wide, str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("content", [b"", b"no archive", "a list", "an object"])
def test_what_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "odd.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save([1, 2] if content == "a list" else {"model": resnet()}, path)
    with pytest.raises(ConfigError, match=r"odd\.pth .*choose another model\.init_from") as raised:
        load_initial_weights(resnet(), str(path))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"model\.init_from=nowhere: there is no nowhere"):
        load_initial_weights(resnet(), "nowhere")


def test_the_head_is_what_a_trunk_comes_without():
    assert head_parameters(resnet()) == {"head.weight", "head.bias"}
    assert {n.partition(".")[0] for n in head_parameters(fcn())} == {"classifier", "aux_classifier"}
    torchvision = build_model(TorchvisionConfig(name="resnet18"), 10, seed=0)
    assert head_parameters(torchvision) == {"fc.weight", "fc.bias"}
