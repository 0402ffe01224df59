"""A copy of the code for the jobs of a submission, which may start days later. Imports no torch."""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.commit import NOTE, ROOT, current_code
from launch.jobs import Job
from normlab.squeue import Queue
from normlab.targets import OWN_MODULES, source_file

FOLDER = "code"
"""The copy's name in the folder of a submission."""


def take_snapshot(folder: Path, jobs: Sequence[Job], cluster: str) -> Path:
    """Copy normlab, and the user's own modules that these jobs name, into `folder`/code. Returns that folder."""
    snapshot = folder / FOLDER
    for name in ("launch", "normlab", "conf"):
        if (ROOT / name).is_dir():  # conf/ is inside normlab/ if normlab is installed
            _copy_tree(ROOT / name, snapshot / name)
    for file in _own_modules(jobs):
        copy = snapshot / OWN_MODULES.name / file.relative_to(Path.cwd())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    (snapshot / NOTE).write_text(json.dumps({**asdict(current_code()), "cluster": cluster}))
    return snapshot


def _copy_tree(folder: Path, copy: Path) -> None:
    try:
        # Emacs keeps a dangling link, .#name, beside a file that is being edited.
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, copy, ignore=ignored, ignore_dangling_symlinks=True)
    except shutil.Error as error:  # a list of all files that could not be copied
        _, _, why = error.args[0][0]
        raise OSError(0, why) from None


def _own_modules(jobs: Sequence[Job]) -> set[Path]:
    """Files of the targets of `jobs`, and of their imports, as far as they are in this folder."""
    configs = [job.run.config for job in jobs]
    sections: list[Any] = [section for cfg in configs for section in (cfg.model, cfg.data, cfg.norm)]
    targets = {(one.key("target"), one.target) for one in sections if getattr(one, "target", None)}
    if not targets:
        return set()
    files = {source_file(key, target) for key, target in targets}
    files |= {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    return {file for file in files if _is_own(file)}


def _is_own(file: Path) -> bool:
    ours = any(file.is_relative_to(ROOT / name) for name in ("launch", "normlab"))
    return file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts and not ours


def remove_snapshots(output_dir: Path, queue: Queue, cluster: str) -> None:
    """Remove copies whose jobs have all left the queue. Call under the lock of submissions.

    Those of other users and other clusters stay, since their queues are not known here.
    """
    submissions = {job.comment for job in queue.values()}
    for snapshot in output_dir.glob(f".slurm/*/{FOLDER}"):
        try:
            mine = snapshot.stat().st_uid == os.getuid()
            of = json.loads((snapshot / NOTE).read_bytes())["cluster"]
        except (OSError, ValueError, KeyError):
            continue
        if mine and of == cluster and snapshot.parent.name not in submissions:
            shutil.rmtree(snapshot, ignore_errors=True)
