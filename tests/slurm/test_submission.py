"""What is submitted, against stand-ins of SLURM's commands: no cluster is needed."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import process, slurm, slurm_wait
from launch.commit import ROOT, Code, current_code
from launch.geometry import Geometry
from launch.jobs import Job
from launch.process import StopSignal
from launch.slurm import submit
from launch.slurm_config import SlurmConfig
from launch.slurm_wait import Submission, Submitted, how_it_ended, wait_for
from normlab.config import ConfigError
from normlab.run import Run
from normlab.run_files import read_launch
from normlab.squeue import job_of, read_queue
from tests.slurm.sweeps import job

KEPT = Path(__file__).with_name("kept_sbatch.sh")


def jobs(tmp_path: Path, *world_sizes: int, seeds: int = 1) -> list[Job]:
    return [job(tmp_path, f"seed={seed}", world_size=w) for w in world_sizes for seed in range(seeds)]


def sbatch_file(tmp_path: Path) -> str:
    (path,) = tmp_path.glob("runs/.slurm/*/*_submission.sh")
    text = path.read_text().replace(str(path.parent), "LOGS").replace(path.parent.name, "SUBMISSION")
    return text.replace(sys.executable, "PYTHON").replace(str(ROOT), "ROOT")


def test_the_sbatch_file_is_the_one_that_was_kept(commands, tmp_path):
    config = SlurmConfig(
        partition="gpu",
        account="vision",
        qos="long",
        constraint="h200",
        mem="64G",
        timeout_min=240,
        gpus_per_node=8,
        cpus_per_task=12,
        array_parallelism=16,
        setup=["module load cuda"],
        srun_args=["--cpu-bind=cores"],
        extra={"reservation": "course"},
    )
    submit(jobs(tmp_path, 16, seeds=3), config)
    assert sbatch_file(tmp_path) == KEPT.read_text()


def test_each_geometry_is_an_array_and_each_run_knows_its_element(commands, tmp_path):
    commands(sbatch=f"echo x >>{tmp_path}/n; echo Submitted batch job 7$(wc -l <{tmp_path}/n)")
    both = jobs(tmp_path, 1, 4, seeds=2)
    submission = submit(both, SlurmConfig(tasks_per_node=2))
    assert [s.job_id for s in submission.queued] == ["71_0", "71_1", "72_0", "72_1"]
    assert (submission.busy, submission.left) == ([], [])
    launch = read_launch(both[3].run.directory)[0]
    assert (launch["job_id"], launch["geometry"]["nodes"]) == ("72_1", 2)
    assert launch["submitted"]["commit"] == current_code().commit != ""


def test_a_run_in_the_queue_is_not_submitted_again_and_another_jobs_id_does_not_count(commands, tmp_path):
    one = jobs(tmp_path, 1)
    submit(one, SlurmConfig())
    launch = read_launch(one[0].run.directory)[0]
    commands(sbatch="exit 1", squeue=f"echo '{launch['job_id']}|PENDING|Priority|{launch['submission']}'")
    (again,) = submit(one, SlurmConfig()).queued
    assert again.job_id == launch["job_id"]
    assert job_of(launch, read_queue()).reason == "Priority"
    commands(sbatch="echo Submitted batch job 99", squeue=f"echo '{launch['job_id']}|PENDING|None|normlab-other'")
    (new,) = submit(one, SlurmConfig()).queued
    assert new.job_id == "99"


def test_a_stop_signal_while_jobs_are_submitted_counts_and_their_ids_are_told(
    commands, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(slurm, "plan_jobs", lambda *_: jobs(tmp_path, 1))
    commands(sbatch="kill -INT $PPID; echo Submitted batch job 71")
    with StopSignal() as outside, pytest.raises(SystemExit) as left:
        slurm.sweep(None, None, [], SlurmConfig())
    assert left.value.code == 130
    assert "scancel 71\n" in capsys.readouterr().err
    assert outside() == 0


def test_ctrl_c_does_not_end_sbatch_which_is_in_the_terminals_foreground_too(commands, tmp_path):
    commands(sbatch="kill -INT $$; kill -TERM $$; echo Submitted batch job 71")
    with StopSignal():
        (sent,) = submit(jobs(tmp_path, 1), SlurmConfig()).queued
    assert sent.job_id == "71"


def test_a_second_stop_signal_ends_a_submission_that_hangs(monkeypatch):
    def hang(*_):
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.01)
        pytest.fail("still there")

    monkeypatch.setattr(process, "REPEATED_WITHIN_S", 0.0)
    monkeypatch.setattr(slurm, "plan_jobs", lambda *_: [])
    monkeypatch.setattr(slurm, "submit", hang)
    with pytest.raises(InterruptedError), process.stop_signals_raise(InterruptedError):
        slurm.sweep(None, None, [], SlurmConfig())


def test_who_no_longer_waits_is_told_what_was_not_submitted(tmp_path, commands, capsys):
    with StopSignal():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            wait_for(Submission([], [], jobs(tmp_path, 1, seeds=2)), [], pytest.fail, poll_s=0.1)
    said = capsys.readouterr().err
    assert "2 runs are not submitted; the same command submits them\n" in said
    assert "scancel" not in said


def test_what_a_queued_run_comes_to_is_told_also_to_a_second_rerun(commands, tmp_path):
    first, second = job(tmp_path, "rerun=true"), job(tmp_path, "rerun=true")
    submit([first], SlurmConfig())
    launch = read_launch(first.run.directory)[0]
    commands(sbatch="exit 1", squeue=f"echo '{launch['job_id']}|PENDING|Priority|{launch['submission']}'")
    (again,) = submit([second], SlurmConfig()).queued
    first.run.create()
    first.run.write_result("finished", {"val/accuracy": 0.9})
    assert second.run.result() is None  # its own attempt has not begun
    assert again.job.run.result()["metrics"] == {"val/accuracy": 0.9}


def test_a_run_that_another_process_trains_is_left_alone(commands, tmp_path):
    (one,) = jobs(tmp_path, 1)
    with one.run.lock():
        submission = submit([one], SlurmConfig())
    (busy,) = submission.busy
    assert (submission.queued, busy.state) == ([], "skipped")
    assert "another process" in busy.detail


@pytest.mark.parametrize("refused", [True, False])
def test_what_rerun_deletes_stays_until_the_job_begins_to_train(refused, commands, tmp_path):
    one = job(tmp_path, "rerun=true")
    one.run.directory.mkdir(parents=True)
    before = {"checkpoint.pt": "old", "metrics.jsonl": "old", "result.json": "old", "config.yaml": "old"}
    for name, held in before.items():
        (one.run.directory / name).write_text(held)
    if refused:
        commands(sbatch="echo 'sbatch: error: invalid partition specified: gpus' >&2; exit 1")
        with pytest.raises(ConfigError):
            submit([one], SlurmConfig(partition="gpus"))
    else:
        submit([one], SlurmConfig())
    assert {name: (one.run.directory / name).read_text() for name in before} == before


def test_a_job_that_is_requeued_does_not_start_over_again(commands, tmp_path):
    import submitit

    one = job(tmp_path, "rerun=true")
    (sent,) = submit([one], SlurmConfig(cpus_per_task=3)).queued
    task = submitit.SlurmJob(sent.logs, sent.job_id).submission().function
    assert task.run.config.threads == 3
    assert (task.run.directory, task.run.starts_over) == (one.run.directory, True)
    task.run.create()
    assert not task.run.starts_over


def test_the_variables_of_a_job_that_submits_are_hidden_but_the_way_to_slurm_is_kept(
    commands, tmp_path, monkeypatch
):
    hidden = ("SLURM_CPU_BIND", "SLURM_JOB_ID", "RANK", "MASTER_PORT", "SBATCH_TIMELIMIT")
    kept = {"SLURM_CONF", "SLURM_JWT", "SBATCH_ACCOUNT"}
    for key in (*hidden, *kept):
        monkeypatch.setenv(key, "1")
    submit(jobs(tmp_path, 1), SlurmConfig())
    seen = set(re.findall(r"^(S\w*|RANK|MASTER_\w+)=", (tmp_path / "env").read_text(), re.MULTILINE))
    assert seen.issuperset(kept)
    assert seen.isdisjoint(hidden)
    assert os.environ["SLURM_JOB_ID"] == "1"


LIMIT = "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates policy"


def sbatch_with_room(tmp_path: Path, room: int) -> str:
    """A stand-in that takes arrays while no more than `room` jobs are in its queue, which squeue shows."""
    return f"""
