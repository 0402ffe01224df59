"""How long `python train.py` of 64 samples takes, beside what any script in torch waits for.

python -m benchmarks.start [--rounds 5]

torch.optim imports torch._dynamo when the first optimizer is made. The bare script imports torch and trains one
step of a small network, with neither configuration, data, evaluation, TensorBoard nor checkpoint.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from normlab.markdown import markdown_table

TRAIN = str(Path(__file__).parents[1] / "train.py")
RUN = ["data.num_train=64", "data.num_test=50", "epochs=1", "progress=false"]
OPTIMIZER = "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)"
BARE = """
import torch
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
net(torch.randn(32, 3, 32, 32))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
nn.functional.cross_entropy(net(torch.randn(32, 3, 32, 32)), torch.zeros(32, dtype=torch.long)).backward()
optimizer.step()
"""
WAYS = {
    "`import torch`": ["-c", "import torch"],
    "`import torch` and an optimizer": ["-c", OPTIMIZER],
    "a bare script of one step": ["-c", BARE],
    "`python train.py`, one rank": [TRAIN, *RUN],
    "`python train.py`, two ranks": [TRAIN, *RUN, "world_size=2"],
}


def seconds(command: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=folder, check=True, capture_output=True)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"median of {rounds} rounds (lowest to highest); {cores} cores, load {load:.1f} before,")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}\n")
    for command in WAYS.values():
        seconds(command)  # files into the page cache
    taken = [[seconds(command) for command in WAYS.values()] for _ in range(rounds)]
    by_way = dict(zip(WAYS, zip(*taken, strict=True), strict=True))
    bare_s = median(by_way["a bare script of one step"])
    rows = [
        [way, f"{median(of):.2f} ({min(of):.2f} to {max(of):.2f})", f"{median(of) / bare_s:.2f}"]
        for way, of in by_way.items()
    ]
    print(markdown_table(["", "seconds", "against the bare script"], rows, numbers=True), end="")


if __name__ == "__main__":
    main()
