"""images/s of normlab's trainer against a bare PyTorch loop: same model, batch, threads and precision.

python -m benchmarks.train_loop [--rounds 5]

The bare loop is the least that trains: normalised float images resident in memory, no augmentation, no
checks, no logging, torch's SGD as it comes. Both take turns in one process, so that a machine whose speed
drifts slows both; each figure is the median over rounds, and the ratio that of each round's pair.
"""

import argparse
import platform
import statistics
import tempfile
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from normlab import data
from normlab.config import Config
from normlab.config.config import Precision
from normlab.config.data import ShapesConfig
from normlab.config.model import CifarResNetConfig
from normlab.config.norm import BatchNormConfig
from normlab.config.optim import SgdConfig
from normlab.data.dataset import Dataset
from normlab.distributed import Ranks, available_cores
from normlab.logger import FileLogger
from normlab.models import build_model
from normlab.numerics import Numerics
from normlab.preflight import plan
from normlab.trainer import Trainer

CASES = [(128, Precision.fp32), (16, Precision.fp32), (128, Precision.bf16), (16, Precision.bf16)]


CPU = torch.device("cpu")


def trainer_images_per_second(cfg: Config, dataset: Dataset, device: torch.device = CPU) -> float:
    """A run of train.py, files and all; evaluation and checkpoints are not in its training time."""
    ranks = Ranks(0, 1, 1, device)
    with tempfile.TemporaryDirectory() as folder:
        run = plan(replace(cfg, output_dir=folder), dataset, world_size=1, study="benchmark")
        run.create()
        logger = FileLogger(run)
        outcome = Trainer(run, dataset, ranks).train(logger, lambda: 0)
        logger.close()
    return outcome.measured["images_per_second"]


def bare_images_per_second(cfg: Config, images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> float:
    """The same on the device of `images_BCHW`."""
    device = images_BCHW.device
    torch.set_num_threads(available_cores())
    assert cfg.max_samples is not None
    model = build_model(cfg.model, 10, seed=0).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision is Precision.bf16)

    def step(picked_B: torch.Tensor) -> None:
        with autocast:
            loss = F.cross_entropy(model(images_BCHW[picked_B]), labels_B[picked_B])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    order = torch.randperm(len(images_BCHW)).to(device).split(cfg.batch_size)
    step(order[0])
    _wait_for(device)
    steps = cfg.max_samples // cfg.batch_size
    began = time.perf_counter()
    for index in range(steps):
        step(order[index])
    _wait_for(device)
    return steps * cfg.batch_size / (time.perf_counter() - began)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def case(depth: int, batch_size: int, precision: Precision) -> Config:
    """A run of the comparison."""
    return Config(
        norm=BatchNormConfig(),
        model=CifarResNetConfig(name=f"resnet{depth}", depth=depth),
        data=ShapesConfig(num_train=8192, num_test=10),
        optim=SgdConfig(),
        batch_size=batch_size,
        precision=precision,
        max_samples=4096 if batch_size == 128 else 2048,
        eval_train_samples=10,
        epochs=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=20)
    args = parser.parse_args()
    dataset = data.load(ShapesConfig(num_train=8192, num_test=10))
    uint8_BHWC, labels_B = dataset.train.take(torch.arange(len(dataset.train)))
    images_BCHW = Numerics.of(Precision.fp32, torch.device("cpu")).images(
        uint8_BHWC, dataset.mean_C, dataset.std_C
    )
    print(f"resnet{args.depth}, bn, {available_cores()} threads, {platform.processor() or platform.machine()}, ")
    print(f"torch {torch.__version__}, median of {args.rounds} rounds (min to max of the ratio)\n")
    print("| batch | precision | bare loop, images/s | normlab, images/s | ratio |\n|---|---|---|---|---|")
    for batch_size, precision in CASES:
        cfg = case(args.depth, batch_size, precision)
        pairs = []
        for _ in range(args.rounds):
            bare = bare_images_per_second(cfg, images_BCHW, labels_B)
            pairs.append((bare, trainer_images_per_second(cfg, dataset)))
        bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        print(
            f"| {batch_size} | {precision.value} | {bare:.0f} | {ours:.0f} "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
