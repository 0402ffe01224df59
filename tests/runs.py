"""Real training runs for tests: tiny data, the real trainer."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from launch.composing import Composer
from launch.plugins import register_launchers
from normlab import data
from normlab.config import Config
from normlab.config.mistakes import to_typed
from normlab.config.schema import register_schemas
from normlab.config.section import SCHEMAS
from normlab.distributed import Ranks
from normlab.logger import Logger
from normlab.preflight import plan
from normlab.run import Run
from normlab.trainer import Trainer

CONF = Path(__file__).parents[1] / "conf"
TINY = [
    "data.num_train=96",
    "data.num_test=50",
    "eval_batch_size=16",
    "eval_train_samples=20",
    "log_every=1",
    "diagnostics_samples=20",
]
EXACT = [*TINY, "precision=fp64", "optim.lr=0.02", "optim.lr_scaling=none"]
NARROW = "model.width=4"
"""A sixteenth of the arithmetic, where it is not what a test is about."""
SEGMENTATION = ["data=shapes_seg", "model=fcn_resnet8"]


@cache
def composer() -> Composer:
    register_schemas()
    register_launchers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
    return Composer(loader.load_configuration("config", [], RunMode.MULTIRUN), loader)


def typed(*overrides: str) -> Config:
    """The configuration that a command line gives."""
    return to_typed(composer().compose(overrides)[0])


def choices(group: str) -> list[str]:
    """What may stand behind `<group>=`: names that schemas have of themselves, and YAML files."""
    own = {name for schema in SCHEMAS[group].values() for name in schema.own_names()}
    return sorted(own | {path.stem for path in (CONF / group).glob("*.yaml")})


class Recorder(Logger):
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self.notes: list[str] = []
        self.documents: dict[str, str] = {}
        self.pictures: dict[str, Any] = {}
        self.histograms: list[tuple[int, str, list[float]]] = []

    def start(self, step: int, samples_seen: int, logged: dict[str, int]) -> None:
        self.points.clear()

    def log(self, step: int, samples_seen: int, epoch: float, metrics: dict[str, float]) -> None:
        self.points.append({"step": step, "samples_seen": samples_seen, "epoch": epoch, **metrics})

    def note(self, text: str) -> None:
        self.notes.append(text)

    def document(self, name: str, text: str) -> None:
        self.documents[name] = text

    def picture(self, samples_seen: int, name: str, draw: Any) -> None:
        self.pictures[name] = draw

    def histogram(self, samples_seen: int, name: str, values: Any) -> None:
        self.histograms.append((samples_seen, name, list(values)))

    def curve(self, tag: str) -> list[float]:
        return [point[tag] for point in self.points if tag in point]


class StopAt:
    """A stop signal that a rank finds when it looks for the n-th time: at a step, or a batch of an evaluation."""

    def __init__(self, looks: int, signal: int) -> None:
        self.at, self.signal, self.looks = looks, signal, 0

    def __call__(self) -> int:
        self.looks += 1
        return self.signal if self.looks == self.at else 0


def ranks_here(rank: int) -> Ranks:
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return Ranks(rank, world_size, world_size * 2, torch.device("cpu"))


def build(rank: int, overrides: list[str]) -> Trainer:
    """The trainer that a command line gives, on the ranks of the current group."""
    ranks, cfg = ranks_here(rank), typed(*overrides)
    dataset = data.load(cfg.data)
    run = plan(cfg, dataset, world_size=ranks.world_size, study="test")
    if rank == 0:
        run.create()
    if ranks.world_size > 1:
        dist.barrier()
    return Trainer(run, dataset, ranks)


def run_training(
    rank: int, overrides: list[str], stops: dict[int, tuple[int, int]] | None = None
) -> dict[str, Any]:
    """Train; `stops` gives a rank's (look, signal), see StopAt. Returns the curves, the outcome and the state."""
    trainer, recorder = build(rank, overrides), Recorder()
    stop = StopAt(*(stops or {}).get(rank, (0, 0)))
    outcome = trainer.train(recorder, stop)
    return {
        "loss": recorder.curve("train/loss"),
        "points": recorder.points,
        "notes": recorder.notes,
        "outcome": outcome,
        "looks": stop.looks,
        "run": trainer.run,
        "state": {name: t.clone() for name, t in trainer.module.state_dict().items()},
        "optimizer": trainer.optimizer.state_dict(),
    }


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def directory_of(overrides: list[str], world_size: int) -> Run:
    cfg = typed(*overrides)
    return plan(cfg, data.load(cfg.data), world_size=world_size, study="test")
