"""Planning a sweep, and what it hands back to the sweeper."""

import math
import os
from errno import EACCES, ENOSPC
from itertools import product

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from launch.jobs import announce, job_returns, make_sweep_folder, plan_jobs, sweep_value, to_train
from launch.plugins import register_launchers
from launch.sweep import how_it_ended
from normlab.config import ConfigError
from normlab.config.schema import register_schemas
from normlab.optimizer import LearningRate
from normlab.report.published import GN_PAPER_ERROR_PERCENT
from tests.data.jpeg_files import write_folder
from tests.runs import CONF, SEGMENTATION

DATA = ["data.num_train=96", "data.num_test=50"]


@pytest.fixture
def plan(tmp_path):
    """Plans the jobs of `command`, an override a line, with these overrides for each job."""
    register_schemas()
    register_launchers()

    def planned(*jobs: list[str], command=(), swept=()):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            common = [*DATA, f"output_dir={tmp_path}", *command]
            loader = GlobalHydra.instance().config_loader()
            master = loader.load_configuration("config", [*common, *swept], RunMode.MULTIRUN)
            return plan_jobs(master, loader, [[*common, *job] for job in jobs])

    return planned


def test_each_job_has_its_own_world_size_and_is_named_by_what_sets_it_apart(plan):
    one, two = plan(["norm=bn"], ["norm=syncbn", "world_size=2", "epochs=3"])
    assert (one.run.config.world_size, two.run.config.world_size) == (1, 2)
    assert (one.name, two.name) == ("norm=bn", "norm=syncbn world_size=2 epochs=3")
    assert (one.total_samples, two.total_samples) == (960, 192)  # 10 x 3 x 32 and 3 x 1 x 64


def test_a_value_that_is_not_the_commands_stands_in_the_name(plan):
    """A sweeper may give a run other values than the command does, as a race gives it fewer epochs."""
    (job,) = plan(["epochs=2", "seed=1"], command=["epochs=4", "norm=gn"])
    assert job.name == "epochs=2 seed=1"


def test_the_study_is_that_of_the_experiment_unless_given(plan):
    jobs = plan([], ["experiment=quickstart"], ["experiment=quickstart", "study=mine"])
    assert [job.study for job in jobs] == ["default", "quickstart", "mine"]


def test_the_gn_papers_preset_plans_the_papers_runs(tmp_path):
    """Against Wu & He 2018, arXiv:1803.08494, section 4.1 and table 2."""
    preset = CONF / "experiment/imagenet_gn_paper.yaml"
    words = [line.split() for line in preset.read_text().splitlines()]
    assert ["#", "validation", "error,", "%,", "on", "8", "GPUs", *map(str, (32, 16, 8, 4, 2))] in [
        w[:12] for w in words
    ]
    for norm, errors in GN_PAPER_ERROR_PERCENT.items():
        by_batch = [str(errors[batch]) for batch in (32, 16, 8, 4, 2)]
        assert by_batch in [w[-5:] for w in words if w[:2] == ["#", norm]]

    root = write_folder(tmp_path / "imagenet", 128, 1)
    register_schemas()
    register_launchers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        command = ["experiment=imagenet_gn_paper", f"data.root={root}", f"output_dir={tmp_path}"]
        master = loader.load_configuration("config", command, RunMode.MULTIRUN)
        swept = [
            [f"{key}={v}" for v in str(values).split(",")] for key, values in master.hydra.sweeper.params.items()
        ]
        jobs = plan_jobs(master, loader, [[*command, *job] for job in product(*swept)])
    assert {(job.run.config.norm.name, job.run.config.batch_size) for job in jobs} == {
        (norm, batch) for norm, errors in GN_PAPER_ERROR_PERCENT.items() for batch in errors
    }
    assert len(jobs) == 10
    for cfg in (job.run.config for job in jobs):
        assert cfg.norm.name == "bn" or cfg.norm.num_groups == 32
        assert (cfg.model.name, cfg.model.stem.value, cfg.model.zero_init_residual) == ("resnet50", "own", True)
        assert (cfg.data.decode.value, cfg.data.image_size, cfg.logical_ranks(1), cfg.epochs) == (
            "stream",
            224,
            8,
            100,
        )
        assert (cfg.optim.momentum, cfg.optim.weight_decay, cfg.optim.norm_weight_decay) == (0.9, 1e-4, None)
        rate = LearningRate.from_config(
            cfg.optim, global_batch_size=cfg.global_batch_size(1), steps_per_epoch=1, total_steps=100
        )
        first = 0.1 * cfg.batch_size / 32
        expected = [first] * 30 + [first / 10] * 30 + [first / 100] * 30 + [first / 1000] * 10
        assert [rate(epoch) for epoch in range(100)] == pytest.approx(expected, rel=1e-12)