n=$(grep -oP '#SBATCH --array=0-\\K\\d+' "$1"); n=$((${{n:-0}} + 1))
touch {tmp_path}/queue
if [ $(($(wc -l <{tmp_path}/queue) + n)) -gt {room} ]; then echo "{LIMIT}" >&2; exit 1; fi
id=$((70 + $(ls {tmp_path}/bin | wc -l) + $(wc -l <{tmp_path}/queue)))
comment=$(grep -oP '#SBATCH --comment=\\K.*' "$1")
for i in $(seq 0 $((n - 1))); do
    [ $n -gt 1 ] && element=_$i || element=
    echo "$id$element|PENDING|None|$comment" >>{tmp_path}/queue
done
echo Submitted batch job $id
"""


def test_as_many_jobs_are_queued_as_the_site_takes_and_the_others_are_left(commands, tmp_path, capsys):
    commands(sbatch=sbatch_with_room(tmp_path, 5))
    submission = submit(jobs(tmp_path, 1, 2, seeds=4), SlurmConfig())
    queued = [line.partition("|")[0] for line in (tmp_path / "queue").read_text().splitlines()]
    assert [each.job_id for each in submission.queued] == queued
    assert len(queued) == 5
    assert [each.run.config.world_size for each in submission.left] == [2, 2, 2]
    assert submission.limit == "AssocMaxSubmitJobLimit"
    assert all(
        f"SLURM job {job_id}\n" in capsys_text for capsys_text in [capsys.readouterr().err] for job_id in queued
    )
    assert not any((each.run.directory / "launch.json").exists() for each in submission.left)


def test_jobs_that_were_left_follow_as_others_end_also_after_a_submission_that_failed(commands, tmp_path, capsys):
    commands(sbatch=sbatch_with_room(tmp_path, 2), squeue=f"cat {tmp_path}/queue", scontrol="exit 1")
    three = jobs(tmp_path, 1, seeds=3)
    (tmp_path / "queue").touch()
    submission = submit(three, SlurmConfig())
    assert len(submission.left) == 1
    (last,) = submission.left

    def end(submitted: Submitted) -> None:
        submitted.job.run.create()
        submitted.job.run.write_result("finished", {"val/accuracy": 0.5})
        kept = (tmp_path / "queue").read_text().splitlines(keepends=True)
        (tmp_path / "queue").write_text("".join(k for k in kept if not k.startswith(f"{submitted.job_id}|")))

    asked = []

    def more(left):
        asked.append(list(left))
        if len(asked) == 1:
            end(submission.queued[0])
            raise ConfigError("squeue does not answer")
        following = submit(left, SlurmConfig())
        for each in [*submission.queued[1:], *following.queued]:
            end(each)
        return following

    ended = wait_for(submission, [], more, poll_s=0.01)
    assert asked == [[last], [last]]
    assert capsys.readouterr().err.count("warning: squeue does not answer") == 1
    assert [each.job for each in ended].count(last) == 1
    assert [each.state for each in ended] == ["finished"] * 3


def test_a_site_that_takes_no_job_at_all_is_an_error(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "plan_jobs", lambda *_: jobs(tmp_path, 1))
    commands(sbatch=f"echo '{LIMIT}' >&2; exit 1")
    with pytest.raises(ConfigError, match=r"sbatch takes no more jobs \(AssocMaxSubmitJobLimit\)"):
        slurm.sweep(None, None, [], SlurmConfig())


def test_an_array_is_no_larger_than_the_site_allows_and_arrays_share_what_may_run_at_once(commands, tmp_path):
    commands(
        sbatch=sbatch_with_room(tmp_path, 100),
        scontrol="echo 'MaxArraySize            = 3'",
    )
    submit(jobs(tmp_path, 1, seeds=5) + jobs(tmp_path, 2, seeds=5), SlurmConfig(array_parallelism=7))
    scripts = [path.read_text() for path in tmp_path.glob("runs/.slurm/*/*_submission.sh")]
    arrays = sorted(re.findall(r"--array=(\S+)", text) or ["alone"] for text in scripts)
    assert arrays == [["0-1%1"], ["0-1%1"], ["0-2%2"], ["0-2%2"]]


def test_a_submission_that_was_cut_off_is_known_by_its_comment_and_element(commands, tmp_path):
    """Killed after sbatch: launch.json has no job id yet, and no second job may be queued."""
    two = jobs(tmp_path, 1, seeds=2)
    submit(two, SlurmConfig())
    for one in two:
        note = one.run.directory / "launch.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"job_id": ""}))
    launch = read_launch(two[0].run.directory)[0]
    lines = "".join(f"81_{i}|PENDING|None|{launch['submission']}\\n" for i in (0, 1))
    commands(sbatch="exit 1", squeue=f"printf '{lines}'")
    assert [each.job_id for each in submit(two, SlurmConfig()).queued] == ["81_0", "81_1"]


def test_a_folder_of_submissions_that_cannot_be_written_is_a_mistake(commands, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/.slurm").touch()
    with pytest.raises(ConfigError, match=r"output_dir=.* cannot be written: .*\.slurm"):
        submit(jobs(tmp_path, 1), SlurmConfig())


def test_what_is_noted_before_sbatch_goes_if_it_refuses(commands, tmp_path):
    fresh, stopped = jobs(tmp_path, 1, seeds=2)
    stopped.run.directory.mkdir(parents=True)
    (stopped.run.directory / "launch.json").write_text('{"launcher": "local", "host": "a", "pid": 1}')
    commands(sbatch="echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(ConfigError, match="invalid partition"):
        submit([fresh, stopped], SlurmConfig())
    assert not (fresh.run.directory / "launch.json").exists()
    assert (stopped.run.directory / "launch.json").read_text() == '{"launcher": "local", "host": "a", "pid": 1}'


def test_a_job_that_waits_for_what_time_does_not_change_is_named_once(commands, tmp_path, capsys):
    (one,) = jobs(tmp_path, 1)
    submission = submit([one], SlurmConfig())
    launch = read_launch(one.run.directory)[0]
    looks = tmp_path / "looks"
    line = f"{launch['job_id']}|PENDING|PartitionTimeLimit|{launch['submission']}"
    commands(squeue=f"echo x >>{looks}; [ $(wc -l <{looks}) -gt 2 ] || echo '{line}'", scontrol="exit 1")
    one.run.create()
    one.run.write_result("finished", {"val/accuracy": 0.5})
    wait_for(submission, [], lambda jobs: submission, poll_s=0.01)
    warning = f"warning: job {launch['job_id']} may never start: PartitionTimeLimit"
    assert capsys.readouterr().err.count(warning) == 1


def test_a_result_that_a_slow_file_system_still_hides_is_waited_for_longer_if_the_job_completed(
    commands, tmp_path, monkeypatch
):
    monkeypatch.setattr(slurm_wait, "GRACE_S", 0.0)
    (one,) = jobs(tmp_path, 1)
    submission = submit([one], SlurmConfig())
    looks = tmp_path / "looks"
    commands(squeue=f"echo x >>{looks}", scontrol="echo JobId=71 JobState=COMPLETED Reason=None")
    seen = iter([None] * 5)
    result = {"status": "finished", "metrics": {"val/accuracy": 0.5}}
    monkeypatch.setattr(Run, "result", lambda run: next(seen, result))
    (ended,) = wait_for(submission, [], lambda jobs: submission, poll_s=0.01)
    assert ended.state == "finished"
    assert len(looks.read_text().splitlines()) >= 5
    commands(scontrol="echo JobId=71 JobState=FAILED Reason=None")
    monkeypatch.setattr(Run, "result", lambda run: None)
    assert wait_for(submission, [], lambda jobs: submission, poll_s=0.01)[0].state == "failed"


def test_a_job_trains_on_the_device_that_it_asked_for(commands, tmp_path):
    import submitit

    (on_cpus,) = submit([job(tmp_path, "seed=0")], SlurmConfig()).queued
    (on_gpus,) = submit([job(tmp_path, "seed=1")], SlurmConfig(gpus_per_node=4, gpu_type="a100")).queued
    devices = [
        submitit.SlurmJob(sent.logs, sent.job_id).submission().function.run.config.device.value
        for sent in (on_cpus, on_gpus)
    ]
    assert devices == ["cpu", "cuda"]
    assert "#SBATCH --gpus-per-node=a100:1\n" in (next(on_gpus.logs.glob("*_submission.sh"))).read_text()


def test_runs_share_jobs_as_many_as_are_allowed_and_fit_on_a_node(commands, tmp_path):
    import submitit

    small, of_two_nodes = jobs(tmp_path, 2, seeds=5), jobs(tmp_path, 16)
    config = SlurmConfig(runs_per_job=4, gpus_per_node=8, cpus_per_task=3)
    queued = submit([*small, *of_two_nodes], config).queued
    scripts = {path.parent: path.read_text() for path in tmp_path.glob("runs/.slurm/*/*_submission.sh")}
    packed, alone = scripts[queued[0].logs], scripts[queued[-1].logs]
    assert [each.job_id.partition("_")[2] for each in queued] == ["0", "0", "0", "1", "1", ""]
    assert all(line in packed for line in ("--nodes=1\n", "--ntasks-per-node=1\n", "--gpus-per-node=6\n"))
    assert "--cpus-per-task=18\n" in packed
    assert all(line in alone for line in ("--nodes=2\n", "--ntasks-per-node=8\n", "--gpus-per-node=8\n"))
    task = submitit.SlurmJob(queued[3].logs, queued[3].job_id).submission().function
    assert [one.run.directory for one in task.jobs] == [one.run.directory for one in (small[1], small[3])]
    assert [(one.run.config.threads, one.run.config.device.value) for one in task.jobs] == [(3, "cuda")] * 2


def test_a_job_that_begins_before_its_submission_returns_keeps_the_logs_of_its_runs(commands, tmp_path):
    two = jobs(tmp_path, 1, seeds=2)
    write = "".join(f"echo it runs >{one.run.log_path}; " for one in two)
    commands(sbatch=f"{write} echo Submitted batch job 71")
    submit(two, SlurmConfig(runs_per_job=2))
    assert [one.run.log_path.read_text() for one in two] == ["it runs\n"] * 2


@pytest.mark.parametrize(("kind", "asked"), [(None, "gpu:2"), ("a100", "gpu:a100:2")])
def test_gpus_can_be_asked_for_by_gres(kind, asked, commands, tmp_path):
    submit(jobs(tmp_path, 2), SlurmConfig(gpus_per_node=8, gpu_type=kind, use_gres=True))
    (script,) = tmp_path.glob("runs/.slurm/*/*_submission.sh")
    assert f"#SBATCH --gres={asked}\n" in script.read_text()
    assert "gpus-per-node" not in script.read_text()


@pytest.mark.parametrize(
    ("world_size", "limits", "expected"),
    [
        (1, {"gpus_per_node": 4}, 4),
        (2, {"gpus_per_node": 4}, 2),
        (4, {"gpus_per_node": 4}, 1),
        (8, {"gpus_per_node": 4}, 1),
        (1, {}, 8),
        (2, {"tasks_per_node": 4}, 2),
        (2, {"tasks_per_node": 1}, 1),
    ],
)
def test_how_many_runs_fit_on_a_node(world_size, limits, expected, tmp_path):
    config = SlurmConfig(runs_per_job=8, **limits)
    assert config.runs_per_node(config.geometry(job(tmp_path, world_size=world_size))) == expected


@pytest.mark.parametrize(
    ("settings", "world_size", "words"),
    [
        ({"extra": {"comment": "mine"}}, 1, ["hydra.launcher.extra.comment", "the launcher's own"]),
        ({"extra": {"cpus-per-task": 2}}, 1, ["extra.cpus-per-task", "set hydra.launcher.cpus_per_task"]),
        ({"gpu_type": "a100"}, 1, ["hydra.launcher.gpu_type=a100", "hydra.launcher.gpus_per_node=0"]),
        (
            {"use_gres": True, "extra": {"gres": "shard:1"}},
            1,
            ["extra.gres=shard:1", "use_gres=true", "leave one"],
        ),
        ({"gpus_per_node": 8}, 11, ["world_size=11", "hydra.launcher.gpus_per_node=8"]),
        ({"array_parallelism": 0}, 1, ["hydra.launcher.array_parallelism=0", "at least 1"]),
        ({"timeout_min": 2}, 1, ["hydra.launcher.timeout_min=2", "signal_delay_s=90", "3 or more"]),
        ({"partition": "gpus"}, 1, ["sbatch refused", "invalid partition"]),
    ],
)
def test_a_mistake_names_the_key_and_submits_nothing(commands, settings, world_size, words, tmp_path):
    commands(sbatch="echo 'sbatch: error: invalid partition specified: gpus' >&2; exit 1")
    with pytest.raises(ConfigError) as error:
        submit(jobs(tmp_path, 1, world_size), SlurmConfig(**settings))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_without_an_answer_of_squeue_nothing_is_submitted(commands, tmp_path):
    commands(squeue="exit 1")
    with pytest.raises(ConfigError, match="squeue does not answer"):
        submit(jobs(tmp_path, 1), SlurmConfig())


def test_where_nothing_keeps_two_submissions_apart_none_is_made(commands, tmp_path, monkeypatch):
    commands()
    ready = jobs(tmp_path, 1)

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match="without flock"):
        submit(ready, SlurmConfig())


def test_cuda_without_gpus_is_refused_and_cpu_takes_none(tmp_path):
    with pytest.raises(ConfigError, match=r"device=cuda with hydra\.launcher\.gpus_per_node=0"):
        SlurmConfig().geometry(job(tmp_path, "device=cuda"))
    on_cpu = SlurmConfig(gpus_per_node=8).geometry(job(tmp_path, "device=cpu", world_size=4))
    assert on_cpu == Geometry(1, 4, 0, 4)


def ended(tmp_path, **logs: str):
    """How a job ends that left these logs, by rank."""
    one = job(tmp_path)
    one.run.directory.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "logs"
    folder.mkdir(exist_ok=True)
    for rank, text in logs.items():
        (folder / f"12_3_{rank.removeprefix('rank')}_log.err").write_text(text)
    return how_it_ended(Submitted(one, "12_3", folder))


def test_a_job_that_left_no_result_is_told_by_what_its_ranks_said_last(tmp_path):
    shown = ended(tmp_path, rank0="error: data.root=nowhere is no folder\nsrun: done\n", rank1="")
    assert (shown.state, shown.detail) == ("failed", "rank 0: error: data.root=nowhere is no folder")
    shown = ended(tmp_path, rank0="loading\n", rank1="Traceback ...\nMemoryError: out of memory\n", rank10="")
    assert shown.detail == "rank 1: MemoryError: out of memory"
    shown = ended(tmp_path, rank0="slurmstepd-node1: error: *** CANCELLED AT noon ***\nsrun: Terminating\n")
    assert shown.detail == "rank 0: slurmstepd-node1: error: *** CANCELLED AT noon ***"


def test_a_tree_that_changes_changes_its_code(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    assert current_code(tmp_path / "nowhere") == Code()
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    clean = current_code(tmp_path)
    assert len(clean.commit) == 40
    assert clean.diff == ""
    (tmp_path / "file").write_text("2")
    once = current_code(tmp_path)
    (tmp_path / "file").write_text("3")
    assert "" not in (once.diff, current_code(tmp_path).diff)
    assert once.diff != current_code(tmp_path).diff
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv/installed.py").touch()
    assert current_code(tmp_path / "venv") == Code()  # what is installed there is not that project's


def test_submission_imports_no_torch():
    modules = "launch.slurm, launch.slurm_task, launch.slurm_wait, launch.plugins, submitit, sys"
    code = f"import {modules}; launch.plugins.register_launchers(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"
