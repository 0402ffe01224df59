"""What virtual ranks cost: against plain BN on the same samples, and against as many real gloo ranks.

python -m benchmarks.virtual_ranks --rounds 5

ResNet-20 on 32x32 images, batch_size 2 on 8 ranks, SGD. The cases take turns in one run, so that a machine
whose speed drifts slows all of them; each figure is the median over rounds of a case's images/s, and a ratio
that of each round's pair. Memory is by how much training raises the peak resident size of a process (Linux).
"""

import argparse
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from normlab.bench.ranks import RankPool
from normlab.config.model import CifarResNetConfig
from normlab.config.norm import BatchNormConfig, NormConfig, SyncBatchNormConfig
from normlab.distributed import available_cores
from normlab.models import build_model
from normlab.norms import convert_norms
from normlab.older_torch import NO_BUFFER_SYNC

RANKS, BATCH_SIZE = 8, 2
NORMS = {"bn": BatchNormConfig, "syncbn": SyncBatchNormConfig}


def make_step(
    norm: NormConfig, samples: int, virtual_ranks: int, *, bf16: bool = False, channels_last: bool = False
) -> Callable[[], None]:
    """One training step of `samples` samples on this rank: forward, backward, update."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(CifarResNetConfig(name="resnet20", depth=20), 10, seed=0)
    model = convert_norms(model.to(memory_format=layout), norm, virtual_ranks).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    if dist.is_initialized():
        model = DistributedDataParallel(model, gradient_as_bucket_view=True, **NO_BUFFER_SYNC)
    images_BCHW = torch.randn(samples, 3, 32, 32).contiguous(memory_format=layout)
    labels_B = torch.randint(0, 10, (samples,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images_BCHW), labels_B)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def images_per_second(step: Callable[[], None], samples: int, seconds: float) -> float:
    step()
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        steps += 1
    return steps * samples / (time.perf_counter() - began)


def real_rank(rank: int, norm: str, steps: int) -> float:
    """Seconds that `steps` steps take on this real rank, once all ranks are ready."""
    step = make_step(NORMS[norm](), BATCH_SIZE, 1)
    step()
    step()  # DDP orders its buckets anew after its first
    dist.barrier()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    dist.barrier()
    return time.perf_counter() - began


def peak_memory_mib(norm: str, virtual_ranks: int, bf16: bool, steps: int, pipe: Any) -> None:
    torch.set_num_threads(available_cores())
    step = make_step(NORMS[norm](), RANKS * BATCH_SIZE, virtual_ranks, bf16=bf16)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, which importing made, is forgotten
    before = memory_kib("VmRSS")
    for _ in range(steps):
        step()
    pipe.send((memory_kib("VmHWM") - before) / 1024)


def memory_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def memory_in_a_fresh_process(virtual_ranks: int, bf16: bool) -> float:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=peak_memory_mib, args=("bn", virtual_ranks, bf16, 5, theirs)
    )
    process.start()
    used = ours.recv()
    process.join()
    return used


def row(name: str, ours: list[float], theirs: list[float]) -> str:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    middle = statistics.median(ratios)
    return (
        f"| {name} | {statistics.median(ours):.0f} | {statistics.median(theirs):.0f} "
        f"| {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each case in a round")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of the one process")
    parser.add_argument("--no-real-ranks", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = RANKS * BATCH_SIZE
    cases = {
        (norm, virtual_ranks, bf16, layout): make_step(
            NORMS[norm](), samples, virtual_ranks, bf16=bf16, channels_last=layout
        )
        for bf16 in (False, True)
        for layout in (False, True)
        for norm, virtual_ranks in (("bn", 1), ("bn", RANKS), ("syncbn", RANKS))
        if norm == "bn" or not (bf16 or layout)
    }
    seen: dict[Any, list[float]] = {case: [] for case in cases}
    real = {} if args.no_real_ranks else {"bn": 16, "syncbn": 4}  # steps
    seen |= {norm: [] for norm in real}
    with RankPool(RANKS if real else 0, threads=1) as pool:
        for _ in range(args.rounds):
            for case, step in cases.items():
                seen[case].append(images_per_second(step, samples, args.seconds))
            for norm, steps in real.items():
                taken_s = max(pool.run(real_rank, norm, steps, world_size=RANKS))
                seen[norm].append(steps * samples / taken_s)
    print(f"resnet20, batch_size {BATCH_SIZE} on {RANKS} ranks, {args.threads} threads, {platform.machine()},")
    print(f"torch {torch.__version__}, median of {args.rounds} rounds (min to max of the ratio)\n")
    print("| virtual against | virtual, images/s | other, images/s | ratio |\n|---|---|---|---|")
    for bf16 in (False, True):
        for layout in (False, True):
            name = f"plain bn, {'bf16' if bf16 else 'fp32'}{', channels_last' * layout}"
            print(row(name, seen["bn", RANKS, bf16, layout], seen["bn", 1, bf16, layout]))
    for norm in real:
        print(row(f"{RANKS} real ranks, {norm}, fp32", seen[norm, RANKS, False, False], seen[norm]))
    print("\n| memory of training, MiB | virtual | plain bn | ratio |\n|---|---|---|---|")
    for bf16 in (False, True):
        virtual, plain = (memory_in_a_fresh_process(v, bf16) for v in (RANKS, 1))
        print(f"| {'bf16' if bf16 else 'fp32'} | {virtual:.0f} | {plain:.0f} | {virtual / plain:.2f} |")


if __name__ == "__main__":
    main()