def test_a_run_that_is_asked_for_twice_is_trained_once_and_returned_twice(plan):
    jobs = plan(["norm=bn"], ["norm=gn"], ["norm=bn", "seed=0"])
    assert [job.name for job in jobs] == ["norm=bn", "norm=gn"]
    bn, gn = jobs
    for job, accuracy in [(bn, 0.25), (gn, 0.5)]:
        job.run.create()
        job.run.write_result("finished", {"val/accuracy": accuracy})
    assert [returned.return_value for returned in job_returns(jobs)] == [0.25, 0.5, 0.25]


def test_all_mistakes_are_collected_with_the_jobs_that_make_them(plan):
    with pytest.raises(ConfigError) as raised:
        plan(["batch_size=200"], [], ["batch_size=200", "seed=1"], ["norm=gn", "norm.num_groups=3"])
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    assert "batch_size=200 (and 1 more): batch_size=200 x" in lines[0]
    assert "norm.num_groups=3" in lines[1]


@pytest.mark.parametrize(
    ("metric", "status", "worst"),
    [("val/accuracy", "diverged", 0.0), ("val/loss", "failed", math.inf), ("val/loss", None, math.inf)],
)
def test_what_did_not_finish_returns_the_worst_value(metric, status, worst, plan):
    (job,) = plan([], command=[f"sweep_metric={metric}"])
    job.run.create()
    if status:
        job.run.write_result(status, {})
    assert sweep_value(job.run) == worst


def test_a_metric_that_no_run_can_have_is_refused_before_any_is_trained(plan):
    with pytest.raises(
        ConfigError, match=r"sweep_metric=val/acc .*val/loss, val/accuracy, train/accuracy\."
    ) as caught:
        plan(["norm=bn"], ["norm=gn"], command=["sweep_metric=val/acc"])
    assert "norm=bn (and 1 more): " in str(caught.value)
    with pytest.raises(ConfigError, match="sweep_metric=test/loss"):  # without val_fraction, test is called val
        plan([], command=["sweep_metric=test/loss"])
    plan([], command=["sweep_metric=test/loss", "data.val_fraction=0.5"])
    plan([*SEGMENTATION, "sweep_metric=val/iou/disc"])


def test_a_class_that_is_nowhere_in_the_pictures_returns_the_worst_value(plan):
    (job,) = plan([*SEGMENTATION, "sweep_metric=val/iou/disc"])
    job.run.create()
    job.run.write_result("finished", {"val/miou": 0.5})
    assert sweep_value(job.run) == 0.0


def test_an_option_of_a_norm_is_given_to_the_norms_that_have_it(plan):
    options = ["norm.num_groups=2", "norm.weight_standardization=true"]
    norms = ["norm=bn"], ["norm=gn"], ["norm=evonorm_s0"]
    bn, gn, evonorm = plan(*norms, command=options, swept=["norm=bn,gn,evonorm_s0"])
    assert [job.run.config.norm.name for job in (bn, gn, evonorm)] == ["bn", "gn", "evonorm_s0"]
    assert (gn.run.config.norm.num_groups, evonorm.run.config.norm.num_groups) == (2, 2)
    assert all(job.run.config.norm.weight_standardization for job in (bn, gn, evonorm))
    assert "norm.num_groups=2" not in bn.overrides


