"""Whether normlab trains on this GPU as on a CPU, and how fast: what `make gpu` runs. It needs no network.

python -m benchmarks.gpu [--device cpu] [--write docs]

First the tests that are marked `gpu`, then images/s of normlab's trainer against a bare PyTorch loop that takes
turns with it (see benchmarks.train_loop). --write makes gpu.json and gpu.md of it. With --device cpu the same runs
on the CPU, which shows that the command works, and nothing about a GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.train_loop import bare_images_per_second, case, trainer_images_per_second
from normlab import data
from normlab.atomic import atomic_write
from normlab.config.config import Precision
from normlab.distributed import device_name
from normlab.markdown import markdown_table
from normlab.numerics import Numerics

ROOT = Path(__file__).parents[1]
DEPTH = 20
BATCH_SIZES = (128, 16)
COLUMNS = ["batch", "precision", "bare loop, images/s", "normlab, images/s", "ratio (min to max)"]


def tests(device: str) -> tuple[bool, str]:
    """(whether all tests marked `gpu` passed, pytest's last line)."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-q", "-rs", "tests"]
    env = os.environ | {"NORMLAB_TEST_DEVICE": device}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    return done.returncode == 0, done.stdout.strip().rpartition("\n")[2]


def ratios(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """The trainer against a bare loop, at each batch size and precision of the device."""
    dataset = data.load(case(DEPTH, 128, Precision.fp32).data)
    uint8_BHWC, labels_B = dataset.train.take(torch.arange(len(dataset.train)))
    images = Numerics.of(Precision.fp32, device).images(uint8_BHWC, dataset.mean_C, dataset.std_C)
    labels_B = labels_B.to(device)
    found = []
    for precision in (Precision.fp32, Precision.tf32, Precision.bf16):
        if precision is Precision.tf32 and device.type == "cpu":
            continue
        Numerics.of(precision, device)  # what TF32 may be used for, in the bare loop as well
        for batch_size in BATCH_SIZES:
            cfg = case(DEPTH, batch_size, precision)
            pairs = [
                (bare_images_per_second(cfg, images, labels_B), trainer_images_per_second(cfg, dataset, device))
                for _ in range(rounds)
            ]
            found.append({"batch_size": batch_size, "precision": precision.value, "images_per_second": pairs})
            print(" ".join(row(found[-1])), flush=True)
    return found


def row(measured: dict[str, Any]) -> list[str]:
    pairs = measured["images_per_second"]
    bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    each = [b / a for a, b in pairs]
    ratio = f"{statistics.median(each):.3f} ({min(each):.3f} to {max(each):.3f})"
    return [str(measured["batch_size"]), measured["precision"], f"{bare:.0f}", f"{ours:.0f}", ratio]


def page(result: dict[str, Any]) -> str:
    """docs/gpu.md."""
    table = markdown_table(COLUMNS, [row(measured) for measured in result["ratios"]])
    return (
        f"# On a GPU\n\nMade by `{result['command']}` on {result['date']}: {result['hardware']}, torch "
        f"{result['torch']}, CUDA {result['cuda']}.\n\nTests marked `gpu`: {result['tests']}\n\n"
        f"## The trainer against a bare loop\n\nResNet-{DEPTH}, bn, median of {result['rounds']} rounds.\n\n"
        f"{table}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="the folder that gpu.json and gpu.md go to")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            f"error: --device cuda: torch {torch.__version__} finds no GPU here; run this where `nvidia-smi` "
            "shows one, or give --device cpu.",
            file=sys.stderr,
        )
        return 2
    device = torch.device(args.device, 0)
    passed, told = tests(args.device)
    result = {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": device_name(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tests": told,
        "rounds": args.rounds,
        "ratios": ratios(device, args.rounds),
    }
    if args.write:
        for name, text in (("gpu.json", json.dumps(result, indent=1) + "\n"), ("gpu.md", page(result))):
            with atomic_write(args.write / name) as file:
                file.write(text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
