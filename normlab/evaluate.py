"""Evaluate a trained run again, from its checkpoint: with other running statistics or on another split.

python -m normlab.evaluate runs/batch_size/bn-b2-... norm.running_stats=pooled
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from normlab import checkpoint, data
from normlab.config import Config, ConfigError
from normlab.config.norm import SyncBatchNormConfig
from normlab.config.saved import read_saved
from normlab.config.schema import identity
from normlab.data.dataset import Dataset, Split, near
from normlab.devices import choose_device
from normlab.distributed import Ranks
from normlab.evaluator import Buffers, Evaluator
from normlab.models import build_model
from normlab.norms import convert_norms
from normlab.norms.running_stats import RankStatistics
from normlab.numerics import Numerics
from normlab.run import name_run
from normlab.run_files import flat_settings
from normlab.tasks import build_task

DESCRIPTION = """\
Evaluate trained runs again, each from its checkpoint, in one process. The runs are left as they are. key=value
changes how they are evaluated: norm.running_stats, norm.precise_samples, precision, channels_last,
eval_batch_size, eval_train_samples, device, threads, or where files lie now (data.root, data.cache_dir,
model.init_from)."""
EVALUATION_ONLY = {
    "norm.running_stats",
    "norm.precise_samples",
    "precision",
    "channels_last",
    "eval_train_samples",
}
"""Keys of a run's identity that may change: they do not affect training, or its weights also fit other values."""
SPLITS = ("val", "test", "train")


@dataclass(frozen=True)
class Evaluation:
    """The result for one run."""

    run: str
    """Its directory."""

    hash: str
    changes: list[str]
    samples_seen: int
    """Training samples behind the checkpoint."""

    metrics: dict[str, float]


def evaluate_run(directory: Path, changes: Sequence[str], splits: Sequence[str] = ()) -> Evaluation:
    """Metrics of a run on `splits` (none: val, and test if there is one), with `changes` applied.

    The running statistics are computed from those of all its ranks, which the checkpoint holds.
    Raises: ConfigError if the run or its checkpoint cannot be read, its data are not those it was trained on, a
    change would make it another run, or a split does not exist.
    """
    trained = read_saved(directory / "config.yaml")
    cfg = read_saved(directory / "config.yaml", changes)
    _check_changes(trained, cfg)
    assert cfg.world_size is not None
    path = directory / "checkpoint.pt"
    try:
        state = checkpoint.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is not there; give the directory of a run that has been trained.") from None
    ranks = Ranks(0, 1, 1, choose_device(cfg.device, 1))
    dataset = near(data.load(cfg.data), ranks.device)
    chosen = _choose_splits(dataset, splits)
    # Initial weights may have moved; their content is part of the hash.
    named = replace(trained, model=cfg.model)
    run = name_run(
        named, world_size=cfg.world_size, study=trained.study or "", data_fingerprint=dataset.fingerprint
    )
    ranks.set_threads(cfg.threads)
    numerics = Numerics.of(
        cfg.precision,
        ranks.device,
        channels_last=cfg.channels_last,
        deterministic=cfg.deterministic,
        one_size=cfg.data.task == "classification",
    )
    module = numerics.module(_converted(cfg, dataset))
    checkpoint.check(path, state, run.hash, run.steps(len(dataset.train))[1], module)
    task = build_task(cfg, dataset, ranks.device)
    evaluator = Evaluator(module, cfg, dataset, ranks, task, data.inputs(cfg.data, dataset, numerics, ranks))
    buffers = _restore(module, state, evaluator)
    metrics: dict[str, float] = {}
    for name, split in chosen.items():
        limit = cfg.eval_train_samples if name == "train" else None
        sums = evaluator.split(split, buffers, limit=limit)
        metrics |= {f"{name}/{metric}": value for metric, value in evaluator.task.metrics(sums).items()}
    samples_seen = state["step"] * cfg.global_batch_size(cfg.world_size)
    return Evaluation(str(directory), run.hash, list(changes), samples_seen, metrics)


def _choose_splits(dataset: Dataset, names: Sequence[str]) -> dict[str, Split]:
    """Raises: ConfigError for a split that the data do not have."""
    there = {name: split for name in SPLITS if (split := getattr(dataset, name)) is not None}
    for name in names:
        if name not in there:
            raise ConfigError(f"--split {name}: these data have none; choose from {', '.join(there)}.")
    return {name: there[name] for name in names or ("val", "test") if name in there}


def _check_changes(trained: Config, cfg: Config) -> None:
    """Raises: ConfigError for a change that would have changed the training."""
    before, after = (flat_settings(identity(one)) for one in (trained, cfg))
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and key not in EVALUATION_ONLY:
            raise ConfigError(
                f"{key} is part of what was trained, so a run cannot be evaluated with another; "
                f"change only {', '.join(sorted(EVALUATION_ONLY))}, or keys that change no result."
            )


def _converted(cfg: Config, dataset: Dataset) -> nn.Module:
    norm = cfg.norm
    if isinstance(norm, SyncBatchNormConfig) and (norm.sync_group_size or 0) > cfg.virtual_ranks:
        norm = replace(norm, sync_group_size=None)  # its groups consist of processes, and there is one
    return convert_norms(build_model(cfg.model, len(dataset.classes), seed=cfg.seed), norm, cfg.virtual_ranks)


def _restore(module: nn.Module, state: Mapping[str, Any], evaluator: Evaluator) -> Buffers:
    """Give the module its parameters and rank 0's buffers. Returns the buffers that are evaluated."""
    buffers = dict(module.named_buffers())
    statistics: list[RankStatistics] = []
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(state["model"][name])
        for own in reversed(state["rank_state"]):  # rank 0's last, so that they stay
            checkpoint.copy_into(buffers.values(), own)
            found = RankStatistics.gather(module, evaluator.ranks)
            statistics = [found, *statistics] if found else []
    if not statistics:
        return buffers
    of_all = RankStatistics(
        torch.cat([one.mean_RN for one in statistics]), torch.cat([one.var_RN for one in statistics])
    )
    return buffers | evaluator.chosen(of_all)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m normlab.evaluate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's directory, then key=value for all of them")
    parser.add_argument(
        "--split", nargs="+", choices=SPLITS, default=[], help="default: val, and test if there is one"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per run")
    args = parser.parse_intermixed_args(arguments)
    changes = [one for one in args.runs if "=" in one and not os.path.isdir(one)]
    directories = [Path(one) for one in args.runs if one not in changes]
    try:
        if not directories:
            raise ConfigError("no run is named; give a run's directory: runs/<study>/<run>.")
        for directory in directories:
            evaluation = evaluate_run(directory, changes, args.split)
            print(_object(evaluation) if args.json else _line(evaluation), flush=True)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()


def _object(evaluation: Evaluation) -> str:
    """One line of JSON, which has no NaN or infinity: such a metric is null, as in metrics.jsonl."""
    finite = {name: value if math.isfinite(value) else None for name, value in evaluation.metrics.items()}
    return json.dumps(asdict(evaluation) | {"metrics": finite}, allow_nan=False)


def _line(evaluation: Evaluation) -> str:
    shown = {name: value for name, value in evaluation.metrics.items() if "/iou" not in name}  # one per class
    return f"{evaluation.run}: " + "  ".join(f"{name} {value:.4f}" for name, value in shown.items())


if __name__ == "__main__":
    main()