def test_a_rate_may_follow_the_norm(plan):
    rate = "optim.lr='${lookup:${norm.name},{bn:0.1,gn:0.2}}'"
    bn, gn = plan(["norm=bn"], ["norm=gn"], command=[rate], swept=["norm=bn,gn"])
    assert (bn.run.config.optim.lr, gn.run.config.optim.lr) == (0.1, 0.2)
    with pytest.raises(ConfigError, match=r"optim\.lr: .*there is no ln in \{bn, gn\}; add it"):
        plan(["norm=ln"], command=[rate], swept=["norm=bn,ln"])


def test_norms_may_be_swept_by_a_glob(plan):
    jobs = plan(["norm=gn"], ["norm=bn"], command=["norm.num_groups=2"], swept=["norm=glob(?n)"])
    assert [job.run.config.norm.name for job in jobs] == ["gn", "bn"]


def test_values_that_a_norm_does_not_have_make_one_run_of_it(plan):
    jobs = [[f"norm={norm}", f"norm.num_groups={groups}"] for norm in ("bn", "gn") for groups in (2, 4)]
    planned = plan(*jobs, swept=["norm=bn,gn", "norm.num_groups=2,4"])
    assert [job.name for job in planned] == ["norm=bn", "norm=gn norm.num_groups=2", "norm=gn norm.num_groups=4"]
    assert planned[0].places == (0, 1)


def test_arguments_of_a_norm_of_ones_own_are_its_alone(plan):
    jobs = [[f"norm={norm}", f"norm.args.groups={groups}"] for norm in ("bn", "custom") for groups in (2, 4)]
    command = ["norm.target=tests.norms.own_norms:Group"]
    bn, *own = plan(*jobs, command=command, swept=["norm=bn,custom", "norm.args.groups=2,4"])
    assert [bn.name, *(job.name for job in own)] == [
        "norm=bn",
        "norm=custom norm.args.groups=2",
        "norm=custom norm.args.groups=4",
    ]
    assert [job.run.config.norm.args for job in own] == [{"groups": 2}, {"groups": 4}]


@pytest.mark.parametrize("swept", ["norm=bn,in", "seed=0,1"])
def test_an_option_that_no_norm_of_the_sweep_has_is_refused(swept, plan):
    with pytest.raises(
        ConfigError, match=r"norm\.num_groups is not a key of norm=bn; norm=gn, evonorm_s0 have it"
    ):
        plan(["norm=bn"], command=["norm.num_groups=2"], swept=[swept])


@pytest.mark.parametrize("spelt", ["norm.num_grups=2", "+norm.num_grups=2", "++norm.num_grups=2", "+optim.lrr=1"])
def test_a_key_that_no_section_has_is_refused_in_a_sweep_however_it_is_spelt(spelt, plan):
    with pytest.raises(ConfigError, match=r"there is no key .*did you mean (norm.num_groups|optim.lr)\?"):
        plan(["norm=gn"], command=[spelt], swept=["norm=bn,gn"])


@pytest.mark.parametrize(
    ("retry_failed", "rerun", "left"),
    [(True, False, "failed begun new"), (False, False, "begun new"), (False, True, "all")],
)
def test_what_is_done_is_skipped_and_the_rest_is_trained(retry_failed, rerun, left, plan):
    seeds = {"finished": 0, "diverged": 1, "failed": 2, "begun": 3, "new": 4}
    jobs = plan(*([f"seed={seed}"] for seed in seeds.values()), command=[f"rerun={rerun}"])
    for status, job in zip(seeds, jobs, strict=True):
        if status != "new":
            job.run.create()
        if status in ("finished", "diverged", "failed"):
            job.run.write_result(status, {})
    to_do, skipped = to_train(jobs, retry_failed=retry_failed)
    expected = list(seeds) if left == "all" else left.split()
    assert [job.name for job in to_do] == [f"seed={seeds[status]}" for status in expected]
    assert [ended.job for ended in skipped] == [job for job in jobs if job not in to_do]
    assert {ended.state for ended in skipped} <= {"skipped"}


