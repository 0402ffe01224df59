"""What the diagnostics cost a run: the quick start's length with them, against without.

python -m benchmarks.diagnostics [--rounds 5] [--samples 128]

Both train the same run (resnet8 on shapes, 8,000 samples an epoch, an evaluation after each), in turns and in a
random order within each round, so that a machine whose speed drifts slows both. Measured is the whole run,
evaluations and files included. What the diagnostics took of its processor time is measured inside as well: on a
machine that others use that says more than the ratio of two long times.
"""

import argparse
import platform
import random
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch

from normlab import data
from normlab.config import Config
from normlab.config.data import ShapesConfig
from normlab.config.model import CifarResNetConfig
from normlab.config.norm import BatchNormConfig
from normlab.config.optim import SgdConfig
from normlab.data.dataset import Dataset
from normlab.distributed import Ranks, available_cores
from normlab.evaluator import Evaluator
from normlab.logger import FileLogger
from normlab.preflight import plan
from normlab.trainer import Trainer


def run_s(cfg: Config, dataset: Dataset, device: torch.device) -> tuple[float, float]:
    """Seconds of a whole run, and the diagnostics' share of its processor time."""
    ranks = Ranks(0, 1, 1, device)
    spent_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = plan(replace(cfg, output_dir=folder), dataset, world_size=1, study="benchmark")
        run.create()
        logger = FileLogger(run)
        trainer = Trainer(run, dataset, ranks)
        diagnose = trainer.evaluator.diagnose

        def timed(*args: Any) -> Any:
            nonlocal spent_s
            began = time.process_time()
            found = diagnose(*args)
            spent_s += time.process_time() - began
            return found

        trainer.evaluator.diagnose = timed  # type: ignore[method-assign, assignment]
        assert isinstance(trainer.evaluator, Evaluator)
        began, began_cpu = time.perf_counter(), time.process_time()
        trainer.train(logger, lambda: 0)
        logger.close()
        return time.perf_counter() - began, spent_s / (time.process_time() - began_cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=128, help="diagnostics_samples")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    args = parser.parse_args()
    dataset = data.load(ShapesConfig())
    cfg = Config(
        norm=BatchNormConfig(),
        model=CifarResNetConfig(name="resnet8", depth=8),
        data=ShapesConfig(),
        optim=SgdConfig(),
        batch_size=32,
        epochs=args.epochs,
        diagnostics_samples=args.samples,
        threads=args.threads,
    )
    device = torch.device("cpu")
    ratios, shares = [], []
    for done in range(args.rounds):
        taken = {}
        for on in random.Random(done).sample([True, False], 2):
            taken[on] = run_s(replace(cfg, diagnostics=on), dataset, device)
        ratios.append(taken[True][0] / taken[False][0])
        shares.append(taken[True][1])
        print(
            f"round {done + 1}/{args.rounds}: {taken[True][0]:.1f} s with, {taken[False][0]:.1f} s without",
            flush=True,
        )
    print(f"\nresnet8, bn, batch 32, {len(dataset.train)} samples, {args.epochs} epochs and evaluations,")
    print(f"diagnostics_samples={args.samples}, {args.threads} threads, {platform.machine()},")
    print(f"torch {torch.__version__}")
    print(f"median of {args.rounds} rounds (min to max)\n")
    for name, values in (("time with / without", ratios), ("diagnostics' share of processor time", shares)):
        print(f"{name}: {statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})")


if __name__ == "__main__":
    main()
