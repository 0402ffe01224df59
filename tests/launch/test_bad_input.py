"""A user's mistake is one line, exit code 2, and nothing left behind; before any rank starts."""

import os
import sys

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import train
from launch import local
from tests.runs import directory_of


@pytest.fixture
def run_train(monkeypatch, capsys, tmp_path):
    """Calls train.py's main in an empty folder; gives exit code and stderr."""

    def run(*overrides):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(local, "start_ranks", lambda *args: pytest.fail("ranks were started"))
        monkeypatch.setattr(local, "preload", lambda: None)
        with pytest.raises(SystemExit) as left:
            train.main()
        GlobalHydra.instance().clear()
        return left.value.code, capsys.readouterr().err

    return run


ONE_LINE = [
    (["batch_size=-4"], ["batch_size=-4", "at least 1"]),
    (["optim.lr=nan"], ["optim.lr=nan"]),
    (["norm=gn", "norm.num_groups=3"], ["norm", "16 channels", "1, 2, 4, 8, 16", "norm.nondivisible=nearest"]),
    (["norm=gn", "norm.num_groups=4", "norm.channels_per_group=4"], ["exclude each other"]),
    (["batch_size=5000", "world_size=2"], ["batch_size=5000", "10000", "8000 training samples"]),
    (["world_size=2", "norm=syncbn", "norm.sync_group_size=3"], ["norm.sync_group_size=3"]),
    (["device=cuda"], ["device=cuda", "0 are visible"]),
    (["data=image_folder"], ["data.root"]),
    (["data=image_folder", "data.root=nowhere"], ["nowhere"]),
    (["data=shapes_seg"], ["model=resnet8", "data=shapes_seg", "model=fcn_resnet20"]),
    (["model=fcn_resnet20"], ["model=fcn_resnet20", "data=shapes", "model=resnet20"]),
    (["data=mask_folder", "model=fcn_resnet8"], ["data.root", "train/images/"]),
    (["data=shapes_seg", "model=deeplabv3_resnet18", "batch_size=1"], ["batch_size=1", "classifier.0.convs.4.2"]),
    (["data=shapes_seg", "model=deeplabv3_resnet18", "norm=in"], ["norm=in", "classifier.0.convs.4.2"]),
    (["data=shapes_seg", "model=fcn_resnet8", "data.class_weights=[1,2]"], ["data.class_weights=[1,2]", "11"]),
    (["model.init_from=nowhere"], ["model.init_from=nowhere"]),
    (["data.train_samples=100000"], ["data.train_samples=100000"]),
    (["model=torchvision", "model.name=resnet19"], ["model.name=resnet19"]),
    (["output_dir=/proc/nowhere"], ["output_dir=/proc/nowhere", "cannot be written"]),
    (
        ["model=torchvision", "model.stem=own", "batch_size=1"],
        ["batch_size=1", "layer4", "syncbn"],
    ),
]


@pytest.mark.parametrize(("overrides", "words"), ONE_LINE, ids=lambda value: value[-1] if value else "")
def test_a_mistake_is_one_line_and_exit_code_2(overrides, words, run_train, tmp_path):
    code, err = run_train(*overrides)
    assert code == 2
    errors = [line for line in err.splitlines() if not line.startswith("warning:")]
    assert len(errors) == 1, err
    assert errors[0].startswith("error: ")
    assert all(word in errors[0] for word in words), err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epoch=3", ["epoch", "Valid keys:", "epochs"]),
        ("norm.num_groups=2", ["num_groups", "BatchNormConfig", "momentum"]),
        ("norm=batchnorm", ["norm/batchnorm", "syncbn"]),
        ("precision=fp16", ["precision", "fp32, bf16, fp64"]),
        ("epochs=ten", ["epochs", "ten"]),
        ("batch_size=", ["batch_size"]),
        ("=", ["="]),
    ],
)
def test_an_unknown_key_or_choice_lists_the_valid_ones(override, words, run_train, tmp_path):
    code, err = run_train(override)
    assert code == 2
    assert all(word in err for word in words), err
    assert "Traceback" not in err
    assert "HYDRA_FULL_ERROR" not in err
    assert os.listdir(tmp_path) == []