def test_what_is_skipped_shows_what_it_came_to(plan):
    jobs = plan(["seed=0"], ["seed=1"])
    for job, status, metrics in zip(jobs, ("finished", "diverged"), ({"val/accuracy": 0.5}, {}), strict=True):
        job.run.create()
        job.run.write_result(status, metrics, {"device": "cpu"})
    _, (finished, diverged) = to_train(jobs, retry_failed=True)
    assert finished.detail == "finished before on cpu with val/accuracy 0.5000; rerun=true starts it over"
    assert diverged.detail == "diverged before on cpu; rerun=true starts it over"


@pytest.mark.parametrize(
    ("there", "code", "stopped", "expected"),
    [
        ("finished", 0, 0, "finished"),
        ("finished", -9, 0, "finished"),  # killed while it left
        ("failed", 1, 0, "failed"),
        ("failed", 1, 15, "failed"),
        ("failed", -9, 0, "failed"),
        ("failed", 143, 15, "stopped"),  # of an earlier attempt
        ("failed", -15, 15, "stopped"),
        ("", 143, 15, "stopped"),
        ("", 1, 15, "stopped"),
        ("", -9, 0, "failed"),
        ("", 3, 0, "skipped"),
        ('{"status": "fin', 0, 0, "failed"),
    ],
)
def test_a_job_ended_as_its_result_says_unless_its_exit_code_knows_better(there, code, stopped, expected, plan):
    (job,) = plan([])
    job.run.create()
    if there in ("finished", "failed"):
        job.run.write_result(there, {"val/accuracy": 0.5}, {"error": "of an earlier attempt"})
    elif there:
        (job.run.directory / "result.json").write_text(there)
    ended = how_it_ended(job, code, stopped)
    assert ended.state == expected
    if code == -9 and expected == "failed":
        assert ended.detail == "killed by SIGKILL"


def test_a_log_that_cannot_be_read_ends_no_sweep(plan):
    (job,) = plan([])
    job.run.log_path.mkdir(parents=True)
    assert how_it_ended(job, 1, 0).detail == "its log cannot be read (Is a directory)"


@pytest.mark.parametrize("rerun", [False, True])
def test_a_damaged_result_is_named_and_its_run_trained_again(rerun, plan, capsys):
    damaged, _ = jobs = plan(["seed=0"], ["seed=1"], command=[f"rerun={rerun}"])
    damaged.run.create()
    (damaged.run.directory / "result.json").write_text('{"status": "fini')
    assert to_train(jobs, retry_failed=True) == (jobs, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert str(damaged.run.directory) in line
    assert "result.json is empty or damaged; it is trained again" in line


def test_a_folder_that_a_sweep_cannot_write_is_one_line_before_the_first_job(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in ("/proc/nowhere", f"{tmp_path}/file", f"{tmp_path}/file/below"):
        with pytest.raises(ConfigError, match=rf"output_dir={folder} cannot be written: "):
            make_sweep_folder(folder)

    def fsync(_):
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ConfigError, match=rf"output_dir={tmp_path} cannot be written: No space left on device\.$"):
        make_sweep_folder(str(tmp_path))
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_directory_that_a_sweep_cannot_write_is_named(plan, monkeypatch):
    (job,) = plan([])

    def mkdir(path, *_, **__):
        raise PermissionError(EACCES, os.strerror(EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(
        ConfigError, match=rf"output_dir=.* cannot be written: Permission denied \(.*{job.run.hash}"
    ):
        announce(job.run, {"launcher": "local"})
