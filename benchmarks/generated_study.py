"""A study as train.py leaves it, but made up: for the scale that no test can train."""

import json
import random
from pathlib import Path

from omegaconf import OmegaConf

from normlab.config import Config
from normlab.config.data import ShapesConfig
from normlab.config.model import CifarResNetConfig
from normlab.config.norm import (
    BatchNormConfig,
    GroupNormConfig,
    InstanceNormConfig,
    LayerNormConfig,
    NormConfig,
    SyncBatchNormConfig,
)
from normlab.config.optim import SgdConfig
from normlab.config.schema import plain

NORMS: tuple[NormConfig, ...] = (
    BatchNormConfig(),
    SyncBatchNormConfig(),
    GroupNormConfig(),
    LayerNormConfig(),
    InstanceNormConfig(),
)
BATCH_SIZES = (2, 4, 8, 16, 32)
RANKS = 8


def generate(root: Path, runs: int = 1000, points: int = 200) -> None:
    """Write `runs` finished runs below `root`: 5 norms at 5 batch sizes, as many seeds as that takes.

    Each has config.yaml, result.json, log.txt and metrics.jsonl with `points` lines, every tenth an evaluation.
    """
    chance = random.Random(0)
    for number in range(runs):
        norm = NORMS[number % len(NORMS)]
        batch_size = BATCH_SIZES[number // len(NORMS) % len(BATCH_SIZES)]
        write_run(root, norm, batch_size, number // (len(NORMS) * len(BATCH_SIZES)), points, chance)


def write_run(
    root: Path, norm: NormConfig, batch_size: int, seed: int, points: int, chance: random.Random
) -> None:
    cfg = Config(
        norm=norm,
        model=CifarResNetConfig(name="resnet8", depth=8),
        data=ShapesConfig(),
        optim=SgdConfig(),
        batch_size=batch_size,
        world_size=RANKS,
        seed=seed,
    )
    name = f"{norm.name}-b{batch_size}-w{RANKS}-resnet8-shapes-s{seed}-{chance.getrandbits(32):08x}"
    directory = root / name
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(cfg))))
    final = 0.9 - 0.2 * (norm.name == "bn") / batch_size + chance.gauss(0, 0.01)
    lines, log = [], []
    for point in range(1, points + 1):
        line = {"step": 10 * point, "samples_seen": 640 * point, "epoch": point / 20}
        loss = 2.3 * 0.5 ** (3 * point / points) + chance.gauss(0, 0.02)
        if point % 10:
            line |= {"train/loss": loss, "train/batch_accuracy": 1 - loss / 2.3, "lr": 0.1 * (1 - point / points)}
            line |= {"images_per_second": chance.gauss(500, 20), "grad_norm": chance.gauss(1, 0.1)}
        else:
            accuracy = final * point / points
            line |= {"val/loss": loss, "val/accuracy": accuracy, "train/accuracy": accuracy + 0.02}
            log.append(f"epoch {point / 20:.2f}  {640 * point} samples  loss {loss:.3f}  val acc {accuracy:.4f}\n")
        lines.append(json.dumps(line) + "\n")
    (directory / "metrics.jsonl").write_text("".join(lines))
    (directory / "log.txt").write_text("".join(log))
    result = {
        "status": "finished",
        "metrics": {"val/accuracy": final, "val/loss": loss, "train/accuracy": final + 0.02},
        "norm": norm.name,
        "batch_size": batch_size,
        "normalization_batch_size": norm.normalization_batch_size(batch_size, RANKS),
        "eval_split": "test",
        "results_version": 1,
        "samples_seen": 640 * points,
        "images_per_second": chance.gauss(500, 20),
        "device_name": "made up",
        "torch": "made up",
    }
    (directory / "result.json").write_text(json.dumps(result))
