"""What SyncBatchNorm costs on real ranks: a training step with it against one with BatchNorm.

python -m benchmarks.sync_batch_norm --rounds 7

ResNet-20 on 32x32 images, fp32, SGD, one thread per rank, through shared memory and over gloo. The cases take
turns in one run, so that a machine whose speed drifts slows all of them; a ratio is the median over rounds of that
round's pair, with the smallest and the largest.
"""

import argparse
import os
import platform
import statistics
import time

import torch
import torch.distributed as dist

from benchmarks.virtual_ranks import NORMS, make_step
from normlab.bench.ranks import RankPool
from normlab.distributed import available_cores
from normlab.norms.exchange import sum_gradients

CASES = [("bn", True), ("syncbn", True), ("syncbn", False)]
"""Norm, and whether shared memory is on."""


def step_s(rank: int, norm: str, shared_memory: bool, batch_size: int, seconds: float) -> float:
    """Seconds of a step, the same number of which is taken on all ranks."""
    os.environ["NORMLAB_SHARED_MEMORY"] = str(int(shared_memory))
    step = make_step(NORMS[norm](), batch_size, 1)
    for _ in range(3):  # DDP orders its buckets anew after its first
        step()
    dist.barrier()
    began = time.perf_counter()
    step()
    estimate_s = torch.tensor(time.perf_counter() - began)
    dist.all_reduce(estimate_s, dist.ReduceOp.MAX)
    steps = max(3, int(seconds / estimate_s.item()))
    dist.barrier()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    dist.barrier()
    return (time.perf_counter() - began) / steps


def exchange_s(rank: int, shared_memory: bool, values: int, exchanges: int) -> float:
    """Seconds of an exchange of float32 values with nothing between exchanges."""
    os.environ["NORMLAB_SHARED_MEMORY"] = str(int(shared_memory))
    sums = torch.zeros(values)
    for _ in range(10):
        sum_gradients(sums, dist.group.WORLD)
    dist.barrier()
    began = time.perf_counter()
    for _ in range(exchanges):
        sum_gradients(sums, dist.group.WORLD)
    return (time.perf_counter() - began) / exchanges


def spread(values: list[float], digits: int) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.{digits}f} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each case in a round")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2, 16, 64])
    args = parser.parse_args()
    print(f"resnet20, fp32, {available_cores()} cores, {platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"median of {args.rounds} rounds (min to max), load average {os.getloadavg()[0]:.1f}\n")
    print(
        "| ranks | batch_size | bn, ms | syncbn / bn, shared memory | syncbn / bn, gloo |\n|---|---|---|---|---|"
    )
    with RankPool(max(args.world_sizes), threads=1) as pool:
        for world_size in args.world_sizes:
            for batch_size in args.batch_sizes:
                rounds = [
                    [
                        max(pool.run(step_s, *case, batch_size, args.seconds, world_size=world_size))
                        for case in CASES
                    ]
                    for _ in range(args.rounds)
                ]
                bn_ms = [bn * 1e3 for bn, _, _ in rounds]
                shared, gloo = ([each[i] / each[0] for each in rounds] for i in (1, 2))
                row = [world_size, batch_size, spread(bn_ms, 1), spread(shared, 2), spread(gloo, 2)]
                print("| " + " | ".join(map(str, row)) + " |", flush=True)
        print("\n| ranks | exchange of 129 floats, shared memory, µs | gloo, µs |\n|---|---|---|")
        for world_size in args.world_sizes:
            times: list[list[float]] = [[], []]
            for _ in range(args.rounds):
                for seen, (shared_memory, exchanges) in zip(times, ((True, 2000), (False, 100)), strict=True):
                    taken = pool.run(exchange_s, shared_memory, 129, exchanges, world_size=world_size)
                    seen.append(max(taken) * 1e6)
            print(f"| {world_size} | {spread(times[0], 0)} | {spread(times[1], 0)} |", flush=True)


if __name__ == "__main__":
    main()