def folder(root, *files):
    for name in files:
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(path)
    return root / "pictures"


def test_an_image_that_cannot_be_read_is_named(run_train, tmp_path):
    root = folder(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/1.png")
    (root / "train/dog/2.png").write_bytes(b"no picture")
    code, err = run_train("data=image_folder", f"data.root={root}", f"data.cache_dir={tmp_path}/cache")
    assert code == 2
    assert "train/dog/2.png" in err
    assert not (tmp_path / "runs").exists()


def test_how_threads_wait_is_decided_before_anything_imports_torch(run_train, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    run_train("batch_size=-4")  # refused before torch is needed
    assert "GOMP_SPINCOUNT" in os.environ


def test_a_damaged_checkpoint_is_named(run_train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = ["data.num_train=40", "data.num_test=10", "epochs=1", "progress=false"]
    monkeypatch.setattr(sys, "argv", ["train.py", *tiny])
    train.main()
    GlobalHydra.instance().clear()
    (directory,) = tmp_path.glob("runs/*/*")
    (directory / "result.json").unlink()
    (directory / "checkpoint.pt").write_bytes(b"damaged")
    code, err = run_train(*tiny)
    assert code == 2
    assert "checkpoint.pt is damaged" in err
    assert "rerun=true" in err


def test_a_sweep_inside_a_rank_names_the_right_command(run_train, monkeypatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(key, value)
    code, err = run_train("-m", "norm=bn,gn")
    assert code == 2
    assert "python train.py -m norm=bn,gn" in err


def test_a_preset_that_sweeps_is_refused_inside_a_rank_as_well(run_train, monkeypatch, tmp_path):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(key, value)
    code, err = run_train("experiment=smoke_sweep")
    assert code == 2
    assert "python train.py experiment=smoke_sweep" in err
    assert os.listdir(tmp_path) == []


def test_a_run_that_another_process_trains_is_named(run_train, tmp_path):
    tiny = ["data.num_train=40", "data.num_test=10", "epochs=1", f"output_dir={tmp_path}/runs", "study=test"]
    run = directory_of(tiny, 1)
    with run.lock() as free:
        assert free
        code, err = run_train(*tiny)
    assert code == 2
    assert err.splitlines() == [
        f"error: {run.directory} is being trained by another process; wait for it to end, or stop it."
    ]
    assert [path.name for path in run.directory.iterdir()] == ["lock"]


def test_every_mistake_of_every_job_is_told_before_any_is_started(run_train, tmp_path):
    code, err = run_train("-m", "norm=bn,gn", "batch_size=32,5000", "data.num_train=100", "data.num_test=10")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: norm=bn batch_size=5000")
    assert "(and 1 more): batch_size=5000 x" in line
    assert list(tmp_path.glob("runs/*/*")) == []


def test_a_sweep_into_a_folder_that_cannot_be_made_is_one_line(run_train):
    code, err = run_train("-m", "norm=bn,gn", "output_dir=/proc/nowhere")
    assert code == 2
    assert err.startswith("error: output_dir=/proc/nowhere cannot be written: ")
    assert err.count("\n") == 1


def test_a_launchers_setting_out_of_range_is_one_line(run_train):
    code, err = run_train("-m", "hydra.launcher.jobs_per_gpu=0")
    assert (code, err) == (2, "error: hydra.launcher.jobs_per_gpu=0 must be at least 1.\n")


def test_a_world_size_that_contradicts_the_jobs_names_both(run_train, monkeypatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(key, value)
    code, err = run_train("world_size=4")
    assert code == 2
    assert "world_size=4 contradicts the 2 ranks" in err
