"""A user's mistake is one line, exit code 2, and nothing left behind; before any rank starts."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from launch import train
from normlab.config.norm import BatchNormConfig
from normlab.config.schema import plain
from tests.processes import TRAIN
from tests.runs import directory_of, typed

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
    ([f"output_dir={__file__}/runs"], [f"output_dir={__file__}/runs", "cannot be written"]),
    (["study=../../x"], ["study=../../x"]),
    (["experiment=../experiment/quickstart"], ["study=../experiment/quickstart"]),
    (["hydra.run.dir=X"], ["hydra.run.dir=X", "output_dir"]),
    (["-m", "seed=0,1", "hydra.sweep.dir=X"], ["hydra.sweep.dir=X", "output_dir"]),
    (["-m", "seed=0,1", "--cfg", "job"], ["-m", "leave it out"]),
    (["--resolve", "seed=0"], ["--resolve", "--cfg job"]),
    (["+experiment=quickstart"], ["drop the plus: experiment=quickstart"]),
    (["++norm=gn"], ["drop the plus: norm=gn"]),
    (["norm=[bn,gn]"], ["norm=[bn,gn]", "-m norm=a,b"]),
    (["norm=null"], ["norm=null"]),
    (["experiment=null"], ["experiment=null", "leave it out"]),
    (["~optim=[sgd,adamw]"], ["~optim=[sgd,adamw]", "optim was taken away"]),
    (["data.train_samples=2"], ["2 training samples", "data.train_samples=2"]),
    (["norm=bn,gn"], ["norm=bn,gn", "-m"]),
    (["sweep_metric=val/acc"], ["sweep_metric=val/acc", "val/accuracy"]),
    (["epoch=3"], ["no key epoch", "epochs?"]),
    (["lr=0.3"], ["no key lr", "optim.lr?"]),
    (["+optim.learning_rate=0.9"], ["no key optim.learning_rate", "optim.lr?"]),
    (["++optim.lrr=0.9"], ["no key optim.lrr", "optim.lr"]),
    (["+foo.bar=1"], ["no key foo", "--help"]),
    (["~epoch"], ["no key epoch", "epochs?"]),
    (["~optim.lr"], ["optim.lr was taken away"]),
    (["~norm"], ["norm was taken away"]),
    (["norm.num_groups=2"], ["norm.num_groups is not a key of norm=bn", "gn, evonorm_s0"]),
    (["norm=batchnorm"], ["no norm=batchnorm; did you mean batch_renorm? There are", "syncbn"]),
    (["experiment=mine"], ["no experiment=mine. There are", "quickstart"]),
    (
        ["model=custom", "model.width=8"],
        ["model.width is not a key of model=custom", "give it as model.args.width"],
    ),
    (["data=custom", "+data.start=1"], ["data.start is not a key of data=custom", "give it as data.args.start"]),
    (["data=custom", "+data.imge_size=16"], ["no key data.imge_size", "data.image_size?"]),
    (["precision=fp16"], ["precision=fp16", "fp32, tf32, bf16, fp64"]),
    (["precision=tf32", "device=cpu"], ["precision=tf32", "CUDA alone", "set precision=fp32"]),
    (["epochs=ten"], ["epochs=ten"]),
    (["epochs=null"], ["epochs=null"]),
    (["batch_size="], ["batch_size="]),
    (["="], ["no key"]),
    (["+hydra.launcher.jobs=2"], ["hydra.launcher.jobs"]),
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
    assert "use +" not in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("values", ["defaults: [override /norm: gn]", "epochs: 1"])
def test_a_preset_without_its_first_line_is_told_to_have_it(values, run_train, tmp_path):
    preset = tmp_path / "experiment" / "mine.yaml"
    preset.parent.mkdir()
    preset.write_text(f"{values}\n")
    code, err = run_train(f"--config-dir={tmp_path}", "experiment=mine")
    assert code == 2
    assert err == (
        "error: experiment/mine.yaml does not say where its values belong; let its first line be: "
        "# @package _global_\n"
    )


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


def test_an_option_of_some_norms_of_a_sweep_is_a_mistake_of_those_alone(run_train):
    code, err = run_train("-m", "norm=bn,gn,in", "norm.num_groups=3")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: norm=gn norm.num_groups=3: norm.num_groups=3 does not divide")


@pytest.mark.parametrize("folder", ["/proc/nowhere", f"{__file__}/runs"])
def test_a_sweep_into_a_folder_that_cannot_be_written_is_one_line(folder, run_train):
    code, err = run_train("-m", "seed=0,1", f"output_dir={folder}")
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith(f"error: output_dir={folder} cannot be written: ")


def test_help_may_be_read_by_head(tmp_path):
    command = f"{sys.executable} {TRAIN} --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


SAVED = [
    ["norm=syncbn", "world_size=2", "experiment=quickstart"],
    ["norm=gn", "norm.channels_per_group=4", "model.depth=26", "model.width=8", "optim=adamw", "optim.lr=0.1"],
    ["model=torchvision", "model.name=mobilenet_v3_small", "data.val_fraction=0.1"],
    ["model=timm", "model.name=resnet10t", "optim.milestones=[0.1, 0.2]", "output_dir='it is $here'"],
    ["data=shapes_seg", "model=fcn_resnet20", "norm=frn", "data.class_weights=[1,2]"],
    ["data=shapes_seg", "model=lraspp_mobilenet_v3_large", "norm=ln2d"],
    ["data=cifar100", "data.root=a b"],
]


@pytest.mark.parametrize("overrides", SAVED, ids=lambda overrides: overrides[0])
def test_a_runs_config_is_one_to_start_from(overrides, tmp_path, monkeypatch):
    cfg = replace(typed(*overrides), study="mine", world_size=2)
    of_a_rerun = replace(cfg, rerun=True)  # which starting from it must not do again
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(of_a_rerun))))
    started = []
    monkeypatch.setattr(train, "start", lambda *given: started.append(given) or (0, None))
    monkeypatch.chdir(tmp_path)
    for more in ([], ["seed=3", "norm=bn"]):
        monkeypatch.setattr(sys, "argv", ["train.py", "--config-path", ".", "--config-name", "config", *more])
        train.main()
        GlobalHydra.instance().clear()
    assert started[0] == (cfg, "mine")
    assert started[1] == (replace(cfg, seed=3, norm=BatchNormConfig()), "mine")


def test_an_experiment_does_not_go_on_top_of_a_runs_config(tmp_path, run_train):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(typed()))))
    code, err = run_train("--config-path", str(tmp_path), "--config-name", "config", "experiment=quickstart")
    assert code == 2
    assert "exclude each other" in err


def test_a_launchers_setting_out_of_range_is_one_line(run_train):
    code, err = run_train("-m", "hydra.launcher.jobs_per_gpu=0")
    assert (code, err) == (2, "error: hydra.launcher.jobs_per_gpu=0 must be at least 1.\n")


def test_a_world_size_that_contradicts_the_jobs_names_both(run_train, monkeypatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(key, value)
    code, err = run_train("world_size=4")
    assert code == 2
    assert "world_size=4 contradicts the 2 ranks" in err


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_is_said_by_one_task_of_a_slurm_step(rank, run_train, monkeypatch):
    step = {"STEP_NUM_TASKS": 2, "PROCID": rank, "LOCALID": rank, "STEP_TASKS_PER_NODE": 2, "NODEID": 0}
    for key, value in (step | {"STEP_NODELIST": "n1", "JOB_ID": 7, "STEP_ID": 0}).items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    code, err = run_train("world_size=4")
    assert (code, err.count("world_size=4 contradicts the 2 ranks")) == (2, 1 - rank)
